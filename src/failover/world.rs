//! What the core's effects need from the outside, one method each.

use crate::base::{Epoch, Millis};
use crate::engine::{
    Durable, Event, Gate, LinkId, PeerMessage, Plan, StreamFacts, StreamRole, Token, Tombstone,
};
use std::future::Future;

/// The node around one decision core. Methods that return a future are complete when it is; the
/// others start something that reports back as an input.
pub trait World: Send + 'static {
    /// Writes the fencing record durably.
    fn persist(&mut self, record: Box<Durable>) -> impl Future<Output = Result<(), String>> + Send;
    /// Sends over the current control link; dropped when it is down.
    fn send(&mut self, message: &PeerMessage);
    /// Closes a control link; it is dialled again.
    fn close_link(&mut self, link: LinkId);
    /// Sets the gate of every mount; complete when nothing relies on the former gate.
    fn gate(&mut self, gate: Gate) -> impl Future<Output = ()> + Send;
    /// Opens our end of a data stream.
    fn open_stream(&mut self, role: StreamRole, epoch: Epoch, plan: Plan);
    /// Ends the data stream; afterwards no frame of it is applied or acknowledged.
    fn close_stream(&mut self) -> impl Future<Output = StreamFacts> + Send;
    /// Source: the marker behind which the standby is UpToDate.
    fn mark_up_to_date(&mut self, epoch: Epoch);
    /// Target: go on behind the marker.
    fn release_marker(&mut self, epoch: Epoch);
    /// Makes every volume durable.
    fn syncfs(&mut self, token: Token);
    /// Waits until all submitted operations are acknowledged.
    fn drain(&mut self, token: Token);
    /// Looks for the VIPs, the peer and the witness.
    fn start_probe(&mut self, token: Token, window: Millis);
    /// Holds the virtual addresses.
    fn add_vips(&mut self) -> impl Future<Output = ()> + Send;
    /// Drops the virtual addresses.
    fn drop_vips(&mut self) -> impl Future<Output = ()> + Send;
    /// Starts the services.
    fn start_services(&mut self);
    /// Stops the services.
    fn stop_services(&mut self);
    /// Records the directories as they are as the right ones, then reports them.
    fn accept_tree(&mut self);
    /// Makes the kernel forget what it caches of the mounts.
    fn invalidate_caches(&mut self) -> impl Future<Output = ()> + Send;
    /// What the guard says for us if we die. An error must stop what follows: a guard that still says
    /// "never acknowledged alone" for a node that goes alone would let the peer promote.
    fn set_tombstone(
        &mut self,
        tombstone: Option<Tombstone>,
    ) -> impl Future<Output = Result<(), String>> + Send;
    /// A fact for log and bus.
    fn event(&mut self, event: &Event);
}
