//! Drops frames inside the switch: one nf_tables table of family `bridge`, replaced as a whole.
//!
//! Why this: it drops exactly one direction between two ports, for unicast and broadcast alike,
//! without touching a node. Traffic control classifiers, `ebtables` and the `nft` program are
//! missing on many small machines, so the messages (linux/netfilter/nf_tables.h) are built here.
//! With no rules there is no table and no cost.

use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

const AF_NETLINK: i32 = 16;
const NETLINK_NETFILTER: i32 = 12;
/// NFPROTO_BRIDGE
const FAMILY: u8 = 7;
/// NF_BR_FORWARD: frames passing from one port to another.
const HOOK_FORWARD: u32 = 2;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLMSG_ERROR: u16 = 2;
const NESTED: u16 = 0x8000;
const TABLE: &[u8] = b"skc-lab\0";
const CHAIN: &[u8] = b"forward\0";
/// Longest wait for the kernel's answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Frames that enter at `from` and leave at `to` are dropped; `None` = any port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drop {
    /// Name of the port where the frame enters the switch.
    pub from: Option<String>,
    /// Name of the port where it would leave.
    pub to: Option<String>,
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 8);
    out.extend(((value.len() + 4) as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn nest(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NESTED, &parts.concat())
}

fn expression(name: &[u8], data: &[Vec<u8>]) -> Vec<u8> {
    nest(1, &[attribute(1, name), nest(2, data)])
}

/// Loads the name of a port (meta key) into register 1 and compares it.
fn port_is(key: u32, name: &str) -> [Vec<u8>; 2] {
    let mut padded = [0; 16];
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    [
        expression(b"meta\0", &[number(1, 1), number(2, key)]),
        expression(b"cmp\0", &[number(1, 1), number(2, 0), nest(3, &[attribute(1, &padded)])]),
    ]
}

fn rule(drop: &Drop) -> Vec<u8> {
    const IIFNAME: u32 = 6;
    const OIFNAME: u32 = 7;
    let mut expressions = Vec::new();
    if let Some(from) = &drop.from {
        expressions.extend(port_is(IIFNAME, from));
    }
    if let Some(to) = &drop.to {
        expressions.extend(port_is(OIFNAME, to));
    }
    // Verdict register 0, code NF_DROP = 0.
    let verdict = nest(2, &[nest(2, &[number(1, 0)])]);
    expressions.push(expression(b"immediate\0", &[number(1, 0), verdict]));
    [attribute(1, TABLE), attribute(2, CHAIN), nest(4, &expressions)].concat()
}

struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
}

impl Batch {
    fn push(&mut self, kind: u16, flags: u16, family: u8, resource: u16, body: &[u8]) {
        let length = 20 + body.len() as u32;
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(body);
        self.sequence += 1;
    }

    fn table(&mut self, message: u16, flags: u16, body: &[u8]) {
        self.push((NFNL_SUBSYS_NFTABLES << 8) | message, flags, FAMILY, 0, body);
    }
}

/// The whole transaction: the old table goes, the new one comes, in one step.
fn transaction(drops: &[Drop]) -> (Vec<u8>, u32) {
    let mut batch = Batch { bytes: Vec::new(), sequence: 1 };
    batch.push(NFNL_MSG_BATCH_BEGIN, 0, 0, NFNL_SUBSYS_NFTABLES, &[]);
    let table = attribute(1, TABLE);
    // Creating what may exist makes the deletion succeed in every case.
    batch.table(NFT_MSG_NEWTABLE, NLM_F_CREATE, &table);
    batch.table(NFT_MSG_DELTABLE, NLM_F_ACK, &table);
    let mut last = batch.sequence - 1;
    if !drops.is_empty() {
        batch.table(NFT_MSG_NEWTABLE, NLM_F_CREATE, &table);
        let hook = nest(4, &[number(1, HOOK_FORWARD), number(2, 0)]);
        let chain = [attribute(1, TABLE), attribute(3, CHAIN), hook, attribute(7, b"filter\0")].concat();
        batch.table(NFT_MSG_NEWCHAIN, NLM_F_CREATE, &chain);
        for drop in drops {
            batch.table(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND | NLM_F_ACK, &rule(drop));
        }
        last = batch.sequence - 1;
    }
    batch.push(NFNL_MSG_BATCH_END, 0, 0, NFNL_SUBSYS_NFTABLES, &[]);
    (batch.bytes, last)
}

/// Replaces all rules of the switch whose network namespace is at `netns`.
pub fn replace(netns: &Path, drops: &[Drop]) -> io::Result<()> {
    let (bytes, last) = transaction(drops);
    std::thread::scope(|scope| {
        // The namespace is a property of the thread; this one ends with the call.
        let worker = scope.spawn(|| {
            crate::sys::namespace::join_net(netns)?;
            exchange(&bytes, last)
        });
        worker.join().unwrap_or_else(|_| Err(io::Error::other("the netlink thread panicked")))
    })
}

fn exchange(bytes: &[u8], last: u32) -> io::Result<()> {
    let raw = Type::from(libc::SOCK_RAW);
    let mut socket = Socket::new(Domain::from(AF_NETLINK), raw, Some(Protocol::from(NETLINK_NETFILTER)))?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.send(bytes)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = socket.read(&mut buffer)?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((sequence, code, next)) = answer(rest) {
            if code != 0 {
                return Err(io::Error::from_raw_os_error(-code));
            }
            if sequence == last {
                return Ok(());
            }
            rest = next;
        }
    }
}

/// One error or acknowledgement message: (sequence, code, what follows).
fn answer(bytes: &[u8]) -> Option<(u32, i32, &[u8])> {
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let length = word(0)? as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let code = if kind == NLMSG_ERROR { word(16)? as i32 } else { 0 };
    let next = bytes.get(length.max(16).next_multiple_of(4)..).unwrap_or_default();
    Some((word(8)?, code, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_count_without_padding() {
        assert_eq!(attribute(3, b"abc"), [7u8, 0, 3, 0, b'a', b'b', b'c', 0]);
    }

    #[test]
    fn an_answer_that_is_cut_short_is_no_answer() {
        assert!(answer(&[36, 0, 0, 0, 2, 0]).is_none());
        assert!(answer(&[]).is_none());
    }
}
