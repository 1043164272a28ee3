use super::*;
use crate::controller::{Backoff, render};
use crate::ports::Answer;
use crate::reconcile::{Running, start};
use crate::spec::service::Exec;
use std::time::Duration;

fn service(name: &str, program: &str) -> Service {
    let text = serde_json::json!({"name": name, "exec": {"run": [program]}});
    let service: Service = serde_json::from_value(text).unwrap();
    assert!(matches!(service.exec, Exec::Run { .. }));
    service
}

fn up(decision: u64) -> Desired {
    let services = vec![service("db", "/bin/db"), service("web", "/bin/web"), service("cron", "/bin/cron")];
    Desired { up: true, decision, services, restarts: BTreeMap::new() }
}

fn down() -> Desired {
    Desired { up: false, ..up(1) }
}

fn seen(name: &str, phase: ServicePhase, decision: u64) -> Observed {
    let attempt = (decision > 0).then_some(Attempt { decision, restart: 0 });
    Observed { seen: ServiceSeen { name: name.into(), phase, current: true }, attempt, stuck: false }
}

fn all(phase: &ServicePhase) -> Vec<Observed> {
    ["db", "web", "cron"].map(|n| seen(n, phase.clone(), 1)).to_vec()
}

type Real = ServiceReconciler<Fake>;

fn plan(desired: &Desired, observed: &[Observed]) -> String {
    render(&Real::plan(desired, &observed.to_vec())).replace(" service ", "").replace('\n', " ")
}

#[test]
fn up_in_order_and_down_in_reverse() {
    assert_eq!(plan(&up(1), &[]), "+db +web +cron ");
    assert_eq!(plan(&down(), &all(&ServicePhase::Running)), "-cron -web -db ");
    assert_eq!(plan(&up(1), &all(&ServicePhase::Running)), "");
    assert_eq!(plan(&down(), &all(&ServicePhase::Stopped)), "");
}

#[test]
fn what_failed_waits_for_another_decision_and_so_do_those_behind_it() {
    let failed = ServicePhase::Failed("exit code 1".into());
    let observed = [seen("db", ServicePhase::Running, 1), seen("web", failed, 1)];
    assert_eq!(plan(&up(1), &observed), "");
    assert_eq!(plan(&up(2), &observed), "-db +db +web +cron ");
    assert_eq!(plan(&down(), &observed), "-web -db ");
    assert_eq!(summary(&up(1), &observed), ServiceState::Failed);
    assert_eq!(summary(&up(2), &observed), ServiceState::Starting, "a failure counts once");
}

#[test]
fn a_stop_and_a_start_that_came_together_restart_all() {
    assert_eq!(plan(&up(3), &all(&ServicePhase::Running)), "-cron -web -db +db +web +cron ");
    let adopted: Vec<_> = ["db", "web", "cron"].map(|n| seen(n, ServicePhase::Running, 0)).to_vec();
    assert_eq!(plan(&up(3), &adopted), "", "what an earlier process started goes on");
}

#[test]
fn one_that_does_not_stop_is_tried_last_and_is_a_failure_when_it_is_all_that_is_left() {
    let mut observed = all(&ServicePhase::Running);
    observed[2].stuck = true;
    assert_eq!(plan(&down(), &observed), "-web -db -cron ");
    assert_eq!(summary(&down(), &observed), ServiceState::Stopping);
    observed[0].seen.phase = ServicePhase::Stopped;
    observed[1].seen.phase = ServicePhase::Stopped;
    assert_eq!(summary(&down(), &observed), ServiceState::Failed);
    let died = [seen("db", ServicePhase::Failed("exit code 1".into()), 1)];
    assert_eq!(summary(&down(), &died), ServiceState::Stopping, "something of it may still run");
}

#[test]
fn a_changed_definition_and_a_counted_restart_restart_that_service_alone() {
    let mut observed = all(&ServicePhase::Running);
    observed[1].seen.current = false;
    assert_eq!(plan(&up(1), &observed), "-web +web ");
    let mut desired = up(1);
    desired.restarts.insert("db".into(), 1);
    assert_eq!(plan(&desired, &all(&ServicePhase::Running)), "-db +db ");
}

