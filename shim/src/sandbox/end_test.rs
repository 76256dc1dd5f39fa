//! The end is the end: what holds when the exit of a sandbox's last container is published.

use super::test_support::{Killing, PROCESS, Script, Stage, new, on_stage};
use super::*;
use crate::io::Stdio;
use containerd_shim_protos::events::task::TaskExit;
use std::path::Path;
use std::time::SystemTime;

const KILL: u32 = libc::SIGKILL.unsigned_abs();

/// Whether there is a process of this pid, a zombie too.
fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// A container that runs, with an exec that is registered.
async fn running(stage: &Stage, bundle: &Path) -> Arc<Container> {
    stage.sandbox.create(new(bundle)).await.unwrap();
    let container = stage.sandbox.container("c1").unwrap();
    container.start("").await.unwrap();
    container.exec("e1".into(), PROCESS.to_vec(), Stdio::default()).unwrap();
    container
}

#[test]
fn the_guest_is_shut_down_and_the_vmm_reaped_before_the_exit_is_published() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        let container = running(stage, &bundle).await;
        stage.agent.exit("", 3);
        let exit: TaskExit = stage.next("/tasks/exit").await;
        assert!(!exists(stage.vmm));
        assert_eq!(stage.agent.calls(), ["create", "start", "stats", "shutdown"]);
        assert_eq!(exit.exit_status, 3);
        let init = container.process("").unwrap();
        assert_eq!(init.wait().await.unwrap().status, 3, "Wait answers at once now");
    });
}

#[test]
fn after_the_end_state_and_delete_answer_and_what_would_change_something_is_refused() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        let container = running(stage, &bundle).await;
        stage.agent.exit("", 3);
        let exit = container.process("").unwrap().wait().await.unwrap();
        assert_eq!(container.process("").unwrap().status(), Status::Stopped(exit));
        assert!(matches!(container.kill("", KILL, true).await, Err(Error::NotFound(_))));
        for start in ["", "e1"] {
            assert!(matches!(container.start(start).await, Err(Error::FailedPrecondition(_))));
        }
        let exec = container.exec("e2".into(), PROCESS.to_vec(), Stdio::default());
        assert!(matches!(exec, Err(Error::FailedPrecondition(_))));
        let second = NewContainer { id: "c2".into(), ..new(&bundle) };
        let refused = stage.sandbox.create(second).await;
        assert!(matches!(refused, Err(Error::FailedPrecondition(line)) if line.contains("is ending")));
        assert!(!stage.sandbox.is_empty(), "Shutdown waits for Delete");
        assert_eq!(stage.sandbox.delete("c1").await.unwrap(), exit);
        assert!(stage.sandbox.is_empty());
        assert!(matches!(stage.sandbox.create(new(&bundle)).await, Err(Error::FailedPrecondition(_))));
        assert_eq!(
            stage.agent.calls(),
            ["create", "start", "stats", "shutdown"],
            "the guest is not asked again"
        );
    });
}

#[test]
fn while_the_guest_is_shut_down_the_container_runs_for_containerd_and_takes_nothing_new() {
    let script = Script { hangs_in_shutdown: true, ..Script::default() };
    on_stage(script, async |stage: &mut Stage, bundle: PathBuf| {
        let container = running(stage, &bundle).await;
        stage.agent.exit("", 3);
        stage.agent.until_called("shutdown").await;
        let asked = SystemTime::now();
        assert_eq!(container.process("").unwrap().status(), Status::Running);
        assert!(matches!(container.kill("", 15, false).await, Err(Error::NotFound(_))));
        assert!(matches!(container.start("e1").await, Err(Error::FailedPrecondition(_))));
        let exec = container.exec("e2".into(), PROCESS.to_vec(), Stdio::default());
        assert!(matches!(exec, Err(Error::FailedPrecondition(_))));
        assert!(matches!(stage.sandbox.delete("c1").await, Err(Error::FailedPrecondition(_))));
        assert!(exists(stage.vmm));
        let exits = |topics: &[String]| topics.iter().filter(|topic| *topic == "/tasks/exit").count();
        assert_eq!(exits(&stage.published_topics()), 0);
        // The guest does not answer, so its VMM is killed in the end.
        let exit = container.process("").unwrap().wait().await.unwrap();
        assert!(!exists(stage.vmm));
        assert_eq!(exit.status, 3, "the status is the process's");
        assert!(exit.at <= asked, "the time is that of the process's end");
        assert_eq!(exits(&stage.published_topics()), 1);
    });
}

#[test]
fn a_write_back_that_fails_ends_the_vm_all_the_same() {
    let script = Script { fails: Some("shutdown"), ..Script::default() };
    on_stage(script, async |stage: &mut Stage, bundle: PathBuf| {
        let container = running(stage, &bundle).await;
        stage.agent.exit("", 3);
        assert_eq!(container.process("").unwrap().wait().await.unwrap().status, 3);
        assert!(!exists(stage.vmm));
        assert_eq!(stage.sandbox.delete("c1").await.unwrap().status, 3);
    });
}

#[test]
fn a_vmm_that_is_killed_is_reaped_before_the_exits_are_published() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        let container = running(stage, &bundle).await;
        let vmm = nix::unistd::Pid::from_raw(stage.vmm.try_into().unwrap());
        nix::sys::signal::kill(vmm, nix::sys::signal::SIGKILL).unwrap();
        assert_eq!(container.process("").unwrap().wait().await.unwrap().status, 137);
        assert!(!exists(stage.vmm));
        assert_eq!(stage.agent.calls(), ["create", "start"], "there is nobody to shut down");
        // The container is deleted with what is kept of it.
        assert_eq!(stage.sandbox.delete("c1").await.unwrap().status, 137);
    });
}

#[test]
fn an_exec_that_does_not_end_after_sigkill_costs_the_guest_its_vm() {
    for killing in [Killing::Pretended, Killing::Ignored] {
        let script = Script { killing, ..Script::default() };
        on_stage(script, async |stage: &mut Stage, bundle: PathBuf| {
            let container = running(stage, &bundle).await;
            container.start("e1").await.unwrap();
            container.kill("e1", KILL, false).await.unwrap();
            for process in ["e1", ""] {
                let exit = container.process(process).unwrap().wait().await.unwrap();
                assert_eq!(exit.status, 137, "{process:?}");
            }
            assert!(!exists(stage.vmm));
        });
    }
}

#[test]
fn an_exec_that_ends_after_sigkill_leaves_its_container_alone() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        let container = running(stage, &bundle).await;
        container.start("e1").await.unwrap();
        container.kill("e1", KILL, false).await.unwrap();
        assert_eq!(container.process("e1").unwrap().wait().await.unwrap().status, 137);
        // Longer than a process may take to end after SIGKILL.
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(container.process("").unwrap().status(), Status::Running);
        assert!(exists(stage.vmm));
    });
}

#[test]
fn an_exec_that_nobody_started_is_deleted_with_status_0_and_one_whose_start_failed_with_255() {
    let script = Script { fails: Some("start e1"), ..Script::default() };
    on_stage(script, async |stage: &mut Stage, bundle: PathBuf| {
        let container = running(stage, &bundle).await;
        container.exec("e2".into(), PROCESS.to_vec(), Stdio::default()).unwrap();
        container.start("e1").await.unwrap_err();
        assert_eq!(container.delete_exec("e1").await.unwrap().status, 255);
        assert_eq!(container.delete_exec("e2").await.unwrap().status, 0);
    });
}
