use super::*;
use crate::sandbox::container::spec::{Bind, Spec};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

#[test]
fn the_nameservers_are_pastas_and_the_rest_is_the_hosts() {
    let host = "# by hand\nnameserver 127.0.0.53\n nameserver\t10.0.0.1\nsearch a.example b.example\noptions edns0\n";
    assert_eq!(translate(host), "nameserver 169.254.1.1\nsearch a.example b.example\noptions edns0\n");
    let both = "nameserver fe80::1%eth0\nnameserver 10.0.0.1\nnameserver nonsense\n";
    assert_eq!(translate(both), "nameserver 169.254.1.1\nnameserver fd6c:617a:6172::53\n");
    assert_eq!(translate(""), "");
}

#[test]
fn a_container_has_the_file_unless_its_spec_mounts_another() {
    let mounts = |mounts: Value| {
        let spec = Spec::parse(json!({ "mounts": mounts }).to_string().as_bytes()).unwrap();
        let binds = spec.with_file(PATH, Path::new("/run/r")).binds(Path::new("/bundle"));
        let mount = |bind: Bind| (bind.source.display().to_string(), bind.destination, bind.read_only);
        binds.into_iter().map(mount).collect::<Vec<_>>()
    };
    let ours = ("/run/r".to_owned(), PATH.to_owned(), true);
    let bind =
        |source: &str| json!({ "destination": PATH, "type": "bind", "source": source, "options": ["rbind"] });
    assert_eq!(mounts(json!([])), std::slice::from_ref(&ours));
    assert_eq!(mounts(Value::Null), std::slice::from_ref(&ours));
    assert_eq!(mounts(json!([bind("/etc/resolv.conf")])), [ours]);
    let other = ("/var/lib/kubelet/r".to_owned(), PATH.to_owned(), false);
    assert_eq!(mounts(json!([bind("/var/lib/kubelet/r")])), [other]);
}

#[test]
fn a_read_only_root_stays_as_it_is() {
    let spec = json!({ "root": { "readonly": true } }).to_string();
    let spec = Spec::parse(spec.as_bytes()).unwrap().with_file(PATH, Path::new("/run/r"));
    assert!(spec.binds(Path::new("/bundle")).is_empty());
}

#[test]
fn it_is_written_where_the_network_is_known_before_start() {
    use super::super::mode::UserNetwork;
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::new(dir.path(), "default", "a");
    state.create().unwrap();
    let user = |asked_by| NetworkMode::User(UserNetwork { asked_by, published: Vec::new() });
    let new = NetworkNamespace::New;
    assert_eq!(write(&NetworkMode::Namespace, &new, &state).unwrap(), None);
    assert_eq!(write(&user(None), &new, &state).unwrap(), None);
    assert_eq!(write(&user(Some("io.lazaret.net")), &new, &state).unwrap(), Some(state.resolv_conf()));
    // Every user of the container reads it.
    assert_eq!(fs::metadata(state.resolv_conf()).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(write(&user(None), &NetworkNamespace::Host, &state).unwrap(), Some(state.resolv_conf()));
    state.remove().unwrap();
    assert!(!state.path().exists());
}
