//! What containerd counts on, call by call (its runtime v2 API), against a scripted guest.

use super::*;
use crate::sandbox::test_support::{Killing, PROCESS, Script, Stage, on_stage};
use containerd_shim_protos::events::task::{TaskCreate, TaskDelete, TaskExit};
use protobuf::well_known_types::any::Any;
use std::path::{Path, PathBuf};
use ttrpc::Code;

fn service(stage: &Stage) -> TaskService {
    TaskService::new(stage.sandbox.clone(), watch::channel(false).0)
}

fn context() -> TtrpcContext {
    TtrpcContext::default()
}

fn code<T>(answer: ttrpc::Result<T>) -> Option<Code> {
    match answer {
        Ok(_) => None,
        Err(ttrpc::Error::RpcStatus(status)) => Some(status.code()),
        Err(error) => panic!("{error}"),
    }
}

fn create(bundle: &Path) -> api::CreateTaskRequest {
    let pipe = |name: &str| bundle.join(name).display().to_string();
    api::CreateTaskRequest {
        id: "c1".into(),
        bundle: bundle.display().to_string(),
        stdin: pipe("in"),
        stdout: pipe("out"),
        ..Default::default()
    }
}

fn start(exec: &str) -> api::StartRequest {
    api::StartRequest { id: "c1".into(), exec_id: exec.into(), ..Default::default() }
}

fn state(exec: &str) -> api::StateRequest {
    api::StateRequest { id: "c1".into(), exec_id: exec.into(), ..Default::default() }
}

fn exec(exec: &str) -> api::ExecProcessRequest {
    let spec = Any { value: PROCESS.to_vec(), ..Default::default() };
    api::ExecProcessRequest {
        id: "c1".into(),
        exec_id: exec.into(),
        spec: Some(spec).into(),
        ..Default::default()
    }
}

fn kill(exec: &str, signal: i32, all: bool) -> api::KillRequest {
    let signal = signal.unsigned_abs();
    api::KillRequest { id: "c1".into(), exec_id: exec.into(), signal, all, ..Default::default() }
}

fn wait(exec: &str) -> api::WaitRequest {
    api::WaitRequest { id: "c1".into(), exec_id: exec.into(), ..Default::default() }
}

fn delete(exec: &str) -> api::DeleteRequest {
    api::DeleteRequest { id: "c1".into(), exec_id: exec.into(), ..Default::default() }
}

fn pids() -> api::PidsRequest {
    api::PidsRequest { id: "c1".into(), ..Default::default() }
}

fn connect(id: &str) -> api::ConnectRequest {
    api::ConnectRequest { id: id.into(), ..Default::default() }
}

/// Runs `test` on a container that runs.
fn while_running(
    script: Script,
    test: impl AsyncFnOnce(&mut Stage, TaskService, TtrpcContext) + Send + 'static,
) {
    on_stage(script, async move |stage: &mut Stage, bundle: PathBuf| {
        let (service, context) = (service(stage), context());
        service.create(&context, create(&bundle)).await.unwrap();
        service.start(&context, start("")).await.unwrap();
        test(stage, service, context).await;
    });
}

#[test]
fn the_service_is_served_under_the_names_of_both_versions() {
    on_stage(Script::default(), async |stage: &mut Stage, _: PathBuf| {
        let services = service(stage).services();
        let mut names: Vec<_> = services.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["containerd.task.v2.Task", "containerd.task.v3.Task"]);
    });
}

#[test]
fn every_call_for_a_container_that_is_not_there_is_not_found_but_connect() {
    on_stage(Script::default(), async |stage: &mut Stage, _: PathBuf| {
        let (s, c) = (service(stage), context());
        let answers = [
            code(s.start(&c, start("")).await),
            code(s.state(&c, state("")).await),
            code(s.exec(&c, exec("e1")).await),
            code(s.kill(&c, kill("", 9, false)).await),
            code(s.wait(&c, wait("")).await),
            code(s.delete(&c, delete("")).await),
            code(s.pids(&c, pids()).await),
            code(s.resize_pty(&c, api::ResizePtyRequest { id: "c1".into(), ..Default::default() }).await),
            code(s.close_io(&c, api::CloseIORequest { id: "c1".into(), ..Default::default() }).await),
        ];
        assert_eq!(answers, [Some(Code::NOT_FOUND); 9]);
    });
}

