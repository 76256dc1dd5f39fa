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
        (Phase::Starting, false),
        (Phase::Running, false),
        (Phase::Ending, false),
        (Phase::Stopped(EXIT), false),
        (Phase::Deleted(EXIT), false),
    ] {
        let result = in_phase(Kind::Init, phase).begin_start();
        assert_eq!(result.is_ok(), ok, "{phase:?}");
        assert!(ok || matches!(result, Err(Error::FailedPrecondition(_))));
    }
}

#[test]
fn a_process_that_has_ended_is_running_for_containerd_until_its_exit_is_published() {
    for phase in [Phase::Created, Phase::Running] {
        let mut life = in_phase(Kind::Init, phase);
        assert!(life.ended(), "{phase:?}");
        assert_eq!((life.status(), life.exit()), (Status::Running, None));
        assert!(life.has_ended() && !life.is_live());
        assert!(life.exited(EXIT));
        assert_eq!((life.status(), life.exit()), (Status::Stopped(EXIT), Some(EXIT)));
    }
}

#[test]
fn an_end_waits_for_the_answer_to_start() {
    let mut life = in_phase(Kind::Exec, Phase::Starting);
    assert!(!life.ended() && !life.exited(EXIT));
    life.started();
    assert_eq!(life.status(), Status::Running);
    assert!(life.ended() && life.exited(EXIT));
}

#[test]
fn an_exit_is_published_once_and_the_first_counts() {
    let mut life = in_phase(Kind::Init, Phase::Running);
    assert!(life.ended() && !life.ended());
    assert!(life.exited(EXIT) && !life.exited(LATER));
    assert!(!life.ended());
    assert_eq!(life.status(), Status::Stopped(EXIT));
}

#[test]
fn no_exit_is_published_of_what_has_not_ended() {
    for phase in [Phase::Created, Phase::Starting, Phase::Running] {
        let mut life = in_phase(Kind::Exec, phase);
        assert!(!life.exited(EXIT), "{phase:?}");
        assert_eq!(life.exit(), None);
    }
}

#[test]
fn a_failed_start_leaves_a_container_created_and_an_exec_stopped_with_255() {
    let mut init = in_phase(Kind::Init, Phase::Starting);
    init.start_failed(UNIX_EPOCH);
    assert_eq!(init.status(), Status::Created);
    let mut exec = in_phase(Kind::Exec, Phase::Starting);
    exec.start_failed(UNIX_EPOCH);
    assert_eq!(exec.status(), Status::Stopped(Exit { status: 255, at: UNIX_EPOCH }));
    assert!(!exec.ended(), "no exit event follows");
    assert_eq!(exec.deleted(UNIX_EPOCH).status, 255);
}

#[test]
fn an_exec_that_nobody_started_is_deleted_with_status_0() {
    let mut exec = Life::new(Kind::Exec);
    assert_eq!(exec.deleted(UNIX_EPOCH), Exit { status: 0, at: UNIX_EPOCH });
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
    assert_eq!(code(Kind::Exec, Phase::Starting), "ok");
    assert_eq!(code(Kind::Init, Phase::Running), "ok");
    assert_eq!(code(Kind::Init, Phase::Ending), "not found");
    assert_eq!(code(Kind::Init, Phase::Stopped(EXIT)), "not found");
    assert_eq!(code(Kind::Exec, Phase::Deleted(EXIT)), "not found");
}

#[test]
fn only_what_does_not_run_is_deleted_and_only_once() {
    for kind in [Kind::Init, Kind::Exec] {
        assert!(in_phase(kind, Phase::Created).check_delete().is_ok());
        assert!(in_phase(kind, Phase::Stopped(EXIT)).check_delete().is_ok());
        for running in [Phase::Starting, Phase::Running, Phase::Ending] {
            assert!(matches!(in_phase(kind, running).check_delete(), Err(Error::FailedPrecondition(_))));
        }
        assert!(matches!(in_phase(kind, Phase::Deleted(EXIT)).check_delete(), Err(Error::NotFound(_))));
    }
    let mut life = in_phase(Kind::Init, Phase::Stopped(EXIT));
    assert_eq!(life.deleted(UNIX_EPOCH), EXIT);
    assert_eq!(life.status(), Status::Stopped(EXIT));
}
