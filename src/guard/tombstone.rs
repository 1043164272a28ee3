//! The tombstone: "my worker is gone and never acknowledged alone", made and signed by the worker in good times,
//! sent by the guard when no worker comes back.

use super::message::Datagram;
use crate::base::{Millis, Mono};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use tracing::{error, warn};

/// Datagrams get lost; the receiver takes the first and ignores the rest.
const SHOTS: u32 = 5;
/// Time between two shots: all are out within a second.
const SHOT_EVERY: Millis = 200;

#[derive(Debug, Default)]
pub(super) struct Tombstone {
    datagrams: Vec<Datagram>,
    /// Sent at least once, as far as we know: the peer may act on it.
    pub(super) sent: bool,
    /// Shots left and when the next is due.
    shooting: Option<(u32, Mono)>,
}

impl Tombstone {
    /// Replaces it; says whether the old one was sent.
    pub(super) fn set(&mut self, datagrams: Vec<Datagram>) -> bool {
        let sent = self.sent;
        *self = Self { datagrams, sent: false, shooting: None };
        sent
    }

    /// Is there something to send that has not been sent?
    pub(super) fn is_due(&self) -> bool {
        !self.datagrams.is_empty() && !self.sent && self.shooting.is_none()
    }

    /// Starts sending; the first shot goes with the next tick.
    pub(super) fn shoot(&mut self, now: Mono) {
        // Before the first datagram: should we die in between, nobody is told less than the truth.
        self.sent = true;
        self.shooting = Some((SHOTS, now));
    }

    pub(super) fn is_shooting(&self) -> bool {
        self.shooting.is_some()
    }

    pub(super) fn deadline(&self) -> Option<Mono> {
        self.shooting.map(|(_, at)| at)
    }

    pub(super) fn tick(&mut self, now: Mono) {
        let Some((left, at)) = self.shooting else { return };
        if now < at {
            return;
        }
        self.fire();
        self.shooting = (left > 1).then(|| (left - 1, now + SHOT_EVERY));
    }

    fn fire(&self) {
        let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
        let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0));
        for socket in [&v4, &v6].into_iter().flatten() {
            if let Err(error) = socket.set_nonblocking(true) {
                warn!(%error, "tombstone socket");
            }
        }
        let mut delivered = 0;
        for datagram in &self.datagrams {
            for to in &datagram.to {
                let socket = if to.is_ipv4() { &v4 } else { &v6 };
                let result = match socket {
                    Ok(socket) => socket.send_to(&datagram.bytes, to).map(|_| ()),
                    Err(error) => Err(std::io::Error::from(error.kind())),
                };
                match result {
                    Ok(()) => delivered += 1,
                    Err(error) => warn!(%to, %error, "cannot send the tombstone on this path"),
                }
            }
        }
        if delivered == 0 {
            error!("the tombstone left on no path: the peer will not take over by itself");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_sent_once_in_five_shots_and_the_next_setter_is_told() {
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        receiver.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        let to = vec![receiver.local_addr().unwrap()];
        let mut tombstone = Tombstone::default();
        assert!(!tombstone.is_due());
        assert!(!tombstone.set(vec![Datagram { bytes: b"gone".to_vec(), to: to.clone() }]));
        assert!(tombstone.is_due());
        tombstone.shoot(Mono(1000));
        assert!(!tombstone.is_due());
        let mut shots = 0;
        while let Some(at) = tombstone.deadline() {
            tombstone.tick(at);
            shots += 1;
        }
        assert_eq!(shots, SHOTS);
        let mut buffer = [0; 16];
        for _ in 0..SHOTS {
            let (len, _) = receiver.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], b"gone");
        }
        assert!(tombstone.set(vec![]), "whoever replaces it learns that it was sent");
        assert!(!tombstone.set(vec![]));
    }
}
