use super::*;
use crate::state::Record;

fn host(sandboxes: &[(&str, &str, Record)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (namespace, id, record) in sandboxes {
        let state = StateDir::new(root.path(), namespace, id);
        state.create().unwrap();
        state.save(record).unwrap();
    }
    root
}

fn ourselves() -> Option<ProcessId> {
    Some(ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap())
}

const GONE: Option<ProcessId> = Some(ProcessId { pid: 1, start_time: u64::MAX });

#[test]
fn a_sandbox_is_what_its_processes_are() {
    let record = |shim, vmm| Record { shim, vmm, vcpus: 2, memory_mib: 512, ..Record::default() };
    let root = host(&[
        ("a", "running", record(ourselves(), ourselves())),
        ("a", "starting", record(ourselves(), None)),
        ("a", "stopped", record(ourselves(), GONE)),
        ("b", "dead", record(GONE, GONE)),
    ]);
    let found = list(root.path());
    let seen: Vec<_> = found.iter().map(|s| (s.namespace.as_str(), s.id.as_str(), s.condition)).collect();
    assert_eq!(
        seen,
        [
            ("a", "running", Condition::Running),
            ("a", "starting", Condition::Starting),
            ("a", "stopped", Condition::Stopped),
            ("b", "dead", Condition::Dead),
        ]
    );
    assert!(found[0].resident_mib.is_some() && found[3].vmm_pid.is_none());
    let table = render(&found);
    assert_eq!(table.lines().count(), 5);
    assert!(table.lines().nth(1).unwrap().contains("512 MiB"));
}

#[test]
fn a_sandbox_is_found_by_its_id_or_an_unmistakable_beginning() {
    let root = host(&[
        ("a", "web", Record::default()),
        ("a", "web-2", Record::default()),
        ("b", "db", Record::default()),
        ("c", "db", Record::default()),
    ]);
    let find = |namespace, id| find(root.path(), namespace, id).map(|found| (found.namespace, found.id));
    assert_eq!(find(None, "web").unwrap(), ("a".into(), "web".into()));
    assert_eq!(find(None, "web-").unwrap(), ("a".into(), "web-2".into()));
    assert_eq!(find(Some("c"), "d").unwrap(), ("c".into(), "db".into()));
    assert!(matches!(find(None, "db"), Err(FindError::Many { names, .. }) if names == ["b/db", "c/db"]));
    assert!(matches!(find(None, "mail"), Err(FindError::None(_))));
}

#[test]
fn a_host_without_sandboxes_has_an_empty_list() {
    assert_eq!(list(Path::new("/nonexistent")), []);
    assert_eq!(render(&[]).lines().count(), 1);
}