#[test]
fn a_service_that_left_the_spec_is_stopped_first() {
    let mut observed = all(&ServicePhase::Running);
    observed.push(seen("old", ServicePhase::Running, 1));
    assert_eq!(plan(&up(1), &observed), "-old ");
    assert_eq!(plan(&down(), &observed), "-old -cron -web -db ");
}

#[test]
fn the_sum_says_running_only_when_all_are() {
    assert_eq!(summary(&up(1), &all(&ServicePhase::Running)), ServiceState::Running);
    assert_eq!(summary(&up(1), &all(&ServicePhase::Stopped)), ServiceState::Starting);
    let half = [seen("db", ServicePhase::Running, 1)];
    assert_eq!(summary(&up(1), &half), ServiceState::Starting);
    assert_eq!(summary(&down(), &half), ServiceState::Stopping);
    assert_eq!(summary(&down(), &[]), ServiceState::Stopped);
    let none = Desired { services: Vec::new(), ..up(1) };
    assert_eq!(summary(&none, &[]), ServiceState::Running);
}

/// A manager in memory; a service whose program is `/bin/fail` does not start, `/bin/refused` is not even
/// taken, `/bin/slow` takes 20 s.
#[derive(Default, Clone)]
struct Fake(Arc<Mutex<Memory>>);

#[derive(Default)]
struct Memory {
    services: BTreeMap<String, (Service, ServicePhase)>,
    calls: Vec<String>,
}

impl ServiceManager for Fake {
    fn list<'a>(&'a self, _: &'a ClusterId, wanted: &'a [Service]) -> Answer<'a, Vec<ServiceSeen>> {
        let memory = self.0.lock().unwrap();
        let one = |(name, (service, phase)): (&String, &(Service, ServicePhase))| ServiceSeen {
            name: name.clone(),
            phase: phase.clone(),
            current: wanted.contains(service),
        };
        let seen = memory.services.iter().map(one).collect();
        Box::pin(async move { Ok(seen) })
    }

    fn start<'a>(&'a self, _: &'a ClusterId, service: &'a Service) -> Answer<'a, ()> {
        Box::pin(async move {
            let Exec::Run { argv } = &service.exec else { panic!() };
            let name = service.name.clone();
            let set = |phase| self.0.lock().unwrap().services.insert(name.clone(), (service.clone(), phase));
            self.0.lock().unwrap().calls.push(format!("+{name}"));
            if argv[0] == "/bin/refused" {
                self.0.lock().unwrap().services.remove(&name);
                return Err(PortError { code: "SKC-E6007", message: "no such user".into() });
            }
            set(ServicePhase::Starting);
            if argv[0] == "/bin/slow" {
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
            if argv[0] == "/bin/fail" {
                set(ServicePhase::Failed("no".into()));
                return Err(PortError { code: "SKC-E6001", message: format!("{name} did not start") });
            }
            set(ServicePhase::Running);
            Ok(())
        })
    }

    fn stop<'a>(&'a self, _: &'a ClusterId, name: &'a str) -> Answer<'a, ()> {
        let mut memory = self.0.lock().unwrap();
        memory.calls.push(format!("-{name}"));
        memory.services.remove(name);
        Box::pin(async { Ok(()) })
    }
}

struct Rig {
    running: Running<Real>,
    wishes: Wishes<Desired>,
    fake: Fake,
    states: Arc<Mutex<Vec<ServiceState>>>,
    bus: Bus,
    shop: ClusterId,
}

impl Rig {
    fn new() -> Self {
        let (fake, states) = (Fake::default(), Arc::new(Mutex::new(Vec::new())));
        let (manager, sink) = (fake.clone(), states.clone());
        let on_state: OnState = Arc::new(move |_, s| sink.lock().unwrap().push(s));
        let bus = Bus::new("node-a");
        let make = |wishes| ServiceReconciler::new(wishes, manager, bus.clone(), on_state);
        let running = start(&bus, wakes, Backoff::default(), make);
        Self { wishes: running.wishes.clone(), running, fake, states, bus, shop: ClusterId("shop".into()) }
    }

