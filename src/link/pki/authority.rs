//! Making and signing certificates (ECDSA P-256).

use super::certificate_name;
use crate::link::LinkError;
use crate::store::StateDir;
use data_encoding::HEXLOWER;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

pub(super) const CA_CERT: &str = "pki/ca.pem";
pub(super) const CA_KEY: &str = "pki/ca.key";
pub(super) const NODE_CERT: &str = "pki/node.pem";
pub(super) const NODE_KEY: &str = "pki/node.key";

/// Fingerprint of a certificate: BLAKE3 of its DER, hexadecimal.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    HEXLOWER.encode(blake3::hash(certificate.as_ref()).as_bytes())
}

fn failed(what: &'static str) -> impl Fn(rcgen::Error) -> LinkError {
    move |error| LinkError::Keys { what, why: error.to_string() }
}

/// Makes a key.
pub(super) fn generate_key() -> Result<KeyPair, LinkError> {
    KeyPair::generate().map_err(failed("new key"))
}

/// From 1970 to 4096: certificates live as long as their pair, and a machine whose clock battery is
/// empty must still reach its peer.
fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(1970, 1, 1);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

/// A certificate authority for one pair.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub(super) pem: String,
}

impl Authority {
    /// Makes one and writes it, key last: a key without certificate never exists.
    pub(super) fn create(state: &StateDir, pair: &str) -> Result<Self, LinkError> {
        let key = generate_key()?;
        let mut params = params(&format!("skc pair {pair}"));
        // Only leaf certificates below it.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let pem = params.self_signed(&key).map_err(failed("pair certificate"))?.pem();
        state.write_atomic(CA_CERT, pem.as_bytes())?;
        state.write_atomic(CA_KEY, Zeroizing::new(key.serialize_pem()).as_bytes())?;
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// The authority kept in a state directory.
    pub(super) fn load(state: &StateDir) -> Result<Self, LinkError> {
        let key = Zeroizing::new(state.read_small(CA_KEY)?.ok_or(LinkError::NoAuthority)?);
        let pem = state.read_small(CA_CERT)?.ok_or(LinkError::NoAuthority)?;
        let text = |bytes: &[u8], what| {
            String::from_utf8(bytes.to_vec()).map_err(|_| LinkError::Keys { what, why: "not UTF-8".into() })
        };
        let pem = text(&pem, CA_CERT)?;
        let key = KeyPair::from_pem(&Zeroizing::new(text(&key, CA_KEY)?)).map_err(failed(CA_KEY))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(failed(CA_CERT))?;
        Ok(Self { issuer, pem })
    }

    /// Signs the key of a request. Nothing else of the request is taken over: name and usages are
    /// ours to give.
    pub(super) fn sign(
        &self,
        request: &[u8],
        node: &str,
        pair: &str,
    ) -> Result<rcgen::Certificate, LinkError> {
        let mut request = CertificateSigningRequestParams::from_der(&request.into())
            .map_err(failed("certificate request"))?;
        let name = certificate_name(node, pair);
        let mut params = params(node);
        params.subject_alt_names =
            vec![SanType::DnsName(name.try_into().map_err(failed("name in the certificate"))?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        request.params = params;
        request.signed_by(&self.issuer).map_err(failed("node certificate"))
    }
}

/// A request that proves possession of `key`.
pub(super) fn signing_request(key: &KeyPair, node: &str) -> Result<Vec<u8>, LinkError> {
    let request = params(node).serialize_request(key).map_err(failed("certificate request"))?;
    Ok(request.der().to_vec())
}
