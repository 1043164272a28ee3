use super::*;
use futures::stream;
use std::sync::{Arc, Mutex};
use tokio::time::{Instant, advance};

/// A number that is brought to another one by steps of one.
#[derive(Default)]
struct World {
    desired: Option<i64>,
    actual: i64,
    executed: Vec<String>,
    running: usize,
    most_running: usize,
    fail: bool,
    hang: bool,
    lie: bool,
    errors: Vec<(Duration, String)>,
}

struct Counter {
    world: Mutex<World>,
    start: Instant,
    settled: Action,
}

struct Move(i64);

impl Display for Move {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "move by {}", self.0)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the world says no")]
struct No;

impl Reconciler for Counter {
    type Key = &'static str;
    type Desired = i64;
    type Observed = i64;
    type Step = Move;
    type Error = No;

    fn desired(&self, _key: &&'static str) -> Option<i64> {
        self.world.lock().unwrap().desired
    }

    async fn observe(&self, _key: &&'static str, _desired: &i64) -> Result<i64, No> {
        Ok(self.world.lock().unwrap().actual)
    }

    fn plan(desired: &i64, observed: &i64) -> Vec<Move> {
        (0..(desired - observed).abs()).map(|_| Move((desired - observed).signum())).collect()
    }

    async fn execute(&self, key: &&'static str, _desired: &i64, step: &Move) -> Result<(), No> {
        let hang = {
            let mut world = self.world.lock().unwrap();
            world.running += 1;
            world.most_running = world.most_running.max(world.running);
            world.hang
        };
        if hang {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        let mut world = self.world.lock().unwrap();
        world.running -= 1;
        if world.fail {
            return Err(No);
        }
        if !world.lie {
            world.actual += step.0;
        }
        world.executed.push(format!("{key}: {step}"));
        Ok(())
    }

    fn deadline(&self, _step: &Move) -> Duration {
        SECOND
    }

    fn interruptible(_step: &Move) -> bool {
        true
    }

    fn settled(&self, _key: &&'static str) -> Action {
        self.settled
    }

    fn report(&self, _key: &&'static str, report: Report<'_, Move, No>) {
        if let Report::Failed { error, repeated } = report {
            let at = self.start.elapsed();
            let mut world = self.world.lock().unwrap();
            assert_eq!(repeated, world.errors.last().is_some_and(|(_, last)| *last == chain(error)));
            world.errors.push((at, chain(error)));
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);

fn start(world: World, settled: Action) -> (Arc<Counter>, Handle<&'static str>) {
    let counter = Arc::new(Counter { world: Mutex::new(world), start: Instant::now(), settled });
    let (handle, inbox) = handle();
    tokio::spawn(run(counter.clone(), inbox, stream::pending(), Backoff::default()));
    (counter, handle)
}

fn want(desired: i64) -> World {
    World { desired: Some(desired), ..World::default() }
}

#[tokio::test(start_paused = true)]
async fn a_second_run_has_no_steps() {
    let (counter, handle) = start(want(3), Action::AwaitChange);
    handle.converge("a").await.unwrap();
    assert_eq!(counter.world.lock().unwrap().executed.len(), 3);
    handle.converge("a").await.unwrap();
    let world = counter.world.lock().unwrap();
    assert_eq!((world.actual, world.executed.len()), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn many_triggers_are_one_run_and_one_object_never_runs_twice_at_once() {
    let (counter, handle) = start(want(5), Action::AwaitChange);
    for _ in 0..100 {
        handle.trigger("a");
    }
    tokio::task::yield_now().await;
    for _ in 0..100 {
        handle.trigger("a");
    }
    handle.converge("a").await.unwrap();
    let world = counter.world.lock().unwrap();
    assert_eq!((world.most_running, world.executed.len()), (1, 5));
}

#[tokio::test(start_paused = true)]
async fn different_objects_run_side_by_side() {
    let (counter, handle) = start(World { hang: true, ..want(1) }, Action::AwaitChange);
    handle.trigger("a");
    handle.trigger("b");
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(counter.world.lock().unwrap().most_running, 2);
}

#[tokio::test(start_paused = true)]
async fn errors_back_off_doubling_up_to_the_cap_and_success_resets() {
    let (counter, handle) = start(World { fail: true, ..want(1) }, Action::AwaitChange);
    handle.trigger("a");
    advance(Duration::from_millis(1)).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let moments: Vec<u128> =
        counter.world.lock().unwrap().errors.iter().map(|(at, _)| at.as_millis()).collect();
    // Each run takes 10 ms; then 100, 200, 400 .. 6400 ms, and 10 s from then on.
    let gaps: Vec<u128> = moments.windows(2).map(|w| (w[1] - w[0]) / 10 * 10).collect();
    assert_eq!(gaps[..9], [110, 210, 410, 810, 1610, 3210, 6410, 10_010, 10_010]);
    counter.world.lock().unwrap().fail = false;
    handle.converge("a").await.unwrap();
    counter.world.lock().unwrap().fail = true;
    counter.world.lock().unwrap().desired = Some(2);
    counter.world.lock().unwrap().errors.clear();
    handle.trigger("a");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(counter.world.lock().unwrap().errors.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_hangs_ends_at_its_deadline() {
    let (_, handle) = start(World { hang: true, ..want(1) }, Action::AwaitChange);
    let begin = Instant::now();
    let error = handle.converge("a").await.unwrap_err();
    assert_eq!(error, "move by 1: not done within 1000 ms");
    assert_eq!(begin.elapsed().as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn steps_that_succeed_without_effect_are_noticed() {
    let (_, handle) = start(World { lie: true, ..want(2) }, Action::AwaitChange);
    let error = handle.converge("a").await.unwrap_err();
    assert_eq!(error, "not as desired after all steps were done; left: move by 1, move by 1");
}

#[tokio::test(start_paused = true)]
async fn a_changed_desire_interrupts_a_hanging_step_at_once() {
    let (counter, handle) = start(World { hang: true, ..want(5) }, Action::AwaitChange);
    handle.trigger("a");
    tokio::time::sleep(Duration::from_millis(5)).await;
    let begin = Instant::now();
    {
        let mut world = counter.world.lock().unwrap();
        world.hang = false;
        world.desired = Some(0);
    }
    handle.converge("a").await.unwrap();
    assert!(begin.elapsed() < Duration::from_millis(50));
    assert_eq!(counter.world.lock().unwrap().actual, 0);
}

#[tokio::test(start_paused = true)]
async fn requeue_heals_what_changed_without_telling() {
    let (counter, handle) = start(want(1), Action::Requeue(SECOND));
    handle.converge("a").await.unwrap();
    counter.world.lock().unwrap().actual = -1;
    tokio::time::sleep(SECOND * 2).await;
    assert_eq!(counter.world.lock().unwrap().actual, 1);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_wants_is_left_alone_and_an_ended_controller_says_so() {
    let (counter, handle) = start(World { actual: 7, ..World::default() }, Action::AwaitChange);
    handle.converge("a").await.unwrap();
    assert_eq!(counter.world.lock().unwrap().actual, 7);
    let (orphan, inbox) = super::handle::<&'static str>();
    drop(inbox);
    assert_eq!(orphan.converge("a").await.unwrap_err(), "the controller has ended");
}

#[test]
fn the_delay_never_overflows() {
    let backoff = Backoff::default();
    assert_eq!(backoff.delay(1), backoff.first);
    for errors in [0, 8, 31, 32, 33, 64, u32::MAX] {
        assert!(backoff.delay(errors) <= backoff.max);
    }
    assert_eq!(backoff.delay(u32::MAX), backoff.max);
}
