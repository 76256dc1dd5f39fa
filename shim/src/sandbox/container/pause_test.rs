use crate::error::Error;
use crate::io::Stdio;
use crate::sandbox::test_support::{PROCESS, Script, new, on_stage};
use containerd_shim_protos::events::task::TaskExit;

const TERM: u32 = 15;
const KILL: u32 = 9;

#[test]
fn a_paused_container_refuses_what_needs_its_guest_and_goes_on() {
    on_stage(Script::default(), async |stage, bundle| {
        stage.sandbox.create(new(&bundle)).await.unwrap();
        let container = stage.sandbox.container("c1").unwrap();
        assert!(matches!(container.pause().await, Err(Error::FailedPrecondition(_))), "it is not started");
        container.start("").await.unwrap();
        assert!(matches!(container.resume().await, Err(Error::FailedPrecondition(_))), "it is not paused");

        container.pause().await.unwrap();
        assert!(container.guest.is_paused());
        assert!(matches!(container.pause().await, Err(Error::FailedPrecondition(_))));
        container.exec("e1".into(), PROCESS.to_vec(), Stdio::default()).unwrap();
        let refused = container.start("e1").await.unwrap_err().to_string();
        assert!(refused.contains("paused"), "{refused}");
        assert!(matches!(container.update(b"{}").await, Err(Error::FailedPrecondition(_))));

        container.resume().await.unwrap();
        container.exec("e2".into(), PROCESS.to_vec(), Stdio::default()).unwrap();
        container.start("e2").await.unwrap();
        let topics = stage.published_topics();
        let of = |topic: &str| topics.iter().filter(|published| *published == topic).count();
        assert_eq!((of("/tasks/paused"), of("/tasks/resumed")), (1, 1), "{topics:?}");
    });
}

#[test]
fn a_signal_reaches_a_paused_container_when_it_goes_on() {
    on_stage(Script::default(), async |stage, bundle| {
        stage.sandbox.create(new(&bundle)).await.unwrap();
        let container = stage.sandbox.container("c1").unwrap();
        container.start("").await.unwrap();
        container.pause().await.unwrap();
        container.kill("", TERM, false).await.unwrap();
        assert!(!stage.agent.calls().contains(&"signal".to_owned()));
        container.resume().await.unwrap();
        assert_eq!(stage.next::<TaskExit>("/tasks/exit").await.exit_status, 128 + TERM);
    });
}

#[test]
fn sigkill_ends_a_paused_container() {
    on_stage(Script::default(), async |stage, bundle| {
        stage.sandbox.create(new(&bundle)).await.unwrap();
        let container = stage.sandbox.container("c1").unwrap();
        container.start("").await.unwrap();
        container.pause().await.unwrap();
        container.kill("", KILL, true).await.unwrap();
        assert_eq!(stage.next::<TaskExit>("/tasks/exit").await.exit_status, 137);
    });
}

#[test]
fn a_sandbox_that_is_paused_is_ended_as_another() {
    on_stage(Script::default(), async |stage, bundle| {
        stage.sandbox.create(new(&bundle)).await.unwrap();
        let container = stage.sandbox.container("c1").unwrap();
        container.start("").await.unwrap();
        container.pause().await.unwrap();
        stage.sandbox.end().await;
        assert!(stage.agent.calls().contains(&"shutdown".to_owned()), "the guest wrote back");
    });
}
