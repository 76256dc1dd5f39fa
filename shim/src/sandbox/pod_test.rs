//! Several containers in one sandbox, whose own is `c1`.

use super::membership::Kind;
use super::test_support::{Script, Stage, member, new, on_stage};
use super::*;
use containerd_shim_protos::events::task::TaskExit;
use std::path::Path;

const KILL: u32 = libc::SIGKILL.unsigned_abs();

fn a(kind: Kind) -> Script {
    Script { kind: Some(kind), ..Script::default() }
}

/// Makes the sandbox's own container, and starts it.
async fn start_own(stage: &Stage, dir: &Path) -> Arc<Container> {
    stage.sandbox.create(new(dir)).await.unwrap();
    let container = stage.sandbox.container("c1").unwrap();
    container.start("").await.unwrap();
    container
}

/// Makes a container beside it, and starts it.
async fn start_member(stage: &Stage, dir: &Path, id: &str) -> Arc<Container> {
    stage.sandbox.create(member(dir, id, None)).await.unwrap();
    let container = stage.sandbox.container(id).unwrap();
    container.start("").await.unwrap();
    container
}

async fn exit_of(container: &Container) -> u32 {
    container.process("").unwrap().wait().await.unwrap().status
}

#[test]
fn containers_come_and_go_while_the_pod_lives() {
    on_stage(a(Kind::Pod), async |stage: &mut Stage, dir: PathBuf| {
        let holder = start_own(stage, &dir).await;
        let (second, third) = (start_member(stage, &dir, "c2").await, start_member(stage, &dir, "c3").await);
        stage.agent.exit("c2", 3);
        assert_eq!(exit_of(&second).await, 3);
        assert_eq!(third.process("").unwrap().status(), Status::Running);
        assert_eq!(stage.sandbox.delete("c2").await.unwrap().status, 3);
        third.kill("", KILL, true).await.unwrap();
        assert_eq!(exit_of(&third).await, 137);
        stage.sandbox.delete("c3").await.unwrap();
        // Also after the last of them.
        let again = start_member(stage, &dir, "c2").await;
        assert_eq!(again.process("").unwrap().status(), Status::Running);
        assert_eq!(holder.process("").unwrap().status(), Status::Running);
        let calls = stage.agent.calls();
        assert!(!calls.contains(&"shutdown".to_owned()), "{calls:?}");
        assert!(calls.contains(&"delete c2".to_owned()), "its files are written back: {calls:?}");
    });
}

#[test]
fn what_a_deleted_container_had_of_the_host_is_unmounted_while_the_others_run() {
    on_stage(a(Kind::Pod), async |stage: &mut Stage, dir: PathBuf| {
        let shared = dir.join("shared");
        start_own(stage, &dir).await;
        let second = start_member(stage, &dir, "c2").await;
        assert!(shared.join("c2/rootfs/hello").exists());
        second.kill("", KILL, true).await.unwrap();
        exit_of(&second).await;
        stage.sandbox.delete("c2").await.unwrap();
        assert!(!shared.join("c2").exists());
        assert!(shared.join("c1/rootfs/hello").exists());
    });
}

#[test]
fn the_end_of_its_own_container_ends_a_pod_and_every_container_in_it() {
    on_stage(a(Kind::Pod), async |stage: &mut Stage, dir: PathBuf| {
        let holder = start_own(stage, &dir).await;
        let (second, third) = (start_member(stage, &dir, "c2").await, start_member(stage, &dir, "c3").await);
        stage.agent.exit("c3", 5);
        assert_eq!(exit_of(&third).await, 5);
        stage.agent.exit("", 0);
        assert_eq!(exit_of(&holder).await, 0);
        assert_eq!(exit_of(&second).await, 137);
        assert!(!holder.guest.is_alive(), "nothing of the guest is left when the exits are published");
        assert_eq!(exit_of(&third).await, 5, "what had ended before has its own");
        assert!(stage.agent.calls().contains(&"shutdown".to_owned()));
        let late = stage.sandbox.create(member(&dir, "c4", None)).await;
        assert!(matches!(late, Err(Error::FailedPrecondition(line)) if line.contains("ending")));
        for id in ["c2", "c3", "c1"] {
            stage.sandbox.delete(id).await.unwrap();
        }
        assert!(stage.sandbox.is_empty());
        let exits = stage.published_topics().iter().filter(|topic| *topic == "/tasks/exit").count();
        assert_eq!(exits, 3, "each once");
    });
}

#[test]
fn a_group_ends_with_its_last_container() {
    on_stage(a(Kind::Group), async |stage: &mut Stage, dir: PathBuf| {
        let first = start_own(stage, &dir).await;
        let second = start_member(stage, &dir, "c2").await;
        stage.agent.exit("", 1);
        assert_eq!(exit_of(&first).await, 1);
        stage.sandbox.delete("c1").await.unwrap();
        let third = start_member(stage, &dir, "c3").await;
        stage.agent.exit("c2", 2);
        assert_eq!(exit_of(&second).await, 2);
        assert!(third.guest.is_alive());
        stage.agent.exit("c3", 3);
        assert_eq!(exit_of(&third).await, 3);
        assert!(!third.guest.is_alive());
    });
}

