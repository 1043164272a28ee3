//! The joining node's side of enrolment over the network.

use super::pki::{Identity, NodeSetup, finish_join, prepare_join, token::Token};
use super::{LinkError, dial, tls, wire};
use crate::proto::control::{Control, GREETING_MAX, JoinReply, JoinRequest};
use crate::store::StateDir;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Time for each address of the first node, and for each step with it.
const LIMIT: Duration = Duration::from_secs(5);
/// The first node writes to its disk several times before it answers.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Enrols this node with a token: asks the first node at its addresses, one after the other, and
/// writes what it gets into `state`.
///
/// # Errors
/// The token, the network, a refusal of the first node, or the state directory.
pub async fn join(state: &StateDir, token: &Token, setup: &NodeSetup) -> Result<Identity, LinkError> {
    let (key, request) = prepare_join(state, setup, token)?;
    let mut last = LinkError::NotConnected;
    for address in &token.addresses {
        let address = SocketAddr::new(*address, token.port);
        match ask(token, &request, address).await {
            Ok(reply) => return finish_join(state, setup, &key, &reply),
            // Another address of the same node may be reachable; an answer is final.
            Err(
                error @ (LinkError::Io { .. } | LinkError::Deadline { .. } | LinkError::WrongAuthority(_)),
            ) => {
                last = error;
            }
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

async fn ask(token: &Token, request: &JoinRequest, address: SocketAddr) -> Result<JoinReply, LinkError> {
    const OPERATION: &str = "join";
    let failed = |source| LinkError::Io { operation: "connect to", with: address, source };
    let socket = timeout(LIMIT, TcpStream::connect(address))
        .await
        .map_err(|_| dial::late("connecting", address, LIMIT))?
        .map_err(failed)?;
    dial::tune(&socket, LIMIT).map_err(failed)?;
    let name = tls::server_name(&token.node, &token.pair)?;
    let connect = TlsConnector::from(tls::joining(token)?).connect(name, socket);
    let mut stream = timeout(LIMIT, connect)
        .await
        .map_err(|_| dial::late("the TLS handshake", address, LIMIT))?
        .map_err(|error| match tls::sort(error, address, OPERATION) {
            LinkError::Certificate { from, .. } | LinkError::WrongNode { from, .. } => {
                LinkError::WrongAuthority(from)
            }
            other => other,
        })?;
    let said = wire::say(&mut stream, &Control::JoinRequest(request.clone()), &[], LIMIT).await;
    said.map_err(|error| dial::greeting(error, address, OPERATION))?;
    match wire::read_frame(&mut stream, GREETING_MAX, ANSWER_LIMIT).await {
        Ok((Control::JoinReply(reply), _)) => Ok(reply),
        Ok((Control::Refuse { code, why }, _)) => Err(dial::refused(address, &code, &why)),
        Ok(_) => Err(LinkError::Garbage { from: address, why: "no answer to the join".into() }),
        Err(error) => Err(dial::greeting(error, address, OPERATION)),
    }
}