    fn told(&self) -> Vec<ServiceState> {
        std::mem::take(&mut self.states.lock().unwrap())
    }

    fn calls(&self) -> String {
        std::mem::take(&mut self.fake.0.lock().unwrap().calls).join(" ")
    }
}

#[tokio::test(start_paused = true)]
async fn services_go_up_and_down_through_the_manager_and_a_second_run_does_nothing() {
    let rig = Rig::new();
    rig.wishes.reach(&rig.shop, up(1)).await.unwrap();
    assert_eq!(rig.calls(), "+db +web +cron");
    assert_eq!(rig.states.lock().unwrap().last(), Some(&ServiceState::Running));
    rig.wishes.reach(&rig.shop, up(1)).await.unwrap();
    assert_eq!(rig.calls(), "");
    rig.wishes.reach(&rig.shop, down()).await.unwrap();
    assert_eq!(rig.calls(), "-cron -web -db");
    assert!(rig.running.reconciler.memory().attempts.is_empty());
    use ServiceState::{Running, Starting, Stopped, Stopping};
    assert_eq!(rig.told(), [Starting, Running, Stopping, Stopped]);
    rig.wishes.reach(&rig.shop, Desired { decision: 2, ..down() }).await.unwrap();
    assert_eq!(rig.told(), [Stopped], "each decision is answered");
}

#[tokio::test(start_paused = true)]
async fn a_failed_start_is_not_repeated_before_the_next_decision() {
    let rig = Rig::new();
    let mut desired = up(1);
    desired.services[1] = service("web", "/bin/fail");
    let error = rig.wishes.reach(&rig.shop, desired.clone()).await.unwrap_err();
    assert_eq!(error, "+ service web: failed: web did not start");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.calls(), "+db +web");
    assert_eq!(rig.told(), [ServiceState::Starting, ServiceState::Failed], "and counts once");
    let again = Desired { decision: 2, ..desired };
    assert!(rig.wishes.reach(&rig.shop, again).await.is_err());
    assert_eq!(rig.calls(), "-db +db +web");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_the_manager_never_heard_of_is_a_failure_too() {
    let rig = Rig::new();
    let mut desired = up(1);
    desired.services[0] = service("db", "/bin/refused");
    assert!(rig.wishes.reach(&rig.shop, desired.clone()).await.is_err());
    tokio::time::sleep(Duration::from_secs(60)).await; // pace: longer than every back-off
    assert_eq!(rig.calls(), "+db");
    assert_eq!(rig.told(), [ServiceState::Starting, ServiceState::Failed]);
}

#[tokio::test(start_paused = true)]
async fn a_death_is_noticed_by_the_fact_and_left_to_the_core() {
    let rig = Rig::new();
    rig.wishes.reach(&rig.shop, up(1)).await.unwrap();
    rig.told();
    rig.fake.0.lock().unwrap().services.get_mut("web").unwrap().1 = ServicePhase::Failed("killed".into());
    let exited = Fact::ServiceExited { service: "web".into(), how: "killed".into() };
    rig.bus.publish(Some("shop"), exited);
    let begin = tokio::time::Instant::now();
    while rig.states.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await; // pace
    }
    assert!(begin.elapsed() < Duration::from_secs(1), "not by the periodic look");
    tokio::time::sleep(Duration::from_secs(60)).await; // pace: several periodic looks
    assert_eq!(rig.told(), [ServiceState::Failed]);
    assert_eq!(rig.running.reconciler.line(&rig.shop, "web").unwrap().note, "killed");
    assert_eq!(rig.calls(), "+db +web +cron");
}

#[tokio::test(start_paused = true)]
async fn down_does_not_wait_for_a_slow_start() {
    let rig = Rig::new();
    let mut desired = up(1);
    desired.services[0] = service("db", "/bin/slow");
    rig.wishes.set(&rig.shop, desired.clone());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = tokio::time::Instant::now();
    rig.wishes.reach(&rig.shop, Desired { up: false, ..desired }).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(rig.calls(), "+db -db");
}