#[test]
fn a_create_that_fails_in_a_living_pod_is_undone_and_takes_nobody_with_it() {
    type Spoil = fn(&mut NewContainer);
    let steps: [(Script, Spoil); 4] = [
        (a(Kind::Pod), |new| new.bundle = "/nonexistent".into()),
        (a(Kind::Pod), |new| new.stdio.stdout = "/nonexistent/out".into()),
        (Script { fails: Some("create c2"), ..a(Kind::Pod) }, |_| {}),
        // That of a stranger, whose spec names another pod.
        (a(Kind::Pod), |new| {
            let spec = r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "other"}}"#;
            std::fs::write(new.bundle.join("config.json"), spec).unwrap();
        }),
    ];
    for (script, spoil) in steps {
        on_stage(script, async move |stage: &mut Stage, dir: PathBuf| {
            let holder = start_own(stage, &dir).await;
            let mut refused = member(&dir, "c2", None);
            spoil(&mut refused);
            stage.sandbox.create(refused).await.unwrap_err();
            assert!(stage.sandbox.container("c2").is_err());
            assert!(!dir.join("shared/c2").exists(), "it is undone");
            assert!(stage.sandbox.life.borrow().is_ready(), "the pod lives");
            start_member(stage, &dir, "c3").await;
            assert_eq!(holder.process("").unwrap().status(), Status::Running);
        });
    }
}

#[test]
fn a_sandbox_of_one_container_takes_no_other_whatever_that_says_of_itself() {
    on_stage(Script::default(), async |stage: &mut Stage, dir: PathBuf| {
        // Not even before its own.
        for _ in 0..2 {
            let refused = stage.sandbox.create(member(&dir, "c2", None)).await;
            let Err(Error::FailedPrecondition(line)) = refused else { panic!("{refused:?}") };
            assert!(line.starts_with("container c2 cannot join the sandbox c1"), "{line}");
            if stage.sandbox.is_empty() {
                start_own(stage, &dir).await;
            }
        }
        assert!(stage.sandbox.life.borrow().is_ready());
        assert_eq!(stage.agent.calls(), ["create", "start"]);
    });
}

#[test]
fn a_pod_takes_no_container_before_its_own() {
    on_stage(a(Kind::Pod), async |stage: &mut Stage, dir: PathBuf| {
        let refused = stage.sandbox.create(member(&dir, "c2", None)).await;
        assert!(matches!(refused, Err(Error::FailedPrecondition(_))), "{refused:?}");
        start_own(stage, &dir).await;
        start_member(stage, &dir, "c2").await;
    });
}

#[test]
fn namespaces_of_the_pod_are_named_to_the_agent_by_their_container() {
    on_stage(a(Kind::Pod), async |stage: &mut Stage, dir: PathBuf| {
        let holder = start_own(stage, &dir).await;
        let own = stage.agent.request("c1");
        assert!(own.holds_pod && own.joins.is_empty());
        stage.sandbox.create(member(&dir, "c2", Some(holder.pid()))).await.unwrap();
        let request = stage.agent.request("c2");
        let mut joins: Vec<_> = request.joins.iter().map(|(kind, of)| (kind.as_str(), of.as_str())).collect();
        joins.sort_unstable();
        assert_eq!(joins, [("ipc", "c1"), ("uts", "c1")]);
        assert!(!request.holds_pod);
        // That of a stranger.
        let refused = stage.sandbox.create(member(&dir, "c3", Some(1))).await;
        assert!(matches!(refused, Err(Error::InvalidArgument(line)) if line.contains("/proc/1/ns/ipc")));
    });
}

#[test]
fn the_death_of_the_vmm_is_137_for_every_container() {
    on_stage(a(Kind::Pod), async |stage: &mut Stage, dir: PathBuf| {
        start_own(stage, &dir).await;
        let second = start_member(stage, &dir, "c2").await;
        let vmm = nix::unistd::Pid::from_raw(stage.vmm.try_into().unwrap());
        nix::sys::signal::kill(vmm, nix::sys::signal::SIGKILL).unwrap();
        let mut seen = Vec::new();
        for _ in 0..2 {
            let exit = stage.next::<TaskExit>("/tasks/exit").await;
            seen.push((exit.container_id, exit.exit_status));
        }
        seen.sort();
        assert_eq!(seen, [("c1".into(), 137), ("c2".into(), 137)]);
        assert_eq!(exit_of(&second).await, 137);
    });
}

#[test]
fn a_container_is_paused_only_with_its_whole_sandbox() {
    on_stage(a(Kind::Pod), async |stage: &mut Stage, dir: PathBuf| {
        let holder = start_own(stage, &dir).await;
        let second = start_member(stage, &dir, "c2").await;
        for id in ["c1", "c2"] {
            let refused = stage.sandbox.pause(id).await;
            assert!(matches!(refused, Err(Error::Unimplemented(_))), "{refused:?}");
        }
        stage.agent.exit("c2", 0);
        exit_of(&second).await;
        stage.sandbox.pause("c1").await.unwrap();
        let late = stage.sandbox.create(member(&dir, "c3", None)).await;
        assert!(matches!(late, Err(Error::FailedPrecondition(line)) if line.contains("paused")));
        holder.resume().await.unwrap();
    });
}

