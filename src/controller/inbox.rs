//! How triggers and requests reach the runtime: a set, so that it is bounded by the number of objects
//! and never blocks the one who triggers.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, oneshot};

/// Callers that may wait for convergence at once; each is a task of ours, so more is a defect.
const WAITERS_MAX: usize = 1024;

/// Answer to [`Handle::converge`]: the error as text.
pub(super) type Verdict = Result<(), String>;
pub(super) type Waiter<K> = (K, oneshot::Sender<Verdict>);

/// Triggers runs. Cloneable; outliving the runtime is harmless.
pub struct Handle<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Handle<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

/// The runtime's end.
pub struct Inbox<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    content: Mutex<Content<K>>,
    filled: Notify,
}

struct Content<K> {
    keys: BTreeSet<K>,
    waiters: Vec<Waiter<K>>,
    closed: bool,
}

/// A handle and the inbox to give to [`super::run`].
pub fn handle<K: Ord>() -> (Handle<K>, Inbox<K>) {
    let content = Content { keys: BTreeSet::new(), waiters: Vec::new(), closed: false };
    let shared = Arc::new(Shared { content: Mutex::new(content), filled: Notify::new() });
    (Handle { shared: shared.clone() }, Inbox { shared })
}

impl<K: Ord + Clone> Handle<K> {
    /// Asks for a run of `key`, now or after the one under way.
    pub fn trigger(&self, key: K) {
        self.shared.lock().keys.insert(key);
        self.shared.filled.notify_one();
    }

    /// Asks for a run and waits for the outcome of one that begins after this call.
    ///
    /// # Errors
    /// Why that run failed (it is tried again with back-off), or that the runtime has ended.
    ///
    /// # Cancel safety
    /// Dropping it gives up waiting; the run happens.
    pub async fn converge(&self, key: K) -> Result<(), String> {
        let (answer, outcome) = oneshot::channel();
        {
            let mut content = self.shared.lock();
            if content.closed {
                return Err("the controller has ended".into());
            }
            if content.waiters.len() >= WAITERS_MAX {
                return Err("too many callers wait for the controller".into());
            }
            content.keys.insert(key.clone());
            content.waiters.push((key, answer));
        }
        self.shared.filled.notify_one();
        outcome.await.unwrap_or_else(|_| Err("the controller has ended".into()))
    }
}

impl<K: Ord> Inbox<K> {
    /// Waits until something is there. Cancel safe.
    pub(super) async fn filled(&self) {
        self.shared.filled.notified().await;
    }

    pub(super) fn take(&self) -> (BTreeSet<K>, Vec<Waiter<K>>) {
        let mut content = self.shared.lock();
        (std::mem::take(&mut content.keys), std::mem::take(&mut content.waiters))
    }
}

impl<K> Drop for Inbox<K> {
    fn drop(&mut self) {
        let mut content = self.shared.lock();
        content.closed = true;
        content.waiters.clear();
    }
}

impl<K> Shared<K> {
    fn lock(&self) -> MutexGuard<'_, Content<K>> {
        // Nothing under this lock can leave it half changed.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
