use super::*;
use std::time::UNIX_EPOCH;

const EXIT: Exit = Exit { status: 7, at: UNIX_EPOCH };
const LATER: Exit = Exit { status: KILLED, at: UNIX_EPOCH };

fn in_phase(kind: Kind, phase: Phase) -> Life {
    Life { kind, phase }
}

#[test]
fn a_process_is_started_once_and_only_when_created() {
    for (phase, ok) in [
        (Phase::Created, true),
        (Phase::Starting(None), false),
        (Phase::Running, false),
        (Phase::Stopped(EXIT), false),
        (Phase::Deleted(EXIT), false),
    ] {
        let result = in_phase(Kind::Init, phase).begin_start();
        assert_eq!(result.is_ok(), ok, "{phase:?}");
        assert!(ok || matches!(result, Err(Error::FailedPrecondition(_))));
    }
}

#[test]
fn an_exit_waits_for_its_start() {
    let mut life = Life::new(Kind::Exec);
    life.begin_start().unwrap();
    assert!(!life.exited(EXIT));
    assert_eq!(life.status(), Status::Running);
    assert_eq!(life.started(), Some(EXIT));
    assert_eq!(life.status(), Status::Stopped(EXIT));
}

#[test]
fn an_exit_is_told_once_and_the_first_counts() {
    let mut life = Life::new(Kind::Init);
    life.begin_start().unwrap();
    assert_eq!(life.started(), None);
    assert!(life.exited(EXIT));
    assert!(!life.exited(LATER));
    assert_eq!(life.status(), Status::Stopped(EXIT));
    let mut held = in_phase(Kind::Init, Phase::Starting(None));
    assert!(!held.exited(EXIT) && !held.exited(LATER));
    assert_eq!(held.started(), Some(EXIT));
}

#[test]
fn a_container_killed_before_its_start_has_an_exit() {
    let mut life = Life::new(Kind::Init);
    assert!(life.exited(LATER));
    assert!(matches!(life.begin_start(), Err(Error::FailedPrecondition(_))));
}

#[test]
fn a_failed_start_leaves_a_container_created_and_an_exec_stopped_without_an_exit_event() {
    let mut init = in_phase(Kind::Init, Phase::Starting(None));
    assert_eq!(init.start_failed(UNIX_EPOCH), None);
    assert_eq!(init.status(), Status::Created);
    let mut died = in_phase(Kind::Init, Phase::Starting(Some(EXIT)));
    assert_eq!(died.start_failed(UNIX_EPOCH), Some(EXIT));
    let mut exec = in_phase(Kind::Exec, Phase::Starting(Some(EXIT)));
    assert_eq!(exec.start_failed(UNIX_EPOCH), None);
    assert_eq!(exec.status(), Status::Stopped(Exit { status: NEVER_RAN, at: UNIX_EPOCH }));
}

#[test]
fn a_signal_to_what_has_ended_is_not_found() {
    let code = |kind, phase| match in_phase(kind, phase).check_kill() {
        Ok(()) => "ok",
        Err(Error::NotFound(_)) => "not found",
        Err(Error::FailedPrecondition(_)) => "precondition",
        Err(_) => "other",
    };
    assert_eq!(code(Kind::Init, Phase::Created), "ok");
    assert_eq!(code(Kind::Exec, Phase::Created), "precondition");
    assert_eq!(code(Kind::Exec, Phase::Starting(None)), "ok");
    assert_eq!(code(Kind::Init, Phase::Running), "ok");
    assert_eq!(code(Kind::Init, Phase::Stopped(EXIT)), "not found");
    assert_eq!(code(Kind::Exec, Phase::Deleted(EXIT)), "not found");
}

#[test]
fn only_what_does_not_run_is_deleted_and_only_once() {
    for kind in [Kind::Init, Kind::Exec] {
        assert!(in_phase(kind, Phase::Created).check_delete().is_ok());
        assert!(in_phase(kind, Phase::Stopped(EXIT)).check_delete().is_ok());
        for running in [Phase::Starting(None), Phase::Running] {
            assert!(matches!(in_phase(kind, running).check_delete(), Err(Error::FailedPrecondition(_))));
        }
        assert!(matches!(in_phase(kind, Phase::Deleted(EXIT)).check_delete(), Err(Error::NotFound(_))));
    }
    let mut life = in_phase(Kind::Init, Phase::Stopped(EXIT));
    assert_eq!(life.deleted(UNIX_EPOCH), EXIT);
    assert_eq!(life.status(), Status::Stopped(EXIT));
}
