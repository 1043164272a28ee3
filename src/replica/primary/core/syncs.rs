//! Syncs whose callers wait: for this node's disk, and for the standby's where the mode asks for it.

use super::{Core, Outcome, Submitted};
use crate::base::Volume;
use crate::ports::{Errno, Gate, PendingReply};
use crate::proto::FileId;
use std::time::{Duration, Instant};

/// An fsync that waits for both halves.
pub(super) struct SyncWait {
    pub(super) volume: Volume,
    /// `None`: the whole volume.
    pub(super) id: Option<FileId>,
    pub(super) reply: PendingReply,
    pub(super) local: Option<Result<(), Errno>>,
    pub(super) remote: bool,
    /// Frame whose `SyncAck` is the remote half; later than the operation's own if it was asked again.
    pub(super) remote_seq: u64,
    /// When the remote half was last asked for.
    pub(super) since: Instant,
}

/// Names a wait for as long as this process runs: positions can come again when the numbering is
/// adopted from a peer, and a late disk must not answer somebody else's fsync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::replica::primary) struct SyncKey(u64);

impl Core {
    /// Waits for both halves of a sync; for the local one only where the answer is `Early`.
    pub fn expect_sync(
        &mut self,
        at: &Submitted,
        volume: Volume,
        id: Option<FileId>,
        reply: PendingReply,
    ) -> SyncKey {
        let key = SyncKey(self.next_sync);
        self.next_sync += 1;
        let (remote_seq, remote) = match at {
            Submitted::At(seq) => (*seq, false),
            Submitted::Early(seq) => (*seq, true),
            Submitted::Skipped => (0, true),
        };
        let since = Instant::now();
        let wait = SyncWait { volume, id, reply, local: None, remote, remote_seq, since };
        self.syncs.insert(key, wait);
        key
    }

    /// How long the oldest remote half of a sync is outstanding on this connection.
    pub fn oldest_remote_sync(&self) -> Option<Duration> {
        self.syncs.values().filter(|w| !w.remote).map(|w| w.since.elapsed()).max()
    }

    fn sync_done(&mut self, key: SyncKey, out: &mut Outcome) {
        let Some(wait) = self.syncs.get(&key) else { return };
        let Some(local) = wait.local else { return };
        // A local failure is final at once: the application must see it.
        let ready = local.is_err() || wait.remote || matches!(self.rule, Gate::Alone(_));
        if !ready {
            return;
        }
        let Some(wait) = self.syncs.remove(&key) else { return };
        match (local, self.rule) {
            (Err(errno), _) => out.err.push((wait.reply, errno)),
            (Ok(()), Gate::Replicated(_) | Gate::Alone(_)) => out.ok.push(wait.reply),
            (Ok(()), _) => self.held.push(wait.reply),
        }
    }

    pub(super) fn settle_syncs(&mut self, out: &mut Outcome) {
        let keys: Vec<SyncKey> = self.syncs.keys().copied().collect();
        for key in keys {
            self.sync_done(key, out);
        }
    }

    /// The local half of a sync ended.
    pub fn sync_local(&mut self, key: SyncKey, result: Result<(), Errno>, out: &mut Outcome) {
        if let Some(wait) = self.syncs.get_mut(&key) {
            wait.local = Some(result);
            self.sync_done(key, out);
        }
    }

    /// The standby's half of a sync is durable.
    pub fn sync_remote(&mut self, seq: u64, out: &mut Outcome) {
        if self.early.sync_ended(seq) {
            return;
        }
        if !self.conn.as_ref().is_some_and(|c| c.eligible) {
            return;
        }
        let found = self.syncs.iter_mut().find(|(_, w)| w.remote_seq == seq && !w.remote);
        if let Some((key, wait)) = found {
            let key = *key;
            wait.remote = true;
            self.sync_done(key, out);
        }
    }
}
