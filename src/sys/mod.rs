//! System calls and packet formats: the only modules that may contain `unsafe`.

pub mod arp;
pub mod backing;
pub mod clock;
pub mod creds;
pub mod errno;
pub mod fdpass;
pub mod file;
pub mod fusectl;
pub mod hangup;
pub mod icmp;
pub mod inspect;
pub mod mount;
pub mod namespace;
pub mod netlink_raw;
pub mod packet;
pub mod process;
pub mod readable;
pub mod resources;
pub mod signal;
pub mod tap;
pub mod wake;
