use super::*;
use crate::state::Record;
use std::os::unix::net::UnixListener;

/// A sandbox `pod` whose record is this, or that has none.
fn check(record: impl FnOnce(&Path) -> Option<Record>, answers: bool) -> Result<(), StartError> {
    let root = tempfile::tempdir().unwrap();
    let state = StateDir::new(root.path(), "default", "pod");
    state.create().unwrap();
    let socket = root.path().join("socket");
    if let Some(record) = record(&socket) {
        state.save(&record).unwrap();
    }
    let _listener = answers.then(|| UnixListener::bind(&socket).unwrap());
    check_sandbox(&state, &socket, "pod", "c1")
}

fn record(shared: bool) -> impl FnOnce(&Path) -> Option<Record> {
    move |socket| Some(Record { shared, socket: socket.into(), ..Record::default() })
}

#[test]
fn a_sandbox_that_is_shared_and_answers_is_joined() {
    check(record(true), true).unwrap();
}

#[test]
fn a_sandbox_that_does_not_answer_is_none() {
    let refused = check(record(true), false).unwrap_err();
    assert_eq!(refused.to_string(), "the sandbox pod that container c1 is to join does not run");
}

#[test]
fn a_sandbox_of_one_container_or_of_another_containerd_is_not_joined() {
    let of_another = |_: &Path| Some(Record { shared: true, socket: "/other".into(), ..Record::default() });
    for refused in [check(record(false), true), check(of_another, true), check(|_| None, true)] {
        let line = refused.unwrap_err().to_string();
        assert!(
            line.starts_with("container c1 cannot join the sandbox pod") && !line.contains('\n'),
            "{line}"
        );
    }
}