#[test]
fn connect_always_answers_with_pid_0_for_a_container_that_is_not_there() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        let (service, context) = (service(stage), context());
        let none = service.connect(&context, connect("c1")).await.unwrap();
        assert_eq!((none.shim_pid, none.task_pid), (std::process::id(), 0));
        service.create(&context, create(&bundle)).await.unwrap();
        // Where containerd has the task's pid from after Create.
        assert_eq!(service.connect(&context, connect("c1")).await.unwrap().task_pid, stage.vmm);
        stage.sandbox.end().await;
        assert_eq!(service.connect(&context, connect("c1")).await.unwrap().task_pid, 0);
    });
}

#[test]
fn a_create_event_has_the_bundle_the_rootfs_the_stdio_and_the_pid() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        let mut request = create(&bundle);
        request.rootfs.push(Mount {
            type_: "bind".into(),
            source: bundle.join("root").display().to_string(),
            options: vec!["rbind".into()],
            ..Default::default()
        });
        let answer = service(stage).create(&context(), request.clone()).await.unwrap();
        assert_eq!(answer.pid, stage.vmm);
        let event: TaskCreate = stage.next("/tasks/create").await;
        assert_eq!((event.container_id.as_str(), event.pid), ("c1", stage.vmm));
        assert_eq!(event.bundle, request.bundle);
        assert_eq!(event.rootfs, request.rootfs);
        assert_eq!((&event.io.stdin, &event.io.stdout), (&request.stdin, &request.stdout));
    });
}

#[test]
fn a_create_of_an_id_that_is_taken_already_exists() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        let (service, context) = (service(stage), context());
        service.create(&context, create(&bundle)).await.unwrap();
        assert_eq!(code(service.create(&context, create(&bundle)).await), Some(Code::ALREADY_EXISTS));
        let second = api::CreateTaskRequest { id: "c2".into(), ..create(&bundle) };
        assert_eq!(code(service.create(&context, second).await), Some(Code::FAILED_PRECONDITION));
        assert!(code(service.state(&context, state("")).await).is_none(), "the first one is as it was");
    });
}

#[test]
fn state_tells_where_a_task_is_and_repeats_its_stdio_and_bundle() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        let (service, context) = (service(stage), context());
        service.create(&context, create(&bundle)).await.unwrap();
        let created = service.state(&context, state("")).await.unwrap();
        let expected = create(&bundle);
        assert_eq!(created.status.enum_value(), Ok(TaskStatus::CREATED));
        assert_eq!(
            (&created.stdin, &created.stdout, &created.bundle),
            (&expected.stdin, &expected.stdout, &expected.bundle)
        );
        assert_eq!((created.pid, created.exited_at.is_some()), (stage.vmm, false));
        service.start(&context, start("")).await.unwrap();
        let running = service.state(&context, state("")).await.unwrap();
        assert_eq!(running.status.enum_value(), Ok(TaskStatus::RUNNING));
        // Where containerd has the task's pid from after Start.
        assert_eq!((running.pid, running.exited_at.is_some()), (stage.vmm, false));
        stage.agent.exit("", 3);
        service.wait(&context, wait("")).await.unwrap();
        let stopped = service.state(&context, state("")).await.unwrap();
        assert_eq!(stopped.status.enum_value(), Ok(TaskStatus::STOPPED));
        assert_eq!((stopped.exit_status, stopped.exited_at.is_some()), (3, true));
    });
}

#[test]
fn state_answers_right_after_the_start_of_a_process_that_ended_at_once() {
    let script = Script { ends_before_start_answers: true, ..Script::default() };
    while_running(script, async |_, service, context| {
        let state = service.state(&context, state("")).await.unwrap();
        assert_ne!(state.status.enum_value(), Ok(TaskStatus::CREATED));
    });
}

#[test]
fn exec_only_registers() {
    while_running(Script::default(), async |stage, service, context| {
        service.exec(&context, exec("e1")).await.unwrap();
        assert_eq!(stage.agent.calls(), ["create", "start"], "the guest has not heard of it");
        let state = service.state(&context, state("e1")).await.unwrap();
        assert_eq!(state.status.enum_value(), Ok(TaskStatus::CREATED));
        assert_eq!(code(service.exec(&context, exec("e1")).await), Some(Code::ALREADY_EXISTS));
        assert_eq!(stage.published_topics(), ["/tasks/create", "/tasks/start", "/tasks/exec-added"]);
    });
}

#[test]
fn kill_does_not_wait_for_the_exit() {
    let script = Script { killing: Killing::Pretended, ..Script::default() };
    while_running(script, async |_, service, context| {
        service.kill(&context, kill("", libc::SIGTERM, false)).await.unwrap();
        let state = service.state(&context, state("")).await.unwrap();
        assert_eq!(state.status.enum_value(), Ok(TaskStatus::RUNNING));
    });
}

