//! The end of a run: does the pair come up again once the faults stop, and how does a state read in a report?

use super::{Action, Budget, Net, Node, World};

impl World {
    // ---- no dead end ----

    /// PRIM with an UpToDate standby, nothing open.
    pub fn is_ready(&self) -> bool {
        let views: Vec<_> =
            self.nodes.iter().filter_map(|n| n.core.as_ref()).map(|c| c.view(self.now)).collect();
        views.len() == 2
            && views.iter().filter(|v| v.standby_ready && v.serving).count() == 1
            && views.iter().filter(|v| v.role == skc::engine::Role::Second).count() == 1
    }

    /// Faults stop, machines return, the network heals, operators do nothing but start what they
    /// stopped: runs on fairly. True if the pair is ready within `steps`, or says what it waits for.
    pub fn settle_down(&mut self, steps: usize) -> bool {
        self.budget = Budget::default();
        self.net = Net::Ok;
        let mut actions = Vec::new();
        for step in 0..steps {
            actions.clear();
            self.actions(&mut actions);
            let useful = actions.iter().copied().filter(|a| !matches!(a, Action::Write(_)));
            let useful: Vec<Action> = useful.collect();
            let quiet = useful.iter().all(|a| matches!(a, Action::Advance(_)));
            if quiet && (self.is_ready() || (step > steps / 2 && self.waits_for_operator())) {
                return true;
            }
            // Everything that happens by itself before time moves; alternate where there is a choice.
            let moves: Vec<Action> =
                useful.iter().copied().filter(|a| !matches!(a, Action::Advance(_))).collect();
            let next = if moves.is_empty() {
                useful.iter().copied().min_by_key(|a| match a {
                    Action::Advance(n) => self.deadline(*n),
                    _ => None,
                })
            } else {
                moves.get(step % moves.len()).copied()
            };
            match next {
                Some(action) => self.act(action),
                None => return self.is_ready() || self.waits_for_operator(),
            }
            if self.violation.is_some() {
                return false;
            }
        }
        self.is_ready() || self.waits_for_operator()
    }

    /// Every node that is not serving or standing by names a command.
    pub fn waits_for_operator(&self) -> bool {
        self.nodes.iter().filter_map(|n| n.core.as_ref()).any(|c| {
            let view = c.view(self.now);
            view.command.is_some() && view.command.is_some_and(|c| c.starts_with("adopt"))
        })
    }

    /// One line per state for counter-examples.
    pub fn brief(&self) -> String {
        let node = |n: &Node| match &n.core {
            Some(core) => {
                let view = core.view(self.now);
                let why = view.reasons.first().map(|r| r.code.clone()).unwrap_or_default();
                let r = core.record();
                format!(
                    "{:?}/{:?} {why} {} gate {:?} tree {:02b}/{:02b} alone {} behind {} inc {} q{} in{} fr{} syncs{}",
                    view.role,
                    view.data,
                    r.epoch,
                    n.gate,
                    n.cache,
                    n.durable,
                    r.alone,
                    r.behind,
                    r.inconsistent.is_some(),
                    n.queue.len(),
                    n.inbox.len(),
                    n.frames.len(),
                    n.syncs.len()
                )
            }
            None => format!(
                "{} tree {:02b}/{:02b}",
                if n.powered { "no agent" } else { "off" },
                n.cache,
                n.durable
            ),
        };
        format!(
            "A: {} | B: {} | net {:?} acked {:?}",
            node(&self.nodes[0]),
            node(&self.nodes[1]),
            self.net,
            self.promises.iter().map(|p| p.acked).collect::<Vec<_>>()
        )
    }
}
