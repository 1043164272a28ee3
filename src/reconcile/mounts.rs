//! Mounts: the mirror is over these directories, or they are plain.
//!
//! A dead mount of ours is detached and replaced. A mount of somebody else is never touched and never
//! stacked upon: the plan says so as a step that always fails, so that it is shown and tried again.

use super::{Wishes, text};
use crate::base::{ClusterId, Volume, codes};
use crate::bus::{Bus, Fact};
use crate::controller::{Action, Reconciler, Report, RunError, chain};
use crate::ports::{MountControl, MountPhase, PortError};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest mount or unmount. Mounting waits for the guard and the kernel's INIT; both answer in milliseconds.
const STEP_DEADLINE: Duration = Duration::from_secs(10);
/// How often mounts are looked at: nothing tells when somebody unmounts one of them.
const LOOK: Duration = Duration::from_secs(5);

/// What is desired.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// The directories that are mounted; all others of the cluster are not.
    pub mounted: Vec<(Volume, PathBuf)>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Mount the mirror over it.
    Mount {
        /// Which.
        volume: Volume,
        /// Where.
        path: PathBuf,
    },
    /// Leave a plain directory.
    Unmount {
        /// Where.
        path: PathBuf,
    },
    /// Take a mount away whose server is gone.
    Detach {
        /// Where.
        path: PathBuf,
    },
    /// Somebody else's mount is in the way.
    Refuse {
        /// Where.
        path: PathBuf,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount { path, .. } => write!(f, "+ mount {}", path.display()),
            Self::Unmount { path } => write!(f, "- mount {}", path.display()),
            Self::Detach { path } => write!(f, "- mount {} (dead)", path.display()),
            Self::Refuse { path } => {
                write!(f, "! mount {} (a mount of somebody else is there)", path.display())
            }
        }
    }
}

/// The reconciler.
pub struct MountReconciler<M> {
    wishes: Wishes<Desired>,
    control: M,
    bus: Bus,
}

impl<M: MountControl> MountReconciler<M> {
    /// Through this control.
    pub fn new(wishes: Wishes<Desired>, control: M, bus: Bus) -> Self {
        Self { wishes, control, bus }
    }

    fn say(&self, key: &ClusterId, path: &Path, state: &str) {
        let path = path.display().to_string();
        let fact = Fact::MountChanged { path, state: state.into(), note: String::new() };
        self.bus.publish(Some(&key.0), fact);
    }
}

impl<M: MountControl> Reconciler for MountReconciler<M> {
    type Key = ClusterId;
    type Desired = Desired;
    type Observed = Vec<(PathBuf, MountPhase)>;
    type Step = Step;
    type Error = PortError;

    fn desired(&self, key: &ClusterId) -> Option<Desired> {
        self.wishes.get(key)
    }

    async fn observe(&self, key: &ClusterId, desired: &Desired) -> Result<Self::Observed, PortError> {
        let wanted: Vec<PathBuf> = desired.mounted.iter().map(|(_, path)| path.clone()).collect();
        self.control.list(key, &wanted).await
    }

    fn plan(desired: &Desired, observed: &Self::Observed) -> Vec<Step> {
        let wanted = |path: &Path| desired.mounted.iter().any(|(_, p)| p == path);
        let mut steps = Vec::new();
        for (path, phase) in observed.iter().rev() {
            let path = path.clone();
            match phase {
                MountPhase::Dead => steps.push(Step::Detach { path }),
                MountPhase::Mounted if !wanted(&path) => steps.push(Step::Unmount { path }),
                MountPhase::Mounted | MountPhase::Unmounted | MountPhase::Foreign => {}
            }
        }
        for (volume, path) in &desired.mounted {
            let phase = observed.iter().find(|(p, _)| p == path).map(|(_, phase)| *phase);
            match phase.unwrap_or(MountPhase::Unmounted) {
                MountPhase::Mounted => {}
                MountPhase::Foreign => steps.push(Step::Refuse { path: path.clone() }),
                MountPhase::Unmounted | MountPhase::Dead => {
                    steps.push(Step::Mount { volume: *volume, path: path.clone() });
                }
            }
        }
        // What can be done is done before what is refused ends the run.
        steps.sort_by_key(|s| matches!(s, Step::Refuse { .. }));
        steps
    }

