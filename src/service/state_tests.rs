use super::*;

const OK: Exit = Exit::Code(0);
const BAD: Exit = Exit::Code(3);

fn machine(kind: Kind) -> Machine {
    Machine::new(Timing { kind, start_timeout: 30_000, stop_timeout: 10_000, status_interval: 2000 })
}

fn running(kind: Kind) -> Machine {
    let mut m = machine(kind);
    m.step(Mono(0), Input::Start);
    match kind {
        Kind::Run => m.step(Mono(SETTLE), Input::Tick),
        Kind::Commands => m.step(Mono(SETTLE), Input::ScriptExited(Script::Start, OK)),
    };
    assert_eq!(m.state(), State::Running);
    m
}

#[test]
fn a_program_that_lives_past_the_settle_time_runs() {
    let mut m = machine(Kind::Run);
    assert_eq!(m.step(Mono(0), Input::Start), [Action::SpawnProgram]);
    assert_eq!(m.step(Mono(1), Input::Start), [], "starting twice is starting once");
    assert_eq!(m.deadline(), Some(Mono(SETTLE)));
    m.step(Mono(SETTLE - 1), Input::Tick);
    assert_eq!(m.state(), State::Starting);
    m.step(Mono(SETTLE), Input::Tick);
    assert_eq!(m.state(), State::Running);
    assert_eq!(m.deadline(), None);
    assert_eq!(m.step(Mono(500), Input::Start), []);
}

#[test]
fn a_program_that_exits_is_reported_and_its_leftovers_are_killed() {
    let mut m = running(Kind::Run);
    let actions = m.step(Mono(1000), Input::ProgramExited(OK));
    assert_eq!(actions, [Action::KillAll, Action::ReportFailure]);
    assert_eq!(m.state(), State::Stopping);
    assert!(!m.is_clean());
    m.step(Mono(1001), Input::Alive(2));
    assert_eq!(m.step(m.deadline().unwrap(), Input::Tick), [Action::KillAll, Action::Scan]);
    m.step(Mono(1100), Input::Alive(0));
    assert_eq!(m.state(), State::Failed(Failure::Exited(OK)));
    assert!(m.is_clean());
    assert_eq!(m.step(Mono(2000), Input::Stop { cap: None }), []);
    assert_eq!(m.state(), State::Stopped);
}

#[test]
fn stopping_asks_then_waits_then_kills() {
    let mut m = running(Kind::Run);
    assert_eq!(m.step(Mono(1000), Input::Stop { cap: None }), [Action::Terminate]);
    assert_eq!(m.step(Mono(1001), Input::Stop { cap: None }), [], "stopping twice is stopping once");
    m.step(Mono(1001), Input::Alive(1));
    let mut now = Mono(1001);
    while now < Mono(11_000) {
        now = m.deadline().unwrap();
        let actions = m.step(now, Input::Tick);
        if now < Mono(11_000) {
            assert_eq!(actions, [Action::Scan]);
            m.step(now, Input::Alive(1));
        } else {
            assert_eq!(actions, [Action::KillAll]);
        }
    }
    m.step(Mono(11_001), Input::ProgramExited(Exit::Signal(9)));
    m.step(Mono(11_001), Input::Alive(0));
    assert_eq!(m.state(), State::Stopped);
}

#[test]
fn leftovers_of_a_stopped_program_get_a_second_not_the_whole_timeout() {
    let mut m = running(Kind::Run);
    m.step(Mono(1000), Input::Stop { cap: None });
    assert_eq!(m.step(Mono(1100), Input::ProgramExited(OK)), [Action::Terminate, Action::Scan]);
    m.step(Mono(1100), Input::Alive(1));
    assert_eq!(m.step(Mono(1100 + LEFTOVER_GRACE), Input::Tick), [Action::KillAll]);
}

#[test]
fn a_cap_shortens_a_stop_that_already_runs() {
    let mut m = running(Kind::Run);
    m.step(Mono(1000), Input::Stop { cap: None });
    m.step(Mono(1000), Input::Stop { cap: Some(200) });
    assert_eq!(m.step(Mono(1200), Input::Tick), [Action::KillAll]);
}

#[test]
fn fencing_kills_but_lets_a_stop_command_finish() {
    let mut m = running(Kind::Run);
    m.step(Mono(1000), Input::Stop { cap: Some(500) });
    assert_eq!(m.step(Mono(1001), Input::Kill), [Action::KillAll]);
    let mut m = running(Kind::Commands);
    m.step(Mono(1000), Input::Stop { cap: Some(10_000) });
    assert_eq!(m.step(Mono(1001), Input::Kill), []);
    m.step(Mono(1500), Input::ScriptExited(Script::Stop, OK));
    m.step(Mono(1500), Input::Alive(0));
    assert_eq!(m.state(), State::Stopped);
}

