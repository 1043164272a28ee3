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
    Observed { seen: ServiceSeen { name: name.into(), phase, current: true }, attempt }
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
    assert_eq!(plan(&up(2), &observed), "+web +cron ");
    assert_eq!(plan(&down(), &observed), "-web -db ");
    assert_eq!(summary(&up(1), &observed), ServiceState::Failed);
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
    assert_eq!(summary(&up(1), &all(&ServicePhase::Stopped)), ServiceState::Stopped);
    let half = [seen("db", ServicePhase::Running, 1)];
    assert_eq!(summary(&up(1), &half), ServiceState::Starting);
    assert_eq!(summary(&down(), &half), ServiceState::Stopping);
    assert_eq!(summary(&down(), &[]), ServiceState::Stopped);
    let none = Desired { services: Vec::new(), ..up(1) };
    assert_eq!(summary(&none, &[]), ServiceState::Running);
}

/// A manager in memory; a service whose program is `/bin/fail` does not start, `/bin/slow` takes a minute.
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
    shop: ClusterId,
}

impl Rig {
    fn new() -> Self {
        let (fake, states) = (Fake::default(), Arc::new(Mutex::new(Vec::new())));
        let (manager, sink) = (fake.clone(), states.clone());
        let on_state: OnState = Arc::new(move |_, s| sink.lock().unwrap().push(s));
        let make = |wishes| ServiceReconciler::new(wishes, manager, Bus::new("node-a"), on_state);
        let running = start(Backoff::default(), make);
        Self { wishes: running.wishes.clone(), running, fake, states, shop: ClusterId("shop".into()) }
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
    assert!(rig.running.reconciler.attempts().is_empty());
    assert_eq!(rig.states.lock().unwrap().last(), Some(&ServiceState::Stopped));
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
    assert_eq!(rig.states.lock().unwrap().last(), Some(&ServiceState::Failed));
    let again = Desired { decision: 2, ..desired };
    assert!(rig.wishes.reach(&rig.shop, again).await.is_err());
    assert_eq!(rig.calls(), "+web");
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