    async fn execute(&self, key: &ClusterId, _desired: &Desired, step: &Step) -> Result<(), PortError> {
        match step {
            Step::Mount { volume, path } => {
                self.control.mount(key, *volume, path).await?;
                self.say(key, path, "mounted");
            }
            Step::Unmount { path } => {
                self.control.unmount(key, path).await?;
                self.say(key, path, "unmounted");
            }
            Step::Detach { path } => {
                self.say(key, path, "dead");
                self.control.unmount(key, path).await?;
            }
            Step::Refuse { path } => {
                let message = format!("a live mount of somebody else is over {}", path.display());
                return Err(PortError { code: codes::FS_BUSY_MOUNT.id, message });
            }
        }
        Ok(())
    }

    fn deadline(&self, _step: &Step) -> Duration {
        STEP_DEADLINE
    }

    fn settled(&self, key: &ClusterId) -> Action {
        let any = self.wishes.get(key).is_some_and(|wish| !wish.mounted.is_empty());
        if any { Action::Requeue(LOOK) } else { Action::AwaitChange }
    }

    fn report(&self, key: &ClusterId, report: Report<'_, Step, PortError>) {
        if let Report::Failed(error) = report {
            let code = match error {
                RunError::Observe(e) | RunError::Step { source: e, .. } => e.code,
                _ => codes::FS_MOUNT.id,
            };
            text::publish(&self.bus, &key.0, "mounts", code, chain(error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::render;
    use crate::ports::Answer;

    struct Unused;

    impl MountControl for Unused {
        fn list<'a>(&'a self, _: &'a ClusterId, _: &'a [PathBuf]) -> Answer<'a, Vec<(PathBuf, MountPhase)>> {
            Box::pin(async { Ok(Vec::new()) })
        }
        fn mount<'a>(&'a self, _: &'a ClusterId, _: Volume, _: &'a Path) -> Answer<'a, ()> {
            Box::pin(async { Ok(()) })
        }
        fn unmount<'a>(&'a self, _: &'a ClusterId, _: &'a Path) -> Answer<'a, ()> {
            Box::pin(async { Ok(()) })
        }
    }

    fn both() -> Desired {
        Desired { mounted: vec![(Volume(0), "/srv/a".into()), (Volume(1), "/srv/b".into())] }
    }

    fn plan(desired: &Desired, observed: &[(&str, MountPhase)]) -> String {
        let observed = observed.iter().map(|(path, phase)| (PathBuf::from(path), *phase)).collect();
        render(&MountReconciler::<Unused>::plan(desired, &observed))
    }

    #[test]
    fn a_second_plan_is_empty() {
        assert_eq!(plan(&both(), &[]), "+ mount /srv/a\n+ mount /srv/b\n");
        let mounted = [("/srv/a", MountPhase::Mounted), ("/srv/b", MountPhase::Mounted)];
        assert_eq!(plan(&both(), &mounted), "");
        let plain = [("/srv/a", MountPhase::Unmounted)];
        assert_eq!(plan(&Desired::default(), &plain), "");
    }

    #[test]
    fn a_dead_mount_is_replaced_and_one_nobody_wants_goes() {
        let dead = [("/srv/a", MountPhase::Dead), ("/srv/b", MountPhase::Mounted)];
        assert_eq!(plan(&both(), &dead), "- mount /srv/a (dead)\n+ mount /srv/a\n");
        assert_eq!(plan(&Desired::default(), &dead), "- mount /srv/b\n- mount /srv/a (dead)\n");
    }

    #[test]
    fn a_foreign_mount_is_never_stacked_upon_and_does_not_stop_the_others() {
        let foreign = [("/srv/a", MountPhase::Foreign)];
        assert_eq!(
            plan(&both(), &foreign),
            "+ mount /srv/b\n! mount /srv/a (a mount of somebody else is there)\n"
        );
        assert_eq!(plan(&Desired::default(), &foreign), "");
    }
}
