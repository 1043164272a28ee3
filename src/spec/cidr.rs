//! An address with its prefix length: "10.0.1.100/24", "fd00::100/64".

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A host address within its network. The prefix is always within the family's range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    ip: IpAddr,
    prefix: u8,
}

/// Why an address with prefix was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// There is no "/".
    #[error("{0:?} has no prefix length; write it like 10.0.1.100/24")]
    NoPrefix(String),
    /// The part before "/" is no IPv4 or IPv6 address.
    #[error("{0:?} is no IP address")]
    NoAddress(String),
    /// The part after "/" is no number of the family's range.
    #[error("prefix length {prefix:?} is not within 1 to {max}")]
    PrefixRange {
        /// What was read.
        prefix: String,
        /// 32 or 128.
        max: u8,
    },
}

impl Cidr {
    /// An address and a prefix length of 1 to 32 (IPv4) or 1 to 128 (IPv6).
    pub fn new(ip: IpAddr, prefix: u8) -> Result<Self, CidrError> {
        let max = if ip.is_ipv4() { 32 } else { 128 };
        if (1..=max).contains(&prefix) {
            Ok(Self { ip, prefix })
        } else {
            Err(CidrError::PrefixRange { prefix: prefix.to_string(), max })
        }
    }

    /// The host address.
    pub const fn ip(self) -> IpAddr {
        self.ip
    }

    /// The prefix length in bits.
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether `ip` lies in this network.
    pub fn contains(self, ip: IpAddr) -> bool {
        match (self.ip, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(self.prefix)
            }
            _ => false,
        }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (ip, prefix) = text.split_once('/').ok_or_else(|| CidrError::NoPrefix(text.to_owned()))?;
        let ip: IpAddr = ip.parse().map_err(|_| CidrError::NoAddress(ip.to_owned()))?;
        let bits = prefix.parse::<u8>().ok().filter(|_| prefix.bytes().all(|b| b.is_ascii_digit()));
        match bits {
            Some(bits) => Self::new(ip, bits),
            None => Err(CidrError::PrefixRange {
                prefix: prefix.to_owned(),
                max: if ip.is_ipv4() { 32 } else { 128 },
            }),
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;
    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(value: Cidr) -> Self {
        value.to_string()
    }
}

impl JsonSchema for Cidr {
    fn schema_name() -> Cow<'static, str> {
        "AddressWithPrefix".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string", "pattern": "^[0-9A-Fa-f.:]+/[0-9]{1,3}$", "format": "skc-cidr",
            "description": "An IPv4 or IPv6 address with its prefix length: 10.0.1.100/24."
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_read_back_as_printed() {
        for text in ["10.0.1.100/24", "10.0.1.1/32", "fd00::100/64", "::1/128"] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn prefixes_out_of_range_are_refused() {
        for text in ["10.0.1.1", "10.0.1.1/0", "10.0.1.1/33", "fd00::1/129", "10.0.1/24", "10.0.1.1/+8", "a/"]
        {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn membership_is_by_prefix_and_family() {
        let net: Cidr = "10.0.1.100/24".parse().unwrap();
        assert!(net.contains("10.0.1.254".parse().unwrap()));
        assert!(!net.contains("10.0.2.1".parse().unwrap()));
        assert!(!net.contains("fd00::1".parse().unwrap()));
    }
}