#[test]
fn kill_with_all_signals_every_process_of_the_container() {
    let script = Script { killing: Killing::Pretended, ..Script::default() };
    while_running(script, async |stage, service, context| {
        service.kill(&context, kill("", libc::SIGTERM, true)).await.unwrap();
        service.kill(&context, kill("", libc::SIGTERM, false)).await.unwrap();
        assert_eq!(stage.agent.calls(), ["create", "start", "signal all", "signal"]);
    });
}

#[test]
fn kill_of_what_has_ended_is_not_found_and_of_an_exec_that_is_not_started_a_failed_precondition() {
    while_running(Script::default(), async |stage, service, context| {
        service.exec(&context, exec("e1")).await.unwrap();
        assert_eq!(code(service.kill(&context, kill("e1", 9, false)).await), Some(Code::FAILED_PRECONDITION));
        stage.agent.exit("", 0);
        service.wait(&context, wait("")).await.unwrap();
        let Err(ttrpc::Error::RpcStatus(status)) = service.kill(&context, kill("", 9, false)).await else {
            panic!("killed")
        };
        assert_eq!(status.code(), Code::NOT_FOUND);
        assert_eq!(status.message, "process already finished", "as runc's shim says it");
    });
}

#[test]
fn wait_answers_all_who_wait_and_until_delete_those_who_come_later() {
    while_running(Script::default(), async |stage, service, context| {
        let waiting = (0..3).map(|_| {
            let service = service.clone();
            tokio::spawn(async move { service.wait(&TtrpcContext::default(), wait("")).await })
        });
        let waiting: Vec<_> = waiting.collect();
        tokio::task::yield_now().await;
        stage.agent.exit("", 3);
        let mut answers = Vec::new();
        for waiter in waiting {
            answers.push(waiter.await.unwrap().unwrap());
        }
        let late = service.wait(&context, wait("")).await.unwrap();
        assert_eq!(late.exit_status, 3);
        assert_eq!(answers, [late.clone(), late.clone(), late]);
        service.delete(&context, delete("")).await.unwrap();
        assert_eq!(code(service.wait(&context, wait("")).await), Some(Code::NOT_FOUND));
    });
}

#[test]
fn delete_answers_with_the_exit_and_once() {
    while_running(Script::default(), async |stage, service, context| {
        assert_eq!(code(service.delete(&context, delete("")).await), Some(Code::FAILED_PRECONDITION));
        service.exec(&context, exec("e1")).await.unwrap();
        service.start(&context, start("e1")).await.unwrap();
        assert_eq!(code(service.delete(&context, delete("e1")).await), Some(Code::FAILED_PRECONDITION));
        stage.agent.exit("e1", 4);
        let exited = service.wait(&context, wait("e1")).await.unwrap();
        let deleted = service.delete(&context, delete("e1")).await.unwrap();
        assert_eq!((deleted.pid, deleted.exit_status), (stage.vmm, 4));
        assert_eq!(deleted.exited_at, exited.exited_at);
        stage.agent.exit("", 3);
        let exited = service.wait(&context, wait("")).await.unwrap();
        let deleted = service.delete(&context, delete("")).await.unwrap();
        assert_eq!((deleted.pid, deleted.exit_status), (stage.vmm, 3));
        assert_eq!(deleted.exited_at, exited.exited_at);
        assert_eq!(code(service.delete(&context, delete("")).await), Some(Code::NOT_FOUND));
    });
}

#[test]
fn an_exit_event_names_its_process_and_a_delete_event_the_container() {
    while_running(Script::default(), async |stage, service, context| {
        service.exec(&context, exec("e1")).await.unwrap();
        service.start(&context, start("e1")).await.unwrap();
        stage.agent.exit("e1", 4);
        let of_exec: TaskExit = stage.next("/tasks/exit").await;
        assert_eq!((of_exec.container_id.as_str(), of_exec.id.as_str()), ("c1", "e1"));
        assert_eq!((of_exec.pid, of_exec.exit_status), (stage.vmm, 4));
        stage.agent.exit("", 3);
        let own: TaskExit = stage.next("/tasks/exit").await;
        assert_eq!((own.container_id.as_str(), own.id.as_str()), ("c1", "c1"));
        assert_eq!((own.pid, own.exit_status), (stage.vmm, 3));
        service.delete(&context, delete("")).await.unwrap();
        let deleted: TaskDelete = stage.next("/tasks/delete").await;
        assert_eq!((deleted.container_id.as_str(), deleted.pid, deleted.exit_status), ("c1", stage.vmm, 3));
        assert_eq!(deleted.exited_at, own.exited_at);
    });
}