#[test]
fn what_survives_sigkill_is_reported_and_tried_again() {
    let mut m = running(Kind::Run);
    m.step(Mono(1000), Input::Stop { cap: Some(0) });
    let mut now = Mono(1000);
    let mut reported = false;
    while !reported {
        now = m.deadline().unwrap().max(now + 1);
        assert!(now < Mono(1000 + KILL_PATIENCE + 500));
        reported = m.step(now, Input::Tick).contains(&Action::ReportFailure);
        m.step(now, Input::Alive(1));
    }
    assert_eq!(m.state(), State::Failed(Failure::Unkillable));
    assert!(!m.is_clean());
    assert_eq!(m.step(now, Input::Start), [], "not beside the old one");
    assert_eq!(m.step(now + STUCK_EVERY, Input::Tick), [Action::KillAll, Action::Scan]);
    m.step(now + STUCK_EVERY, Input::Alive(0));
    assert_eq!(m.state(), State::Stopped);
}

#[test]
fn a_start_command_that_fails_or_hangs_is_followed_by_the_stop_command() {
    for input in [Input::ScriptExited(Script::Start, BAD), Input::Tick] {
        let mut m = machine(Kind::Commands);
        assert_eq!(m.step(Mono(0), Input::Start), [Action::SpawnScript(Script::Start)]);
        let actions = m.step(Mono(30_000), input);
        assert!(actions.contains(&Action::SpawnScript(Script::Stop)), "{actions:?}");
        assert!(actions.contains(&Action::KillScript(Script::Start)));
        m.step(Mono(30_100), Input::ScriptExited(Script::Stop, OK));
        m.step(Mono(30_100), Input::Alive(0));
        assert!(matches!(m.state(), State::Failed(Failure::StartFailed(BAD) | Failure::StartTimeout)));
    }
}

#[test]
fn the_status_command_runs_at_its_interval_and_its_word_counts() {
    let mut m = running(Kind::Commands);
    let due = m.deadline().unwrap();
    assert_eq!(due, Mono(SETTLE + 2000));
    assert_eq!(m.step(due, Input::Tick), [Action::SpawnScript(Script::Status)]);
    assert_eq!(m.step(due + 1, Input::Tick), [], "one at a time");
    m.step(due + 10, Input::ScriptExited(Script::Status, OK));
    assert_eq!(m.deadline(), Some(due + 2010));
    m.step(due + 2010, Input::Tick);
    let actions = m.step(due + 2020, Input::ScriptExited(Script::Status, BAD));
    assert!(actions.contains(&Action::ReportFailure));
    assert_eq!(m.failure(), Some(&Failure::StatusFailed(BAD)));
    let mut m = running(Kind::Commands);
    m.step(due, Input::Tick);
    m.step(due + STATUS_TIMEOUT, Input::Tick);
    assert_eq!(m.failure(), Some(&Failure::StatusTimeout));
}

#[test]
fn a_stop_command_that_fails_or_hangs_is_not_called_stopped() {
    let mut m = running(Kind::Commands);
    m.step(Mono(1000), Input::Stop { cap: None });
    m.step(Mono(1100), Input::ScriptExited(Script::Stop, BAD));
    m.step(Mono(1100), Input::Alive(0));
    assert_eq!(m.state(), State::Failed(Failure::StopFailed(BAD)));
    let again = m.step(Mono(2000), Input::Stop { cap: None });
    assert!(again.contains(&Action::SpawnScript(Script::Stop)), "a second stop tries again");
    m.step(Mono(12_000), Input::Tick);
    m.step(Mono(12_000), Input::Alive(0));
    assert_eq!(m.state(), State::Failed(Failure::StopTimeout));
}

#[test]
fn what_cannot_be_executed_has_failed() {
    let mut m = machine(Kind::Run);
    m.step(Mono(0), Input::Start);
    assert_eq!(m.step(Mono(1), Input::SpawnFailed(None, "no such file".into())), [Action::ReportFailure]);
    assert_eq!(m.state(), State::Failed(Failure::Exec("no such file".into())));
    assert_eq!(m.step(Mono(2), Input::Start), [Action::SpawnProgram], "it can be tried again");
}

/// Any sequence of inputs: never stuck without a deadline, never "clean" without a look that found nothing.
#[test]
fn every_unsettled_state_has_a_deadline_under_any_inputs() {
    let mut seed: u64 = 7;
    let mut next = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 33
    };
    for kind in [Kind::Run, Kind::Commands] {
        for _ in 0..2000 {
            let mut m = machine(kind);
            let mut now = Mono(0);
            for _ in 0..40 {
                now = now + next() % 3000;
                let exit = if next() % 2 == 0 { OK } else { BAD };
                let script = [Script::Start, Script::Stop, Script::Status][(next() % 3) as usize];
                let input = match next() % 9 {
                    0 => Input::Start,
                    1 => Input::Stop { cap: (next() % 2 == 0).then(|| next() % 500) },
                    2 => Input::Kill,
                    3 => Input::SpawnFailed((kind == Kind::Commands).then_some(script), "x".into()),
                    4 => Input::ProgramExited(exit),
                    5 => Input::ScriptExited(script, exit),
                    6 => Input::Alive((next() % 2) as usize),
                    _ => Input::Tick,
                };
                let was_dirty = !m.is_clean() && m.state() != State::Starting;
                let looked = matches!(input, Input::Alive(0));
                m.step(now, input);
                assert!(!(was_dirty && m.is_clean()) || looked);
                if m.is_clean() || (m.state() == State::Running && kind == Kind::Run) {
                    continue;
                }
                assert!(m.deadline().is_some(), "{m:?}");
            }
        }
    }
}
