use super::*;
use crate::spec::tests::{guest, spec};
use std::fs;

/// A guest with a Docker socket.
fn with_docker() -> (tempfile::TempDir, Guest) {
    let dir = tempfile::tempdir().unwrap();
    let guest = guest(&dir);
    fs::write(&guest.docker_socket, "").unwrap();
    (dir, guest)
}

fn object(value: Value) -> Object {
    let Value::Object(object) = value else { panic!("no object") };
    object
}

fn destinations(spec: &Object) -> Vec<&str> {
    spec["mounts"].as_array().unwrap().iter().map(|mount| text(mount, "destination")).collect()
}

#[test]
fn a_guest_without_docker_refuses_only_who_counts_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut asking = object(spec(json!({})));
    assert_eq!(mount_socket(&mut asking, &guest(&dir)).unwrap(), None);
    assert_eq!(destinations(&asking), [""; 0]);
    let mount = json!([{ "destination": "/run/docker.sock", "source": DOCKER_SOCKET, "type": "bind" }]);
    asking.insert("mounts".into(), mount);
    assert!(matches!(mount_socket(&mut asking, &guest(&dir)), Err(SpecError::NoDocker)));
}

#[test]
fn the_socket_is_where_programs_look_for_it_unless_the_spec_has_one_there() {
    let (_dir, guest) = with_docker();
    let mut asking = object(spec(json!({})));
    mount_socket(&mut asking, &guest).unwrap();
    assert_eq!(destinations(&asking), ["/var/run/docker.sock"]);
    assert_eq!(asking["mounts"][0]["source"], json!(guest.docker_socket));
    let mount = json!([{ "destination": "/run/docker.sock", "source": DOCKER_SOCKET, "type": "bind" }]);
    asking.insert("mounts".into(), mount);
    mount_socket(&mut asking, &guest).unwrap();
    assert_eq!(destinations(&asking), ["/run/docker.sock"]);
}

#[test]
fn the_socket_is_also_where_the_environment_says_if_there_is_room_for_it() {
    let (dir, guest) = with_docker();
    let root = dir.path().join("rootfs");
    fs::create_dir_all(root.join("home")).unwrap();
    let also_at = |host: &str| {
        let mut asking = object(spec(json!({})));
        asking["root"]["path"] = json!(root);
        asking["process"]["env"] = json!(["DOCKER_HOST=unix:///not/this", format!("DOCKER_HOST={host}")]);
        let mounts = json!([
            { "destination": "/tmp", "type": "tmpfs" },
            { "destination": "/work", "type": "bind" },
            { "destination": "/etc/deep/file", "type": "bind" },
        ]);
        asking.insert("mounts".into(), mounts);
        let refused = mount_socket(&mut asking, &guest).unwrap();
        let places = destinations(&asking);
        assert_eq!(places[3], "/var/run/docker.sock");
        (places[4..].join(" "), refused.is_some())
    };
    for place in ["/srv/docker.sock", "/tmp/docker.sock", "/home/me/docker.sock", "/workshop"] {
        assert_eq!(also_at(&format!("unix://{place}")), (place.into(), false));
    }
    for nothing in ["tcp://127.0.0.1:2375", "", "unix:///run/docker.sock", "unix:///var/run/docker.sock"] {
        assert_eq!(also_at(nothing), (String::new(), false), "{nothing}");
    }
    let no_room = [
        "",
        "relative",
        "/",
        "//run/docker.sock",
        "/.",
        "/a/../b",
        "/var/run",
        "/tmp",
        "/home",
        "/work",
        "/work/x.sock",
        "/etc",
        "/etc/deep",
        "/proc/x",
        "/sys/x",
        "/dev/x",
    ];
    for place in no_room {
        assert_eq!(also_at(&format!("unix://{place}")), (String::new(), true), "{place}");
    }
}
