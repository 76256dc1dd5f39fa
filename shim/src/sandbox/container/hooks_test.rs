use super::*;
use std::fs;
use std::time::Instant;

/// Hooks that are lines for a shell, in a bundle.
fn hooks(bundle: &Path, spec: Value) -> Hooks {
    let spec = json!({ "ociVersion": "1.1.0", "hooks": spec, "annotations": { "a": "b" } });
    Hooks::of(&Spec::parse(spec.to_string().as_bytes()).unwrap(), "c1", bundle)
}

fn shell(line: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", line], "env": ["WHO=hook"] })
}

#[tokio::test]
async fn a_hook_has_the_state_as_its_input_its_environment_and_the_bundle_as_its_directory() {
    let bundle = tempfile::tempdir().unwrap();
    let hooks = hooks(bundle.path(), json!({ "prestart": [shell("cat >state; echo $WHO >who")] }));
    hooks.run(When::Prestart, 42).await.unwrap();
    let state: Value = serde_json::from_slice(&fs::read(bundle.path().join("state")).unwrap()).unwrap();
    let expected = json!({
        "ociVersion": "1.1.0", "id": "c1", "status": "creating", "pid": 42, "bundle": bundle.path(), "annotations": { "a": "b" },
    });
    assert_eq!(state, expected);
    assert_eq!(fs::read_to_string(bundle.path().join("who")).unwrap(), "hook\n");
}

#[tokio::test]
async fn hooks_run_in_their_order_and_at_their_moment() {
    let bundle = tempfile::tempdir().unwrap();
    let hooks = hooks(
        bundle.path(),
        json!({ "poststart": [shell("echo 1 >>log"), shell("echo 2 >>log")], "poststop": [shell("echo 3 >>log")] }),
    );
    hooks.run(When::Prestart, 1).await.unwrap();
    assert!(!bundle.path().join("log").exists());
    hooks.run(When::Poststart, 1).await.unwrap();
    hooks.run(When::Poststop, 0).await.unwrap();
    assert_eq!(fs::read_to_string(bundle.path().join("log")).unwrap(), "1\n2\n3\n");
}

#[tokio::test]
async fn the_first_hook_that_fails_is_named_with_its_last_words_and_is_the_last_that_runs() {
    let bundle = tempfile::tempdir().unwrap();
    let failing = shell("echo first >&2; echo no such bridge >&2; exit 3");
    let hooks = hooks(bundle.path(), json!({ "createRuntime": [failing, shell("echo >after")] }));
    let error = hooks.run(When::CreateRuntime, 1).await.unwrap_err().to_string();
    assert!(error.contains("createRuntime hook /bin/sh: exit status: 3: no such bridge"), "{error}");
    assert!(!bundle.path().join("after").exists());
}

#[tokio::test]
async fn a_hook_that_does_not_end_is_killed_at_its_time() {
    let bundle = tempfile::tempdir().unwrap();
    let mut hook = shell("echo $$ >pid; exec sleep 1000");
    hook["timeout"] = json!(1);
    let began = Instant::now();
    let error = hooks(bundle.path(), json!({ "prestart": [hook] })).run(When::Prestart, 1).await.unwrap_err();
    assert!(error.to_string().contains("does not end within 1 s"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(60));
    let pid = fs::read_to_string(bundle.path().join("pid")).unwrap();
    let gone = || !Path::new("/proc").join(pid.trim()).join("exe").exists();
    for _ in 0..200 {
        if gone() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("process {pid} still runs");
}

#[tokio::test]
async fn a_hook_without_an_absolute_path_is_refused() {
    let bundle = tempfile::tempdir().unwrap();
    let hooks = hooks(bundle.path(), json!({ "prestart": [{ "path": "sh" }] }));
    assert!(matches!(hooks.run(When::Prestart, 1).await, Err(Error::InvalidArgument(_))));
}
