use super::*;
use serde_json::json;

fn of(annotations: serde_json::Value) -> Result<Option<Docker>> {
    let spec = json!({ "annotations": annotations }).to_string();
    Docker::of(&Spec::parse(spec.as_bytes()).unwrap(), &Config::default())
}

fn default() -> Docker {
    Docker {
        eager: false,
        capacity: Capacity::New(Config::default().docker_disk_mib),
        volume: None,
        export: false,
        any_user: false,
    }
}

#[test]
fn a_sandbox_has_a_daemon_unless_it_says_no() {
    assert_eq!(of(json!({})), Ok(Some(default())));
    assert_eq!(of(json!({ "io.lazaret.docker": "lazy" })), Ok(Some(default())));
    assert_eq!(of(json!({ "io.lazaret.docker": "eager" })), Ok(Some(Docker { eager: true, ..default() })));
    assert_eq!(of(json!({ "io.lazaret.docker": "off" })), Ok(None));
}

#[test]
fn the_disk_is_as_large_as_the_annotation_says() {
    for (size, mib) in [("2Gi", 2048), ("1Ti", 1 << 20), ("100", 100)] {
        let docker = of(json!({ "io.lazaret.docker.disk": size })).unwrap().unwrap();
        assert_eq!(docker.capacity, Capacity::Exactly(mib));
    }
}

#[test]
fn a_volume_is_named_and_keeps_its_size_unless_one_is_asked_for() {
    let docker = of(json!({ "io.lazaret.docker.volume": "cache" })).unwrap().unwrap();
    assert_eq!(docker, Docker { volume: VolumeName::parse("cache").ok(), ..default() });
    assert!(docker.volume.is_some());
}

#[test]
fn the_agent_is_told_what_it_has_to_do_with() {
    let told = |annotations| of(annotations).unwrap().unwrap().for_agent();
    assert_eq!(told(json!({})), agent::Docker::default());
    assert!(told(json!({ "io.lazaret.docker": "eager" })).eager);
    assert!(told(json!({ "io.lazaret.docker.volume": "cache" })).keep);
    assert!(told(json!({ "io.lazaret.docker.export": "true" })).export);
    assert!(!told(json!({ "io.lazaret.docker.export": "false" })).export);
    assert!(told(json!({ "io.lazaret.docker.users": "all" })).any_user);
}

#[test]
fn what_means_nothing_is_refused_by_name() {
    for (name, value) in [
        ("io.lazaret.docker", ""),
        ("io.lazaret.docker", "yes"),
        ("io.lazaret.docker.users", ""),
        ("io.lazaret.docker.users", "root"),
        ("io.lazaret.docker.disk", "0"),
        ("io.lazaret.docker.disk", "-1"),
        ("io.lazaret.docker.disk", "99999999Gi"),
        ("io.lazaret.docker.disk", "17Ti"),
        ("io.lazaret.docker.disk", "18446744073709551615Gi"),
        ("io.lazaret.docker.volume", ""),
        ("io.lazaret.docker.volume", "../x"),
        ("io.lazaret.docker.volume", &"x".repeat(77)),
        ("io.lazaret.docker.export", ""),
        ("io.lazaret.docker.export", "maybe"),
    ] {
        let refused = of(json!({ name: value })).unwrap_err();
        assert!(matches!(&refused, Error::InvalidArgument(line) if line.contains(name)), "{refused}");
        // Without a daemon, too: it is a mistake all the same.
        let refused = of(json!({ "io.lazaret.docker": "off", name: value }));
        assert!(name == "io.lazaret.docker" || refused.is_err(), "{name}={value}");
    }
}

#[test]
fn what_is_for_a_daemon_contradicts_its_absence() {
    let refused = of(json!({ "io.lazaret.docker": "off", "io.lazaret.docker.volume": "cache" })).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "annotation io.lazaret.docker=\"off\": but io.lazaret.docker.volume is for a daemon"
    );
    of(json!({ "io.lazaret.docker": "off", "io.lazaret.docker.export": "true" })).unwrap_err();
    for (name, value) in [("io.lazaret.docker.disk", "2Gi"), ("io.lazaret.docker.export", "false")] {
        assert_eq!(of(json!({ "io.lazaret.docker": "off", name: value })), Ok(None));
    }
}

#[test]
fn a_sandbox_with_a_long_name_can_have_a_daemon_but_no_socket() {
    let state = StateDir::new(std::path::Path::new("/run/lazaret"), "default", &"x".repeat(76));
    let exported = Docker { export: true, ..default() };
    default().check_socket(&state).unwrap();
    let refused = exported.check_socket(&state).unwrap_err();
    assert!(
        matches!(&refused, Error::InvalidArgument(line) if line.contains(EXPORT_ANNOTATION)),
        "{refused}"
    );
    exported.check_socket(&StateDir::new(std::path::Path::new("/run/lazaret"), "default", "a")).unwrap();
}
