//! Carrying one action out: the transition from one state of the world to the next.

use super::{Action, BOTH, Frame, Net, World, ix};
use skc::engine::{Input, LinkId, OperatorCommand, StreamLoss, Ticket, TreeState};

impl World {
    /// Carries one action out.
    pub fn act(&mut self, action: Action) {
        match action {
            Action::Exec(n) => {
                if let Some(effect) = self.node_mut(n).queue.pop_front() {
                    self.execute(n, effect);
                    self.run_invisible(n);
                }
            }
            Action::Feed(n) => {
                if let Some(input) = self.node_mut(n).inbox.pop_front() {
                    self.input(n, input);
                }
            }
            Action::Deliver(n) => {
                if let Some(message) = self.conn.to[ix(n)].pop_front() {
                    let link = LinkId(self.conn.id);
                    self.input(n, Input::Peer { link, message });
                }
            }
            Action::LinkNotice(n) => {
                let link = LinkId(self.conn.id);
                self.drop_link(n);
                self.input(n, Input::LinkDown { link });
            }
            Action::Connect => self.connect(),
            Action::Apply(n) => self.apply(n),
            Action::AckIn(n) => self.ack_in(n),
            Action::Fill(n) => {
                let node = self.node_mut(n);
                let (seq, tree) = (node.seq, node.cache);
                if let Some(stream) = &mut node.stream {
                    stream.fill_due = false;
                    let epoch = stream.epoch;
                    self.send_frame(n, epoch, Frame::Fill { seq, tree });
                }
            }
            Action::SyncDone(n) => {
                let node = self.node_mut(n);
                let (token, tree) = node.syncs.remove(0);
                node.sync_age = 0;
                // What was in the tree at the call and still is; what left the tree since may be gone on disk too.
                node.durable = (node.durable | tree) & node.cache;
                self.input(n, Input::Synced { token, ok: true });
            }
            Action::DrainDone(n) => {
                if let Some(token) = self.node_mut(n).drain.take() {
                    let epoch = self.node(n).stream.as_ref().map(|s| s.epoch);
                    let target = self.node(n.peer()).stream.as_ref().map(|s| s.epoch);
                    if epoch.is_some() && epoch == target && self.nodes[0].cache != self.nodes[1].cache {
                        self.fail("drained, but the trees differ");
                    }
                    self.input(n, Input::Drained { token });
                }
            }
            Action::ProbeSeen(n) => {
                if let Some((token, _, _)) = self.node_mut(n).probe.take() {
                    let result = self.probe_result(n, true);
                    self.input(n, Input::Probe { token, result });
                }
            }
            Action::Advance(n) => self.advance(n),
            Action::Write(n) => self.write(n),
            Action::Cut => {
                self.budget.cuts -= 1;
                self.sever(Net::Cut);
            }
            Action::Isolate(n) => {
                self.budget.isolations[ix(n)] -= 1;
                self.sever(Net::Isolated(n));
            }
            Action::OneWay(n) => {
                self.budget.one_way[ix(n)] -= 1;
                self.net = Net::OneWay(n);
            }
            Action::Heal => self.net = Net::Ok,
            Action::Power(n, kept) => {
                self.budget.power[ix(n)] -= 1;
                self.power(n, kept);
            }
            Action::PowerOn(n) => {
                let node = self.node_mut(n);
                node.powered = true;
                node.boots += 1;
                self.start_worker(n);
            }
            Action::AgentDies(n) => {
                self.budget.agent[ix(n)] -= 1;
                self.agent_dies(n);
            }
            Action::AgentStarts(n) => self.start_worker(n),
            Action::Tombstone(n) => {
                self.budget.tombstones -= 1;
                if let Some(tombstone) = self.node(n).tombstone {
                    self.input(n.peer(), Input::Tombstone(tombstone));
                }
            }
            Action::Swap => {
                self.budget.swaps -= 1;
                let now = self.now;
                let primary = BOTH
                    .into_iter()
                    .find(|n| self.node(*n).core.as_ref().is_some_and(|c| c.view(now).standby_ready));
                if let Some(n) = primary {
                    self.input(n, Input::Operator { ticket: Ticket(1), command: OperatorCommand::Swap });
                }
            }
            Action::Stop(n) => {
                self.budget.stops[ix(n)] -= 1;
                self.input(n, Input::Operator { ticket: Ticket(2), command: OperatorCommand::Stop });
            }
            Action::Start(n) => {
                self.input(n, Input::Operator { ticket: Ticket(3), command: OperatorCommand::Start });
            }
            Action::CameBack(n) => {
                self.agent_dies(n);
                let node = self.node_mut(n);
                node.durable = node.cache;
                node.boots += 1;
                self.start_worker(n);
            }
            Action::Reboot(n) => {
                self.budget.reboots[ix(n)] -= 1;
                self.input(n, Input::Shutdown { ticket: Ticket(4) });
            }
            Action::ApplyError(n) => {
                self.budget.apply_errors -= 1;
                if let Some(s) = self.node(n).stream.as_ref().map(|s| s.epoch.s) {
                    let why = StreamLoss::Apply { errno: 28 };
                    self.input(n, Input::StreamDown { s, why });
                }
            }
            Action::PersistError(n) => {
                self.budget.persist_errors -= 1;
                self.node_mut(n).queue.clear();
                self.input(n, Input::PersistFailed);
            }
            Action::DiskSick(n) => {
                self.budget.sick[ix(n)] -= 1;
                self.node_mut(n).sick = true;
                self.input(n, Input::LocalTree(TreeState::DiskHangs));
            }
            Action::DiskWell(n) => {
                let node = self.node_mut(n);
                node.sick = false;
                node.sync_age = 0;
                let empty = node.cache == 0 && node.disk.is_none();
                self.input(n, Input::LocalTree(TreeState::Ok { empty, stamp_ok: true }));
            }
        }
    }
}
