//! System calls and packet formats: the only modules that may contain `unsafe`.

pub mod arp;
pub mod backing;
pub mod clock;
pub mod creds;
pub mod errno;
pub mod file;
pub mod icmp;
pub mod inspect;
pub mod namespace;
pub mod packet;
pub mod readable;
pub mod signal;
