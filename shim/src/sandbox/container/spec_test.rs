use super::*;
use serde_json::json;

fn spec(value: Value) -> Spec {
    Spec::parse(&serde_json::to_vec(&value).unwrap()).unwrap()
}

fn guest(value: Value) -> (Value, Vec<String>) {
    let binds = HashMap::from([(1, PathBuf::from("/run/lazaret/shared/c1/mounts/1"))]);
    let paths = GuestPaths { root: "/run/lazaret/shared/c1/rootfs".into(), binds };
    let (bytes, notes) = spec(value).for_guest(&paths).unwrap();
    (serde_json::from_slice(&bytes).unwrap(), notes)
}

#[test]
fn the_network_namespace_is_new_a_path_or_the_hosts() {
    let network = |namespaces: Value| spec(json!({"linux": {"namespaces": namespaces}})).network_namespace();
    assert_eq!(network(json!([{"type": "network"}])), NetworkNamespace::New);
    assert_eq!(network(json!([{"type": "network", "path": ""}])), NetworkNamespace::New);
    let path = network(json!([{"type": "pid"}, {"type": "network", "path": "/run/netns/a"}]));
    assert_eq!(path, NetworkNamespace::Path("/run/netns/a".into()));
    assert_eq!(network(json!([{"type": "pid"}])), NetworkNamespace::Host);
    assert_eq!(spec(json!({})).network_namespace(), NetworkNamespace::Host);
}

#[test]
fn binds_are_found_by_type_or_option_and_know_their_mode() {
    let binds = spec(json!({"mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/a", "type": "bind", "source": "/host/a", "options": ["rbind", "ro"]},
        {"destination": "/b", "type": "none", "source": "b", "options": ["bind", "ro", "rw"]},
        {"destination": "/c", "source": "/host/c", "options": ["bind", "rro"]},
    ]}))
    .binds(Path::new("/bundle"));
    let seen: Vec<_> =
        binds.iter().map(|b| (b.index, b.source.to_str().unwrap(), b.read_only, b.recursive)).collect();
    assert_eq!(
        seen,
        [(1, "/host/a", true, true), (2, "/bundle/b", false, false), (3, "/host/c", true, false)]
    );
}

#[test]
fn the_root_may_be_relative_to_the_bundle() {
    let root = |path: &str| spec(json!({"root": {"path": path}})).root(Path::new("/bundle"));
    assert_eq!(root("rootfs"), Path::new("/bundle/rootfs"));
    assert_eq!(root("/merged"), Path::new("/merged"));
}

#[test]
fn the_guests_spec_differs_in_paths_alone() {
    let (spec, notes) = guest(json!({
        "ociVersion": "1.1.0",
        "root": {"path": "rootfs", "readonly": true},
        "process": {"args": ["sh"]},
        "mounts": [
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/data", "type": "bind", "source": "/host/data", "options": ["rbind", "ro"]},
        ],
        "linux": {"a-new-field": 7},
    }));
    let expected = json!({
        "ociVersion": "1.1.0",
        "root": {"path": "/run/lazaret/shared/c1/rootfs", "readonly": true},
        "process": {"args": ["sh"]},
        "mounts": [
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/data", "type": "bind", "source": "/run/lazaret/shared/c1/mounts/1", "options": ["rbind", "ro"]},
        ],
        "linux": {"a-new-field": 7},
    });
    assert_eq!((spec, notes.len()), (expected, 0));
}

#[test]
fn hooks_that_are_not_run_are_told() {
    let (_, notes) =
        guest(json!({"hooks": {"prestart": [{"path": "/p"}], "createContainer": [{"path": "/s"}]}}));
    assert_eq!(notes.len(), 1);
    assert!(notes[0].contains("createContainer"));
}

