use super::test_support::{Killing, PROCESS, Script, Stage, new, on_stage};
use super::*;
use crate::io::Stdio;
use crate::state::ProcessId;
use lazaret_agent_api::agent::stream_header::Kind;

#[test]
fn a_create_that_fails_at_any_step_undoes_all_before_it_and_ends_the_vm() {
    type Step = (Script, fn(&mut NewContainer), &'static [&'static str]);
    let steps: [Step; 5] = [
        (Script::default(), |new| new.bundle = "/nonexistent".into(), &[]),
        (Script::default(), |new| new.stdio.stdout = "/nonexistent/out".into(), &[]),
        (Script { fails: Some("create"), ..Script::default() }, |_| {}, &["create"]),
        (Script { refuses: Some(Kind::STDOUT), ..Script::default() }, |_| {}, &["create", "delete"]),
        (Script { refuses: Some(Kind::STDIN), ..Script::default() }, |_| {}, &["create", "delete"]),
    ];
    for (script, spoil, calls) in steps {
        on_stage(script, async move |stage: &mut Stage, bundle: PathBuf| {
            let vmm = ProcessId::of(stage.vmm.try_into().unwrap()).unwrap();
            let mut request = new(&bundle);
            spoil(&mut request);
            stage.sandbox.create(request).await.unwrap_err();
            assert_eq!(stage.agent.calls(), calls);
            assert!(stage.sandbox.container("c1").is_err());
            assert!(stage.sandbox.is_empty(), "Shutdown finds nothing left");
            assert_eq!(stage.published_topics(), <[String; 0]>::default());
            // By itself: nobody asks for it.
            tokio::task::spawn_blocking(move || vmm.wait(20_000)).await.unwrap().unwrap();
        });
    }
}

#[test]
fn a_life_is_told_in_order_with_execs_before_their_container() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        let sandbox = stage.sandbox.clone();
        sandbox.create(new(&bundle)).await.unwrap();
        let container = sandbox.container("c1").unwrap();
        container.start("").await.unwrap();
        container.exec("e1".into(), PROCESS.to_vec(), Stdio::default()).unwrap();
        container.start("e1").await.unwrap();
        // The container's own process is the first to be heard of.
        stage.agent.exit("", 3);
        tokio::task::yield_now().await;
        stage.agent.exit("e1", 137);
        assert_eq!(container.process("").unwrap().wait().await.unwrap().status, 3);
        assert_eq!(container.delete_exec("e1").await.unwrap().status, 137);
        assert_eq!(sandbox.delete("c1").await.unwrap().status, 3);
        let expected = ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"];
        assert_eq!(stage.published_topics(), expected.map(|topic| format!("/tasks/{topic}")));
        assert_eq!(stage.agent.calls(), ["create", "start", "create e1", "start e1", "stats", "shutdown"]);
    });
}

#[test]
fn an_exit_that_overtakes_its_start_is_told_after_it() {
    let script = Script { ends_before_start_answers: true, ..Script::default() };
    on_stage(script, async |stage: &mut Stage, bundle: PathBuf| {
        stage.sandbox.create(new(&bundle)).await.unwrap();
        let container = stage.sandbox.container("c1").unwrap();
        container.start("").await.unwrap();
        assert_eq!(container.process("").unwrap().wait().await.unwrap().status, 7);
        assert_eq!(stage.published_topics(), ["/tasks/create", "/tasks/start", "/tasks/exit"]);
    });
}

#[test]
fn a_guest_that_does_not_kill_is_ended() {
    for killing in [Killing::Pretended, Killing::Ignored] {
        let script = Script { killing, ..Script::default() };
        on_stage(script, async |stage: &mut Stage, bundle: PathBuf| {
            stage.sandbox.create(new(&bundle)).await.unwrap();
            let container = stage.sandbox.container("c1").unwrap();
            container.start("").await.unwrap();
            container.kill("", libc::SIGKILL.unsigned_abs(), false).await.unwrap();
            assert_eq!(container.process("").unwrap().wait().await.unwrap().status, 137);
        });
    }
}

#[test]
fn a_guest_that_denies_a_running_process_is_ended() {
    let script = Script { forgets: true, ..Script::default() };
    on_stage(script, async |stage: &mut Stage, bundle: PathBuf| {
        stage.sandbox.create(new(&bundle)).await.unwrap();
        let container = stage.sandbox.container("c1").unwrap();
        assert_eq!(container.process("").unwrap().wait().await.unwrap().status, 137);
    });
}