#[test]
fn pids_has_the_vmms_until_the_task_is_deleted() {
    while_running(Script::default(), async |stage, service, context| {
        let told = async || {
            let told = service.pids(&context, pids()).await.unwrap().processes;
            told.iter().map(|process| process.pid).collect::<Vec<_>>()
        };
        assert_eq!(told().await, [stage.vmm]);
        stage.agent.exit("", 0);
        service.wait(&context, wait("")).await.unwrap();
        assert_eq!(told().await, [stage.vmm], "a containerd that starts now asks how it ended");
        service.delete(&context, delete("")).await.unwrap();
        assert_eq!(code(service.pids(&context, pids()).await), Some(Code::NOT_FOUND));
    });
}

#[test]
fn a_terminal_is_resized_before_its_process_starts_too_and_what_has_none_is_not() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        let (service, context) = (service(stage), context());
        let resize =
            || api::ResizePtyRequest { id: "c1".into(), width: 80, height: 25, ..Default::default() };
        let request = api::CreateTaskRequest { terminal: true, ..create(&bundle) };
        service.create(&context, request).await.unwrap();
        service.resize_pty(&context, resize()).await.unwrap();
        service.start(&context, start("")).await.unwrap();
        service.resize_pty(&context, resize()).await.unwrap();
        assert_eq!(stage.agent.calls(), ["create", "resize", "start", "resize"]);
        service.exec(&context, exec("e1")).await.unwrap();
        let of_exec = api::ResizePtyRequest { exec_id: "e1".into(), ..resize() };
        assert_eq!(code(service.resize_pty(&context, of_exec).await), Some(Code::FAILED_PRECONDITION));
        stage.agent.exit("", 0);
        service.wait(&context, wait("")).await.unwrap();
        assert_eq!(code(service.resize_pty(&context, resize()).await), Some(Code::FAILED_PRECONDITION));
    });
}

#[test]
fn shutdown_does_nothing_while_there_is_a_container_unless_it_is_to_be_now() {
    while_running(Script::default(), async |stage, _, context| {
        let (asked, is_asked) = watch::channel(false);
        let service = TaskService::new(stage.sandbox.clone(), asked);
        let shutdown = |now| api::ShutdownRequest { id: "c1".into(), now, ..Default::default() };
        service.shutdown(&context, shutdown(false)).await.unwrap();
        assert!(!*is_asked.borrow(), "it runs");
        stage.agent.exit("", 0);
        service.wait(&context, wait("")).await.unwrap();
        service.shutdown(&context, shutdown(false)).await.unwrap();
        assert!(!*is_asked.borrow(), "it is not deleted");
        service.delete(&context, delete("")).await.unwrap();
        for _ in 0..2 {
            service.shutdown(&context, shutdown(false)).await.unwrap();
            assert!(*is_asked.borrow());
        }
    });
    while_running(Script::default(), async |stage, _, context| {
        let (asked, is_asked) = watch::channel(false);
        let service = TaskService::new(stage.sandbox.clone(), asked);
        let now = api::ShutdownRequest { id: "c1".into(), now: true, ..Default::default() };
        service.shutdown(&context, now).await.unwrap();
        assert!(*is_asked.borrow());
    });
}

#[test]
fn after_a_create_that_failed_shutdown_works() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        let (asked, is_asked) = watch::channel(false);
        let service = TaskService::new(stage.sandbox.clone(), asked);
        let request = api::CreateTaskRequest { stdout: "/nonexistent/out".into(), ..create(&bundle) };
        assert_eq!(code(service.create(&context(), request).await), Some(Code::INVALID_ARGUMENT));
        service.shutdown(&context(), api::ShutdownRequest::default()).await.unwrap();
        assert!(*is_asked.borrow());
    });
}

#[test]
fn checkpoint_is_unimplemented() {
    while_running(Script::default(), async |_, service, context| {
        let answer = service.checkpoint(&context, api::CheckpointTaskRequest::default()).await;
        assert_eq!(code(answer), Some(Code::UNIMPLEMENTED));
    });
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        let request = api::CreateTaskRequest { checkpoint: "/c".into(), ..create(&bundle) };
        assert_eq!(code(service(stage).create(&context(), request).await), Some(Code::UNIMPLEMENTED));
    });
}
