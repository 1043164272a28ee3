//! One-time tokens that invite the second node.
//!
//! The text carries everything the joining node needs to reach and to recognise the first one, and
//! a secret. The first node keeps only the secret's hash and an expiry by its own clock; using the
//! token removes that file, which succeeds once.

use super::authority::fingerprint;
use super::{ADDRESSES_MAX, Identity};
use crate::link::LinkError;
use crate::store::{StateDir, StoreError};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use zeroize::Zeroizing;

/// How long a token is valid: long enough to walk to the other machine.
pub const LIFETIME: Duration = Duration::from_secs(3600);

const PREFIX: &str = "skc1.";
const FOLDER: &str = "pki/tokens";
const SECRET_LENGTH: usize = 32;
/// Unexpired tokens at a time: more are a mistake or a script gone wild.
const OUTSTANDING_MAX: usize = 16;
/// Longest text accepted: 8 IPv6 addresses and a 63-byte name fit three times.
const TEXT_MAX: usize = 1024;

/// An invitation. Its text form is secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Name of the node that made it.
    pub node: String,
    /// Its pair.
    pub pair: String,
    /// Where it listens.
    pub addresses: Vec<IpAddr>,
    /// On which port.
    pub port: u16,
    /// Fingerprint of the pair's authority.
    pub authority: String,
    #[serde(with = "serde_bytes")]
    secret: Vec<u8>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("node", &self.node).field("pair", &self.pair).finish_non_exhaustive()
    }
}

/// What is kept of a token.
#[derive(Serialize, Deserialize)]
struct Record {
    hash: String,
    expires: u64,
}

impl Token {
    /// The text to hand to the other node.
    ///
    /// # Errors
    /// None in practice: the fields always encode.
    pub fn encode(&self) -> Result<String, LinkError> {
        let mut bytes = Zeroizing::new(
            rmp_serde::to_vec(self).map_err(|e| LinkError::Keys { what: "token", why: e.to_string() })?,
        );
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        Ok(format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes)))
    }

    /// Reads a token's text.
    ///
    /// # Errors
    /// [`LinkError::TokenSyntax`]: mistyped, cut, or of another program.
    pub fn decode(text: &str) -> Result<Self, LinkError> {
        let text = text.trim();
        if text.len() > TEXT_MAX {
            return Err(LinkError::TokenSyntax("it is too long"));
        }
        let body = text.strip_prefix(PREFIX).ok_or(LinkError::TokenSyntax("it must begin with skc1."))?;
        let bytes = Zeroizing::new(
            BASE64URL_NOPAD
                .decode(body.as_bytes())
                .map_err(|_| LinkError::TokenSyntax("a character is wrong or missing"))?,
        );
        let (bytes, crc) = bytes.split_last_chunk::<4>().ok_or(LinkError::TokenSyntax("it is too short"))?;
        if crc32c::crc32c(bytes) != u32::from_le_bytes(*crc) {
            return Err(LinkError::TokenSyntax("its checksum is wrong: a part is missing or changed"));
        }
        let token: Self =
            rmp_serde::from_slice(bytes).map_err(|_| LinkError::TokenSyntax("it is of another release"))?;
        let sane =
            (1..=ADDRESSES_MAX).contains(&token.addresses.len()) && token.secret.len() == SECRET_LENGTH;
        if sane { Ok(token) } else { Err(LinkError::TokenSyntax("it is of another release")) }
    }

    /// The secret, for the join request.
    pub(crate) fn secret(&self) -> &[u8] {
        &self.secret
    }
}

fn folder(state: &StateDir) -> PathBuf {
    state.path(FOLDER)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Makes a token that is valid for `lifetime` and remembers its hash.
///
/// # Errors
/// This node holds no authority; I/O; too many outstanding tokens.
pub fn issue(identity: &Identity, lifetime: Duration) -> Result<Token, LinkError> {
    let state = identity.state();
    if state.read_small(super::authority::CA_KEY)?.is_none() {
        return Err(LinkError::NoAuthority);
    }
    state.make_dir(FOLDER)?;
    if prune(state)? >= OUTSTANDING_MAX {
        return Err(LinkError::Keys {
            what: "tokens",
            why: format!("{OUTSTANDING_MAX} are outstanding; wait an hour or remove {FOLDER}"),
        });
    }
    let secret = super::random::<SECRET_LENGTH>()?.to_vec();
    let hash = HEXLOWER.encode(blake3::hash(&secret).as_bytes());
    let record = Record { hash: hash.clone(), expires: now().saturating_add(lifetime.as_secs()) };
    let json = serde_json::to_vec(&record)
        .map_err(|error| LinkError::Keys { what: "token", why: error.to_string() })?;
    state.write_atomic(format!("{FOLDER}/{hash}.json"), &json)?;
    Ok(Token {
        node: identity.me().name.clone(),
        pair: identity.pair_id().to_owned(),
        addresses: identity.me().addresses.clone(),
        port: identity.me().port,
        authority: fingerprint(identity.authority()),
        secret,
    })
}

/// Is this the secret of a token that may still be used?
pub(super) fn verify(state: &StateDir, secret: &[u8]) -> Result<(), LinkError> {
    // The file is found by the secret's hash: nothing about the secret can be learned by timing.
    let name = record_name(secret);
    let bytes = state.read_small(&name)?.ok_or(LinkError::TokenUsed)?;
    let record: Record = serde_json::from_slice(&bytes).map_err(|_| LinkError::TokenUsed)?;
    if now() >= record.expires { Err(LinkError::TokenExpired) } else { Ok(()) }
}

/// Uses the token up; succeeds once.
pub(super) fn consume(state: &StateDir, secret: &[u8]) -> Result<(), LinkError> {
    let path = state.path(record_name(secret));
    std::fs::remove_file(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => LinkError::TokenUsed,
        _ => StoreError::io("remove", &path)(error).into(),
    })?;
    // Durable before anything is signed: a power cut must not make the token valid again.
    Ok(crate::store::state::sync_dir(&folder(state))?)
}

fn record_name(secret: &[u8]) -> String {
    format!("{FOLDER}/{}.json", HEXLOWER.encode(blake3::hash(secret).as_bytes()))
}

/// Removes expired records (kept for a day, so that their use is answered with "expired"), and
/// counts the valid ones.
fn prune(state: &StateDir) -> Result<usize, LinkError> {
    const REMEMBERED: u64 = 24 * 3600;
    let folder = folder(state);
    let mut valid = 0;
    for entry in std::fs::read_dir(&folder).map_err(StoreError::io("read directory", &folder))? {
        let path = entry.map_err(StoreError::io("read directory", &folder))?.path();
        let expires = std::fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok())
            .map_or(0, |record| record.expires);
        if expires.saturating_add(REMEMBERED) < now() {
            let _ = std::fs::remove_file(&path);
        } else if expires > now() {
            valid += 1;
        }
    }
    Ok(valid)
}