#[test]
fn the_vmms_death_is_137_for_every_process_and_told_once() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        stage.sandbox.create(new(&bundle)).await.unwrap();
        let container = stage.sandbox.container("c1").unwrap();
        container.start("").await.unwrap();
        container.exec("e1".into(), PROCESS.to_vec(), Stdio::default()).unwrap();
        container.start("e1").await.unwrap();
        let vmm = nix::unistd::Pid::from_raw(stage.vmm.try_into().unwrap());
        nix::sys::signal::kill(vmm, nix::sys::signal::SIGKILL).unwrap();
        for exec in ["e1", ""] {
            assert_eq!(container.process(exec).unwrap().wait().await.unwrap().status, 137);
        }
        assert!(matches!(container.kill("", 15, false).await, Err(Error::NotFound(_))));
        assert!(matches!(container.start("e1").await, Err(Error::FailedPrecondition(_))));
        stage.sandbox.delete("c1").await.unwrap();
        let exits = stage.published_topics().iter().filter(|topic| *topic == "/tasks/exit").count();
        assert_eq!(exits, 2);
    });
}

#[test]
fn calls_in_the_wrong_state_have_the_right_code() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        let sandbox = stage.sandbox.clone();
        assert!(matches!(sandbox.container("c1").map(drop), Err(Error::NotFound(_))));
        sandbox.create(new(&bundle)).await.unwrap();
        assert!(matches!(sandbox.create(new(&bundle)).await, Err(Error::AlreadyExists(_))));
        let second = NewContainer { id: "c2".into(), ..new(&bundle) };
        assert!(matches!(sandbox.create(second).await, Err(Error::FailedPrecondition(_))));
        let container = sandbox.container("c1").unwrap();
        assert!(matches!(container.process("e1").map(drop), Err(Error::NotFound(_))));
        container.exec("e1".into(), PROCESS.to_vec(), Stdio::default()).unwrap();
        let again = container.exec("e1".into(), PROCESS.to_vec(), Stdio::default());
        assert!(matches!(again, Err(Error::AlreadyExists(_))));
        assert!(
            matches!(container.start("e1").await, Err(Error::FailedPrecondition(_))),
            "before its container"
        );
        assert!(matches!(container.kill("e1", 9, false).await, Err(Error::FailedPrecondition(_))));
        assert!(matches!(container.resize("", 1, 1).await, Err(Error::FailedPrecondition(_))), "no terminal");
        container.start("").await.unwrap();
        assert!(matches!(container.start("").await, Err(Error::FailedPrecondition(_))));
        assert!(matches!(sandbox.delete("c1").await, Err(Error::FailedPrecondition(_))));
        container.delete_exec("e1").await.unwrap();
        assert!(matches!(container.delete_exec("e1").await, Err(Error::NotFound(_))));
        container.kill("", 15, false).await.unwrap();
        assert_eq!(container.process("").unwrap().wait().await.unwrap().status, 143);
        assert!(matches!(container.kill("", 9, false).await, Err(Error::NotFound(_))));
        let late = container.exec("e2".into(), PROCESS.to_vec(), Stdio::default());
        assert!(matches!(late, Err(Error::FailedPrecondition(_))));
        sandbox.delete("c1").await.unwrap();
        assert!(matches!(sandbox.delete("c1").await, Err(Error::NotFound(_))));
    });
}

#[test]
fn an_id_that_is_no_identifier_is_refused_before_the_guest_is_asked() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        let too_long = "x".repeat(77);
        for bad in ["", "..", "a/b", &too_long] {
            let container = NewContainer { id: bad.into(), ..new(&bundle) };
            assert!(
                matches!(stage.sandbox.create(container).await, Err(Error::InvalidArgument(_))),
                "{bad:?}"
            );
        }
        assert!(stage.sandbox.is_empty(), "no container is being made");
        stage.sandbox.create(new(&bundle)).await.unwrap();
        let container = stage.sandbox.container("c1").unwrap();
        for bad in ["", "..", "a/b", &too_long] {
            let refused = container.exec(bad.into(), PROCESS.to_vec(), Stdio::default());
            assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{bad:?}");
        }
        assert_eq!(stage.agent.calls(), ["create"]);
        assert_eq!(stage.published_topics(), ["/tasks/create"]);
    });
}

