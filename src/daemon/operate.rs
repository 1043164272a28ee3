//! Answers the API.

use super::node::{Node, may_remove};
use super::{specs, status};
use crate::api::types::Reason;
use crate::api::{Action, Agent, ApiError, Request};
use crate::base::{ClusterId, codes};
use crate::bus::{Fact, Item};
use crate::engine::{OperatorCommand, OperatorResult, Role};
use crate::replica::primary::Synced;
use crate::store::events::EventLog;
use futures::StreamExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// Longest wait for an operation: far above the longest orderly stop of services.
const OPERATE_LIMIT: Duration = Duration::from_secs(600);
/// Longest wait for an unmount; what cannot be unmounted in order is detached, which takes no disk.
const EJECT_LIMIT: Duration = Duration::from_secs(60);

/// Longest sync of everything: as long as the decision core gives a machine's worth of dirty pages.
const SYNC_LIMIT: Duration = Duration::from_millis(crate::engine::timers::SYNC_MAX);

/// How long `delete` waits for the other node to say that it has stopped: several heartbeats.
const WORD_LIMIT: Duration = Duration::from_secs(1);

/// The agent as the API server sees it.
pub struct Api(pub Arc<Node>);

impl Agent for Api {
    fn call(&self, request: Request, more: mpsc::Sender<Value>) -> BoxFuture<'_, Result<Value, ApiError>> {
        let node = self.0.clone();
        Box::pin(async move {
            match request {
                Request::Ping => Ok(json!({"version": env!("CARGO_PKG_VERSION")})),
                Request::Status { cluster } => show(&node, cluster),
                Request::Get { cluster } => get(&node, cluster),
                Request::Diff { documents } => to_its_end(apply(node, documents, true, None)).await,
                Request::Apply { documents, dry_run, check_index } => {
                    to_its_end(apply(node, documents, dry_run, check_index)).await
                }
                Request::Delete { cluster, force } => {
                    to_its_end(delete(node, ClusterId(cluster), force)).await
                }
                Request::Operate { cluster, action } => {
                    to_its_end(operate(node, ClusterId(cluster), action, more)).await
                }
                Request::Sync { cluster } => to_its_end(sync(node, ClusterId(cluster))).await,
                Request::Events { follow, last, failover } => {
                    events(&node, Wanted { follow, last, failover }, more).await
                }
            }
        })
    }
}

/// Work that a client who leaves must not break off half-way.
async fn to_its_end(
    work: impl Future<Output = Result<Value, ApiError>> + Send + 'static,
) -> Result<Value, ApiError> {
    tokio::spawn(work).await.unwrap_or_else(|error| {
        Err(ApiError::new("SKC-E7024", format!("the work broke off: {error}"), "look at the agent's log"))
    })
}

async fn sync(node: Arc<Node>, cluster: ClusterId) -> Result<Value, ApiError> {
    let unit = node.unit(&cluster).ok_or_else(|| is_down(&node, &cluster))?;
    let failed = |why: String, hint: String| {
        ApiError::new(codes::SYNC_FAILED.id, format!("sync of {cluster}: {why}"), hint)
    };
    if !matches!(unit.core.snapshot().view.role, Role::Prim | Role::Alone) {
        let why = format!("{} is not the primary", node.shared.name);
        return Err(failed(why, format!("skc sync {cluster} on the node that is")));
    }
    let streams = unit.streams.clone();
    let done = tokio::task::spawn_blocking(move || streams.sync_all(SYNC_LIMIT)).await;
    let result = done.map_err(|error| failed(error.to_string(), "look at the agent's log".to_owned()))?;
    match result {
        Ok(Synced::Both) => Ok(json!({"both": true, "text": "durable on both nodes"})),
        Ok(Synced::Here) => Ok(json!({"both": false, "text": "durable on this node; there is no standby"})),
        Err(error) => Err(failed(error.to_string(), format!("skc status {cluster}"))),
    }
}

