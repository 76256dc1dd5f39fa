use super::*;
use serde_json::json;
use std::os::unix::fs::MetadataExt;

fn of(annotations: serde_json::Value) -> Result<Option<Docker>> {
    let spec = json!({ "annotations": annotations }).to_string();
    Docker::of(&Spec::parse(spec.as_bytes()).unwrap(), &Config::default())
}

#[test]
fn a_sandbox_has_a_daemon_unless_it_says_no() {
    let default = Docker { eager: false, disk_mib: Config::default().docker_disk_mib };
    assert_eq!(of(json!({})), Ok(Some(default)));
    assert_eq!(of(json!({ "io.lazaret.docker": "lazy" })), Ok(Some(default)));
    assert_eq!(of(json!({ "io.lazaret.docker": "eager" })), Ok(Some(Docker { eager: true, ..default })));
    assert_eq!(of(json!({ "io.lazaret.docker": "off" })), Ok(None));
}

#[test]
fn the_agent_is_told_not_to_wait_for_the_first_connection() {
    for eager in [false, true] {
        assert_eq!(Docker { eager, disk_mib: 64 }.for_agent().eager, eager);
    }
}

#[test]
fn the_disk_is_as_large_as_the_annotation_says() {
    let docker = of(json!({ "io.lazaret.docker.disk": "2Gi" })).unwrap().unwrap();
    assert_eq!(docker.disk_mib, 2048);
}

#[test]
fn what_means_nothing_is_refused_by_name() {
    for (name, value) in [
        ("io.lazaret.docker", ""),
        ("io.lazaret.docker", "yes"),
        ("io.lazaret.docker.disk", "0"),
        ("io.lazaret.docker.disk", "-1"),
        ("io.lazaret.docker.disk", "99999999Gi"),
        ("io.lazaret.docker.disk", "18446744073709551615Gi"),
    ] {
        let refused = of(json!({ name: value })).unwrap_err();
        assert!(matches!(&refused, Error::InvalidArgument(line) if line.contains(name)), "{refused}");
    }
}

#[test]
fn a_new_disk_takes_no_space_and_has_no_name() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("disks");
    let disk = Docker { eager: false, disk_mib: 20480 }.make_disk(&place).unwrap();
    let metadata = disk.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (20480 << 20, 0));
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
}
