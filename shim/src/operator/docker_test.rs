use super::*;
use std::fs;
use std::path::Path;

fn sandbox(directory: &Path, condition: Condition) -> Sandbox {
    Sandbox {
        namespace: "default".into(),
        id: "a".into(),
        condition,
        vmm_pid: None,
        vcpus: 1,
        memory_mib: 512,
        resident_mib: None,
        addresses: Vec::new(),
        console: directory.join("console.log"),
        docker_socket: directory.join("docker.sock"),
    }
}

#[test]
fn docker_is_told_the_sandboxs_socket_before_what_it_is_to_do() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("docker.sock"), "").unwrap();
    let sandbox = sandbox(directory.path(), Condition::Running);
    let command = command(&sandbox, &["run".into(), "--rm".into()]).unwrap();
    let host = format!("unix://{}", sandbox.docker_socket.display());
    assert_eq!(command.get_program(), "docker");
    assert_eq!(command.get_args().collect::<Vec<_>>(), ["--host", &host, "run", "--rm"]);
}

#[test]
fn a_sandbox_that_cannot_be_reached_is_named_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |condition| command(&sandbox(directory.path(), condition), &[]).unwrap_err().to_string();
    assert_eq!(
        refused(Condition::Running),
        "sandbox default/a does not export its Docker socket: start it with the annotation \
         io.lazaret.docker.export=true"
    );
    for condition in [Condition::Starting, Condition::Stopped, Condition::Dead] {
        assert_eq!(refused(condition), "sandbox default/a does not run (`lazaret ps` tells)");
    }
}