fn show(node: &Node, cluster: Option<String>) -> Result<Value, ApiError> {
    let mut all: Vec<_> = node.units().iter().map(|u| status::of(node, u)).collect();
    all.extend(status::of_downs(node));
    if all.is_empty() && cluster.is_none() {
        // There is no cluster to show it at.
        let problems = status::link_problems(&node.shared.link.status());
        let hint = "skc explain SKC-E2027";
        let shown = |reason: Reason| ApiError::new(&reason.code, reason.text, hint);
        all.extend(problems.into_iter().map(|p| status::of_agent(&node.shared.name, &shown(p), 0, 0)));
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(name) = cluster {
        all.retain(|one| one.name == name);
        if all.is_empty() {
            return Err(specs::unknown(&ClusterId(name)));
        }
    }
    Ok(serde_json::to_value(all).unwrap_or_default())
}

fn get(node: &Node, cluster: Option<String>) -> Result<Value, ApiError> {
    let specs = node.specs.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(name) = &cluster
        && specs.get(&ClusterId(name.clone())).is_none()
    {
        return Err(specs::unknown(&ClusterId(name.clone())));
    }
    let all: Vec<_> = specs
        .live()
        .filter(|(c, _)| cluster.as_ref().is_none_or(|name| &c.0 == name))
        .map(|(c, e)| json!({"name": c.0, "revision": e.revision.number, "text": e.text, "spec": e.spec.as_deref()}))
        .collect();
    Ok(Value::Array(all))
}

pub(super) async fn apply(
    node: Arc<Node>,
    documents: Vec<crate::api::Document>,
    dry_run: bool,
    check_index: Option<u64>,
) -> Result<Value, ApiError> {
    let here = node.clone();
    let change = move |specs: &mut specs::SpecBook| {
        let running = |c: &ClusterId| here.unit(c).is_some_and(|unit| unit.runs());
        specs.apply(&documents, dry_run, check_index, &here.pair(), running)
    };
    let (applied, changed) = node.change_specs(change).await?;
    for cluster in &changed {
        node.send_spec(cluster);
        let revision = applied.iter().find(|a| a.name == cluster.0).map_or(0, |a| a.revision);
        node.bus().publish(Some(&cluster.0), Fact::SpecApplied { revision });
    }
    if !changed.is_empty() {
        node.reconcile().await;
    }
    Ok(serde_json::to_value(applied).unwrap_or_default())
}

async fn delete(node: Arc<Node>, cluster: ClusterId, force: bool) -> Result<Value, ApiError> {
    if node.specs.lock().unwrap_or_else(PoisonError::into_inner).get(&cluster).is_none() {
        return Err(specs::unknown(&cluster));
    }
    let runs_here = node.unit(&cluster).is_some_and(|unit| unit.runs());
    let asked = tokio::time::Instant::now();
    while let Err(error) = may_remove(&cluster, runs_here, &node.peer_says(&cluster), force) {
        // A stop on the other node a moment ago is in its next heartbeats only.
        if runs_here || asked.elapsed() >= WORD_LIMIT {
            return Err(error);
        }
        tokio::time::sleep(WORD_LIMIT / 10).await;
    }
    let gone = cluster.clone();
    node.change_specs(move |specs| specs.remove(&gone)).await?;
    node.send_spec(&cluster);
    node.reconcile().await;
    Ok(json!({"text": "removed"}))
}

/// Why there is nothing to operate on.
fn is_down(node: &Node, cluster: &ClusterId) -> ApiError {
    let downs = node.down.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(down) = downs.get(cluster) else { return specs::unknown(cluster) };
    let ApiError { code, message, hint } = down.problem.clone();
    ApiError { code, message: format!("{cluster} is not up here, nothing was done: {message}"), hint }
}

/// How a wait ended.
#[derive(Debug, PartialEq, Eq)]
enum Waited<T> {
    For(T),
    ClientLeft,
    TooLong,
}

/// Waits for `work`, as long as the client does and no longer than `limit`; what was asked goes on without it.
async fn wait_for<T>(
    work: impl Future<Output = T>,
    client: &mpsc::Sender<Value>,
    limit: Duration,
) -> Waited<T> {
    tokio::select! {
        biased; // a result that is there counts
        result = work => Waited::For(result),
        () = client.closed() => Waited::ClientLeft,
        () = tokio::time::sleep(limit) => Waited::TooLong,
    }
}

fn too_slow(verb: &str, cluster: &ClusterId, limit: Duration) -> ApiError {
    ApiError::new(
        "SKC-E7028",
        format!("{verb} of {cluster} is not done after {} s; it goes on", limit.as_secs()),
        "skc status, skc events",
    )
}

async fn operate(
    node: Arc<Node>,
    cluster: ClusterId,
    action: Action,
    client: mpsc::Sender<Value>,
) -> Result<Value, ApiError> {
    let unit = node.unit(&cluster).ok_or_else(|| is_down(&node, &cluster))?;
    let verb = action.verb();
    let command = match action {
        Action::Start => OperatorCommand::Start,
        Action::Stop => OperatorCommand::Stop,
        Action::Swap => OperatorCommand::Swap,
        Action::Promote { force } => OperatorCommand::Promote { force },
        Action::Pause => OperatorCommand::Pause,
        Action::Resume => OperatorCommand::Resume,
        Action::Adopt { source, force } => {
            let source = match source {
                None => unit.me,
                Some(name) => crate::failover::config::node_id(&unit.spec(), &name).ok_or_else(|| {
                    let names = crate::failover::config::names(&unit.spec()).join(" or ");
                    ApiError::new(
                        "SKC-E7026",
                        format!("{cluster} has no node {name}"),
                        format!("--source {names}"),
                    )
                })?,
            };
            OperatorCommand::Adopt { source, force }
        }
        Action::Eject => {
            if unit.core.snapshot().view.role != Role::Stop {
                return Err(ApiError::new(
                    "SKC-E7023",
                    format!("{cluster} is not stopped on this node; nothing was unmounted"),
                    format!("skc stop {cluster}"),
                ));
            }
            if tokio::time::timeout(EJECT_LIMIT, unit.eject()).await.is_err() {
                return Err(too_slow("eject", &cluster, EJECT_LIMIT));
            }
            node.bus().publish(
                Some(&cluster.0),
                Fact::OperatorAction { action: "eject".into(), outcome: "done".into() },
            );
            return Ok(json!({"text": "unmounted; the directories are plain again"}));
        }
    };
    let stops = matches!(command, OperatorCommand::Stop);
    let work = async {
        if matches!(command, OperatorCommand::Start) {
            unit.uneject().await;
        }
        unit.core.operate(command).await
    };
    let waited = wait_for(work, &client, OPERATE_LIMIT).await;
    if stops {
        if matches!(waited, Waited::For(Some(OperatorResult::Done))) {
            node.was_stopped(&cluster);
        }
        // A spec or a removal that waited for the stop is taken over now.
        let node = node.clone();
        tokio::spawn(async move { node.reconcile().await });
    }
    let name = verb.to_owned();
    let (outcome, answer) = match waited {
        Waited::For(Some(OperatorResult::Done)) => {
            ("done".to_owned(), Ok(json!({"text": "done", "status": status::of(&node, &unit)})))
        }
        Waited::ClientLeft => ("not waited for".to_owned(), Err(too_slow(verb, &cluster, Duration::ZERO))),
        Waited::TooLong => ("not done yet".to_owned(), Err(too_slow(verb, &cluster, OPERATE_LIMIT))),
        Waited::For(Some(OperatorResult::Refused { code, hint })) => (
            format!("refused ({code})"),
            Err(ApiError {
                code: code.to_owned(),
                message: format!("{name} of {cluster} is refused"),
                hint: Some(hint),
            }),
        ),
        Waited::For(None) => (
            "unknown".to_owned(),
            Err(ApiError::new("SKC-E7024", "the cluster ended before it answered", "skc status")),
        ),
    };
    node.bus().publish(Some(&cluster.0), Fact::OperatorAction { action: name, outcome });
    answer
}

/// Events of the past at most: as many as the bus keeps of one life.
const PAST_MAX: usize = crate::bus::HISTORY_MAX;

/// What was asked for of the events.
struct Wanted {
    follow: bool,
    last: usize,
    failover: Option<String>,
}

impl Wanted {
    fn wants(&self, event: &Value) -> bool {
        self.failover.as_ref().is_none_or(|id| event["failover_id"] == id.as_str())
    }
}

async fn events(node: &Node, wanted: Wanted, more: mpsc::Sender<Value>) -> Result<Value, ApiError> {
    let wanted = Arc::new(wanted);
    // The file first: what is written to it meanwhile is in the bus's history, too.
    let (state, filter) = (node.shared.state.clone(), wanted.clone());
    let read = move || EventLog::tail(&state, filter.last.min(PAST_MAX), |event| filter.wants(event));
    let persisted = match tokio::task::spawn_blocking(read).await {
        Ok(Ok(events)) => events,
        Ok(Err(error)) => {
            tracing::warn!(%error, "the events of the past cannot be read");
            Vec::new()
        }
        Err(error) => {
            tracing::warn!(%error, "reading the events of the past ended early");
            Vec::new()
        }
    };
    let (history, mut stream) = node.bus().follow(PAST_MAX);
    let history = history.iter().map(|event| serde_json::to_value(&**event).unwrap_or_default());
    let past = merged(persisted, history.filter(|event| wanted.wants(event)).collect());
    for event in past.into_iter().rev().take(wanted.last).rev() {
        if more.send(event).await.is_err() {
            return Ok(Value::Null);
        }
    }
    if !wanted.follow {
        return Ok(Value::Null);
    }
    loop {
        let item = tokio::select! {
            biased; // a client that went away ends the stream
            () = more.closed() => break,
            item = stream.next() => item,
        };
        let value = match item {
            Some(Item::Event(event)) => serde_json::to_value(&*event).unwrap_or_default(),
            Some(Item::Missed(count)) => {
                json!({"text": format!("{count} events were missed"), "missed": count})
            }
            None => break,
        };
        let is_event = value.get("missed").is_none();
        if (!is_event || wanted.wants(&value)) && more.send(value).await.is_err() {
            break;
        }
    }
    Ok(Value::Null)
}

/// The log's events, then those of this life of the agent that it does not have (yet). An id is unique
/// within a life only, so the time tells lives apart.
fn merged(mut persisted: Vec<Value>, history: Vec<Value>) -> Vec<Value> {
    let key = |event: &Value| (event["id"].as_u64(), event["time"].as_str().map(str::to_owned));
    let known: BTreeSet<_> = history.iter().map(key).collect();
    persisted.retain(|event| !known.contains(&key(event)));
    persisted.extend(history);
    persisted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_wait_for_an_operation_is_without_end() {
        let (client, answers) = mpsc::channel(1);
        let limit = Duration::from_secs(1);
        assert_eq!(wait_for(async { 7 }, &client, limit).await, Waited::For(7));
        assert_eq!(wait_for(std::future::pending::<()>(), &client, limit).await, Waited::TooLong);
        drop(answers);
        let long = Duration::from_secs(1_000_000);
        assert_eq!(wait_for(std::future::pending::<()>(), &client, long).await, Waited::ClientLeft);
    }

    fn event(id: u64, time: &str) -> Value {
        json!({"id": id, "time": time})
    }

    #[test]
    fn events_of_earlier_lives_come_first_and_none_comes_twice() {
        let persisted = vec![event(1, "a"), event(2, "b"), event(1, "c"), event(2, "d")];
        let history = vec![event(1, "c"), event(2, "d"), event(3, "e")];
        let all = merged(persisted, history);
        let times: Vec<_> = all.iter().map(|e| e["time"].as_str().unwrap_or("")).collect();
        assert_eq!(times, ["a", "b", "c", "d", "e"]);
    }

    #[test]
    fn a_failover_is_told_from_the_rest() {
        let wanted = Wanted { follow: false, last: 1, failover: Some("f-1".into()) };
        assert!(wanted.wants(&json!({"failover_id": "f-1"})));
        assert!(!wanted.wants(&json!({"failover_id": "f-2"})) && !wanted.wants(&json!({"id": 1})));
        assert!(Wanted { failover: None, ..wanted }.wants(&json!({"id": 1})));
    }
}