#[test]
fn a_bundle_without_a_spec_is_told_in_one_line_with_its_path() {
    let bundle = tempfile::tempdir().unwrap();
    let error = Spec::load(bundle.path()).unwrap_err();
    assert!(
        matches!(&error, Error::InvalidArgument(line) if line.contains("config.json") && !line.contains('\n'))
    );
    std::fs::write(bundle.path().join("config.json"), "{").unwrap();
    assert!(Spec::load(bundle.path()).unwrap_err().to_string().contains("not JSON"));
    std::fs::write(bundle.path().join("config.json"), "[]").unwrap();
    assert!(Spec::load(bundle.path()).unwrap_err().to_string().contains("not an OCI runtime spec"));
}

#[test]
fn an_execs_process_must_be_an_object() {
    assert!(check_process(br#"{"args":["a"]}"#).is_ok());
    assert!(matches!(check_process(b"[]"), Err(Error::InvalidArgument(_))));
    assert!(matches!(check_process(b""), Err(Error::InvalidArgument(_))));
}

#[test]
fn the_oom_score_is_the_specs_and_never_the_shims() {
    for (process, expected) in
        [("{}", 0), (r#"{"oomScoreAdj": 500}"#, 500), (r#"{"oomScoreAdj": -5000}"#, -1000)]
    {
        let spec = Spec::parse(format!(r#"{{"process": {process}}}"#).as_bytes()).unwrap();
        assert_eq!(spec.oom_score_adj(), expected, "{process}");
    }
}

fn with_namespaces(namespaces: Value) -> Spec {
    spec(json!({ "linux": { "namespaces": namespaces } }))
}

#[test]
fn a_namespace_of_the_hosts_or_of_another_sandbox_is_refused() {
    let check = |namespaces: Value| with_namespaces(namespaces).joins(&HashMap::new());
    let refused = |namespaces: Value| match check(namespaces) {
        Err(Error::InvalidArgument(line)) => line,
        other => panic!("{other:?}"),
    };
    let own = json!([{ "type": "pid" }, { "type": "ipc" }, { "type": "network", "path": "/run/netns/x" }]);
    assert_eq!(check(own), Ok(HashMap::new()));
    let hosts = refused(json!([{ "type": "ipc" }]));
    assert!(hosts.contains("the host's pid namespace"), "{hosts}");
    let others = refused(json!([{ "type": "pid" }, { "type": "ipc", "path": "/proc/7/ns/ipc" }]));
    assert!(others.contains("another container's ipc namespace (/proc/7/ns/ipc)"), "{others}");
}

#[test]
fn namespaces_of_the_sandboxs_own_containers_are_joined() {
    let pids = HashMap::from([(7, "pod".to_owned()), (8, "c1".to_owned())]);
    let joins = |namespaces: Value| with_namespaces(namespaces).joins(&pids);
    let member = json!([
        { "type": "pid" }, { "type": "ipc", "path": "/proc/7/ns/ipc" }, { "type": "uts", "path": "/proc/7/ns/uts" },
        { "type": "network", "path": "/proc/7/ns/net" }, { "type": "mount" },
    ]);
    let of = |pairs: &[(&str, &str)]| {
        Ok(pairs.iter().map(|(kind, id)| ((*kind).to_owned(), (*id).to_owned())).collect::<HashMap<_, _>>())
    };
    assert_eq!(joins(member), of(&[("ipc", "pod"), ("uts", "pod")]));
    // An ephemeral container sees the processes of its target.
    let ephemeral =
        json!([{ "type": "pid", "path": "/proc/8/ns/pid" }, { "type": "ipc", "path": "/proc/7/ns/ipc" }]);
    assert_eq!(joins(ephemeral), of(&[("pid", "c1"), ("ipc", "pod")]));
    // The host name of a stranger is one of its own instead.
    let stranger = json!([{ "type": "pid" }, { "type": "ipc" }, { "type": "uts", "path": "/proc/9/ns/uts" }]);
    assert_eq!(joins(stranger), of(&[]));
    for path in ["/proc/9/ns/ipc", "/proc/7/ns/pid", "/proc/7/root/ns/ipc", "/proc/self/ns/ipc", "/run/ns/7"]
    {
        let spec = json!([{ "type": "pid" }, { "type": "ipc", "path": path }]);
        assert!(matches!(joins(spec), Err(Error::InvalidArgument(_))), "{path}");
    }
}