#[test]
fn an_exec_that_cannot_be_started_has_no_exit_event_and_can_be_deleted() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        stage.sandbox.create(new(&bundle)).await.unwrap();
        let container = stage.sandbox.container("c1").unwrap();
        container.start("").await.unwrap();
        let stdio = Stdio { stdout: "/nonexistent/out".into(), ..Stdio::default() };
        container.exec("e1".into(), PROCESS.to_vec(), stdio).unwrap();
        assert!(matches!(container.start("e1").await, Err(Error::InvalidArgument(_))));
        assert_eq!(container.process("e1").unwrap().wait().await.unwrap().status, 255);
        container.delete_exec("e1").await.unwrap();
        assert_eq!(stage.published_topics(), ["/tasks/create", "/tasks/start", "/tasks/exec-added"]);
    });
}

#[test]
fn a_container_that_was_never_started_is_deleted_with_an_exit() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        stage.sandbox.create(new(&bundle)).await.unwrap();
        assert_eq!(stage.sandbox.delete("c1").await.unwrap().status, 137);
        assert_eq!(stage.published_topics(), ["/tasks/create", "/tasks/exit", "/tasks/delete"]);
    });
}

#[test]
fn the_end_of_a_sandbox_ends_what_runs_in_it_and_tells_it() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        stage.sandbox.create(new(&bundle)).await.unwrap();
        stage.sandbox.container("c1").unwrap().start("").await.unwrap();
        stage.sandbox.end().await;
        assert_eq!(stage.agent.calls(), ["create", "start", "shutdown"]);
        assert_eq!(stage.published_topics(), ["/tasks/create", "/tasks/start", "/tasks/exit"]);
        assert!(matches!(stage.sandbox.create(new(&bundle)).await, Err(Error::FailedPrecondition(_))));
    });
}

#[test]
fn what_outlives_a_sandbox_is_written_back_and_let_go_of_before_delete_answers() {
    let script = Script { keeps_data: true, ..Script::default() };
    on_stage(script, async |stage: &mut Stage, bundle: PathBuf| {
        let vmm = ProcessId::of(stage.vmm.try_into().unwrap()).unwrap();
        stage.sandbox.create(new(&bundle)).await.unwrap();
        stage.sandbox.container("c1").unwrap().start("").await.unwrap();
        stage.agent.exit("", 3);
        let container = stage.sandbox.container("c1").unwrap();
        container.process("").unwrap().wait().await.unwrap();
        assert_eq!(stage.sandbox.delete("c1").await.unwrap().status, 3);
        assert_eq!(stage.agent.calls(), ["create", "start", "stats", "shutdown"]);
        assert!(!vmm.is_running());
        assert!(stage.sandbox.is_empty());
        assert!(matches!(stage.sandbox.create(new(&bundle)).await, Err(Error::FailedPrecondition(_))));
    });
}

#[test]
fn the_docker_socket_is_served_until_the_sandbox_is_ended() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        stage.sandbox.create(new(&bundle)).await.unwrap();
        let guest = stage.sandbox.container("c1").unwrap().guest.clone();
        let path = bundle.join("docker.sock");
        let listener = docker::socket::listen_at(&path).unwrap();
        let serving = tokio::spawn(stage.sandbox.clone().export_docker(listener, guest));
        let socket = path.clone();
        let talk = move || {
            let mut client = UnixStream::connect(socket).unwrap();
            client.write_all(b"hello").unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            answer
        };
        assert_eq!(tokio::task::spawn_blocking(talk).await.unwrap(), "hello");
        let mut client = UnixStream::connect(&path).unwrap();
        stage.sandbox.end().await;
        serving.await.unwrap();
        assert!(UnixStream::connect(&path).is_err());
        assert!(!matches!(client.read(&mut [0]), Ok(1..)), "the end, or a reset");
    });
}

#[test]
fn a_container_whose_creator_left_is_taken_away() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        stage.sandbox.create(new(&bundle)).await.unwrap();
        stage.sandbox.discard("c1").await;
        assert!(stage.sandbox.container("c1").is_err());
        assert_eq!(stage.published_topics(), ["/tasks/create", "/tasks/exit", "/tasks/delete"]);
    });
}
