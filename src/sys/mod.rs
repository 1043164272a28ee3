//! System calls and packet formats: the only modules that may contain `unsafe`.

pub mod arp;
pub mod clock;
pub mod fdpass;
pub mod fusectl;
pub mod icmp;
pub mod netlink_raw;
pub mod packet;
pub mod process;
pub mod signal;
