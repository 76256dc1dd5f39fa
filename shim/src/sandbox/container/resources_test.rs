use crate::error::Error;
use crate::sandbox::test_support::{Script, new, on_stage};
use containerd_shim_protos::events::task::TaskExit;

const KILL: u32 = 9;

#[test]
fn numbers_are_those_of_the_guest_and_after_its_end_the_last_ones() {
    on_stage(Script::default(), async |stage, bundle| {
        stage.sandbox.create(new(&bundle)).await.unwrap();
        let container = stage.sandbox.container("c1").unwrap();
        let stats = container.stats().await.unwrap();
        assert_eq!(
            (stats.memory.usage, stats.memory.usage_limit),
            (5 << 20, 256 << 20),
            "no more than the VM has"
        );
        container.start("").await.unwrap();
        container.pause().await.unwrap();
        assert_eq!(container.stats().await.unwrap(), stats, "while nobody can be asked");
        container.kill("", KILL, true).await.unwrap();
        stage.next::<TaskExit>("/tasks/exit").await;
        assert_eq!(container.stats().await.unwrap(), stats, "until Delete");
        stage.sandbox.delete("c1").await.unwrap();
        assert!(matches!(stage.sandbox.container("c1"), Err(Error::NotFound(_))));
    });
}

#[test]
fn the_last_numbers_are_taken_before_the_guest_goes() {
    on_stage(Script::default(), async |stage, bundle| {
        stage.sandbox.create(new(&bundle)).await.unwrap();
        let container = stage.sandbox.container("c1").unwrap();
        container.start("").await.unwrap();
        stage.agent.exit("", 0);
        stage.next::<TaskExit>("/tasks/exit").await;
        container.stats().await.unwrap();
        let calls = stage.agent.calls();
        let at = |call: &str| calls.iter().position(|made| made == call);
        assert!(at("stats") < at("shutdown"), "{calls:?}");
    });
}

#[test]
fn an_update_is_the_guests_and_within_its_memory() {
    on_stage(Script::default(), async |stage, bundle| {
        stage.sandbox.create(new(&bundle)).await.unwrap();
        let container = stage.sandbox.container("c1").unwrap();
        let resources = r#"{"memory":{"limit":134217728}}"#;
        container.update(resources.as_bytes()).await.unwrap();
        assert!(stage.agent.calls().contains(&format!("update {resources}")));

        let large = br#"{"memory":{"limit":268435457}}"#;
        let error = container.update(large).await.unwrap_err();
        assert!(matches!(error, Error::FailedPrecondition(_)), "{error}");
        assert!(error.to_string().contains("io.lazaret.vm.memory"), "{error}");
        assert!(matches!(container.update(b"no JSON").await, Err(Error::InvalidArgument(_))));
    });
}

#[test]
fn each_oom_kill_is_published_once_and_before_the_exit() {
    on_stage(Script::default(), async |stage, bundle| {
        stage.sandbox.create(new(&bundle)).await.unwrap();
        let container = stage.sandbox.container("c1").unwrap();
        container.start("").await.unwrap();
        stage.agent.oom_kill(1);
        let next =
            async |stage: &mut crate::sandbox::test_support::Stage| stage.events.recv().await.unwrap().topic;
        while next(stage).await != "/tasks/oom" {}
        // At once with the exit, so that the answer to the wait may be the first to tell.
        stage.agent.oom_kill(2);
        stage.agent.exit("", 137);
        assert_eq!(next(stage).await, "/tasks/oom");
        assert_eq!(next(stage).await, "/tasks/exit");
    });
}
