//! TLS 1.3 with ring, both sides authenticated by the pair's authority, and who was met.

use super::pki::{Identity, Node, certificate_name, fingerprint};
use super::{LinkError, pki::token::Token};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore,
    ServerConfig, SignatureScheme,
};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

/// Control connection.
pub(super) const ALPN_PEER: &[u8] = b"skc-peer/1";
/// Data connection.
pub(super) const ALPN_DATA: &[u8] = b"skc-data/1";
/// Enrolment: no client certificate yet.
pub(super) const ALPN_JOIN: &[u8] = b"skc-join/1";

/// ring, TLS 1.3 only; AES-128 first: at equal safety for our purpose the cheapest per byte on
/// every CPU with AES instructions.
fn provider() -> Arc<CryptoProvider> {
    use ring::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    let cipher_suites =
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    Arc::new(CryptoProvider { cipher_suites, ..ring::default_provider() })
}

fn unusable(error: impl std::fmt::Display) -> LinkError {
    LinkError::Keys { what: "keys of this node", why: error.to_string() }
}

fn roots(authority: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, LinkError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).map_err(unusable)?;
    Ok(Arc::new(roots))
}

/// The server's configurations: for members of the pair, and for a node that joins.
#[derive(Clone)]
pub(super) struct ServerConfigs {
    pub(super) peer: Arc<ServerConfig>,
    pub(super) join: Arc<ServerConfig>,
}

impl ServerConfigs {
    pub(super) fn new(identity: &Identity) -> Result<Self, LinkError> {
        let chain = vec![identity.certificate().clone(), identity.authority().clone()];
        let versions = || {
            ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .map_err(unusable)
        };
        let clients = WebPkiClientVerifier::builder_with_provider(roots(identity.authority())?, provider())
            .build()
            .map_err(unusable)?;
        let mut peer = versions()?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), identity.key())
            .map_err(unusable)?;
        peer.alpn_protocols = vec![ALPN_PEER.to_vec(), ALPN_DATA.to_vec()];
        // Sessions are never resumed: a connection is long, and who was enrolled is checked anew.
        peer.send_tls13_tickets = 0;
        let mut join =
            versions()?.with_no_client_auth().with_single_cert(chain, identity.key()).map_err(unusable)?;
        join.alpn_protocols = vec![ALPN_JOIN.to_vec()];
        join.send_tls13_tickets = 0;
        Ok(Self { peer: Arc::new(peer), join: Arc::new(join) })
    }
}

/// Configuration to dial the peer with.
pub(super) fn client(identity: &Identity, alpn: &[u8]) -> Result<Arc<ClientConfig>, LinkError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_root_certificates(roots(identity.authority())?)
        .with_client_auth_cert(vec![identity.certificate().clone()], identity.key())
        .map_err(unusable)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Configuration to join with: trusts the authority whose fingerprint the token carries.
pub(super) fn joining(token: &Token) -> Result<Arc<ClientConfig>, LinkError> {
    let verifier = PinnedAuthority { fingerprint: token.authority.clone(), provider: provider() };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Name to verify in the certificate of a node.
pub(super) fn server_name(node: &str, pair: &str) -> Result<ServerName<'static>, LinkError> {
    ServerName::try_from(certificate_name(node, pair)).map_err(unusable)
}

/// Is the certificate at the other end the one enrolled for the peer? The chain was verified by
/// the handshake.
pub(super) fn check_peer(
    identity: &Identity,
    peer: &Node,
    chain: Option<&[CertificateDer<'_>]>,
    from: SocketAddr,
) -> Result<(), LinkError> {
    let wrong = || LinkError::WrongNode { from, peer: peer.name.clone() };
    let leaf = chain.and_then(<[_]>::first).ok_or_else(wrong)?;
    let parsed = rustls::server::ParsedCertificate::try_from(leaf).map_err(|_| wrong())?;
    rustls::client::verify_server_name(&parsed, &server_name(&peer.name, identity.pair_id())?)
        .map_err(|_| wrong())?;
    if fingerprint(leaf) == peer.certificate { Ok(()) } else { Err(wrong()) }
}

/// Sorts an error of a handshake or of the first read after it.
pub(super) fn sort(error: io::Error, from: SocketAddr, operation: &'static str) -> LinkError {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return LinkError::Io { operation, with: from, source: error };
    };
    match tls {
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => LinkError::WrongNode { from, peer: "the peer".into() },
        Error::InvalidCertificate(_) | Error::NoCertificatesPresented => {
            LinkError::Certificate { from, why: tls.to_string() }
        }
        Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::DecryptError,
        ) => LinkError::Certificate { from, why: format!("it does not accept ours ({tls})") },
        _ => LinkError::Garbage { from, why: tls.to_string() },
    }
}

/// Trusts whatever the authority with this fingerprint signed, if the server sends that authority.
#[derive(Debug)]
struct PinnedAuthority {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| fingerprint(certificate) == self.fingerprint)
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
