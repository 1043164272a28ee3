//! System calls and packet formats: the only modules that may contain `unsafe`.

pub mod arp;
pub mod clock;
pub mod icmp;
pub mod namespace;
pub mod packet;
pub mod signal;