#[test]
fn each_container_beside_the_pods_own_has_a_process_on_the_host_and_ends_with_it() {
    on_stage(a(Kind::Pod), async |stage: &mut Stage, dir: PathBuf| {
        let holder = start_own(stage, &dir).await;
        let (second, third) = (start_member(stage, &dir, "c2").await, start_member(stage, &dir, "c3").await);
        assert_eq!(holder.pid(), stage.vmm, "the VMM's is that of the pod");
        let network = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        for member in [&second, &third] {
            assert_ne!(member.pid(), stage.vmm);
            assert_eq!(network(member.pid()), network(stage.vmm));
        }
        assert_ne!(second.pid(), third.pid());
        let pid = nix::unistd::Pid::from_raw(second.pid().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
        let exit = stage.next::<TaskExit>("/tasks/exit").await;
        assert_eq!((exit.container_id.as_str(), exit.pid, exit.exit_status), ("c2", second.pid(), 137));
        assert_eq!(exit_of(&second).await, 137);
        assert!(stage.agent.calls().contains(&"signal all c2".to_owned()));
        assert_eq!(network(third.pid()), network(holder.pid()), "the others run");
        assert_eq!(third.process("").unwrap().status(), Status::Running);
    });
}

#[test]
fn the_process_of_a_container_is_gone_when_its_exit_is_published() {
    on_stage(a(Kind::Pod), async |stage: &mut Stage, dir: PathBuf| {
        start_own(stage, &dir).await;
        let second = start_member(stage, &dir, "c2").await;
        let process = format!("/proc/{}", second.pid());
        assert!(Path::new(&process).exists());
        stage.agent.exit("c2", 0);
        assert_eq!(exit_of(&second).await, 0);
        assert!(!Path::new(&process).exists());
        assert!(!stage.agent.calls().contains(&"signal all c2".to_owned()), "nobody has killed it");
        // Of one that is never started, too.
        stage.sandbox.create(member(&dir, "c3", None)).await.unwrap();
        let process = format!("/proc/{}", stage.sandbox.container("c3").unwrap().pid());
        stage.sandbox.delete("c3").await.unwrap();
        assert!(!Path::new(&process).exists());
    });
}

#[test]
fn namespaces_of_a_container_are_known_by_its_own_process() {
    on_stage(a(Kind::Pod), async |stage: &mut Stage, dir: PathBuf| {
        start_own(stage, &dir).await;
        let target = start_member(stage, &dir, "c2").await;
        stage.sandbox.create(member(&dir, "c3", Some(target.pid()))).await.unwrap();
        let request = stage.agent.request("c3");
        assert_eq!((request.joins["ipc"].as_str(), request.joins["uts"].as_str()), ("c2", "c2"));
    });
}

#[test]
fn limits_of_a_container_are_the_hosts_only_where_the_sandbox_is_its_own() {
    for (kind, on_host) in [(Kind::Lone, true), (Kind::Pod, false), (Kind::Group, false)] {
        let script = Script { cgroup_files: &["cgroup.procs", "cpu.max", "pids.max"], ..a(kind) };
        on_stage(script, async move |stage: &mut Stage, dir: PathBuf| {
            let container = start_own(stage, &dir).await;
            let resources = r#"{"cpu":{"quota":50000}}"#;
            container.update(resources.as_bytes()).await.unwrap();
            assert!(stage.agent.calls().contains(&format!("update {resources}")));
            let of_vm = std::fs::read_to_string(dir.join("cgroup/c1/vm/cpu.max")).unwrap();
            assert_eq!(of_vm, if on_host { "50000 100000" } else { "" }, "{kind:?}");
        });
    }
}

#[test]
fn the_process_of_a_container_takes_nothing_of_what_the_vmm_may_have() {
    let script = Script { cgroup_files: &["cgroup.procs", "pids.max"], ..a(Kind::Pod) };
    on_stage(script, async |stage: &mut Stage, dir: PathBuf| {
        start_own(stage, &dir).await;
        let cgroup = dir.join("cgroup/c1/vm");
        let pids_max = || std::fs::read_to_string(cgroup.join("pids.max")).unwrap();
        let second = start_member(stage, &dir, "c2").await;
        assert_eq!(pids_max(), "66", "a vCPU, 64 and one");
        let joined = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
        assert_eq!(joined, second.pid().to_string());
        start_member(stage, &dir, "c3").await;
        assert_eq!(pids_max(), "67");
        stage.agent.exit("c2", 0);
        exit_of(&second).await;
        start_member(stage, &dir, "c4").await;
        assert_eq!(pids_max(), "67", "that of c2 is gone");
    });
}
