use super::*;
use crate::state::{ProcessId, Record, StateDir};
use std::fs::File;

fn host(names: &[&str]) -> (tempfile::TempDir, Config) {
    let root = tempfile::tempdir().unwrap();
    let config = Config { disk_dir: root.path().join("disks"), ..Config::default() };
    let directory = config.disk_dir.join("volumes");
    fs::create_dir_all(&directory).unwrap();
    for name in names {
        File::create(directory.join(name)).unwrap().set_len(64 << 20).unwrap();
    }
    (root, config)
}

#[test]
fn volumes_are_listed_with_who_has_them() {
    let (root, config) = host(&["b", "a", ".no-volume"]);
    fs::create_dir(config.disk_dir.join("volumes/directory")).unwrap();
    fs::write(config.disk_dir.join("volumes/a"), vec![1; 5000]).unwrap();
    let state = StateDir::new(&root.path().join("states"), "default", "c1");
    state.create().unwrap();
    let vmm = ProcessId::of(i32::try_from(std::process::id()).unwrap()).ok();
    let docker_volume = Some(config.disk_dir.join("volumes/b"));
    state.save(&Record { vmm, docker_volume, ..Record::default() }).unwrap();
    let found = list(&config, &root.path().join("states")).unwrap();
    let volume = |name: &str, size_mib, used_mib, sandbox: Option<&str>| Volume {
        name: name.into(),
        size_mib,
        used_mib,
        sandbox: sandbox.map(Into::into),
    };
    assert_eq!(found, [volume("a", 0, 1, None), volume("b", 64, 0, Some("default/c1"))]);
    assert_eq!(
        render(&found),
        "NAME          SIZE          USED  SANDBOX\n\
         a            0 MiB         1 MiB  -\n\
         b           64 MiB         0 MiB  default/c1\n"
    );
}

#[test]
fn a_host_without_volumes_has_an_empty_list() {
    let config = Config { disk_dir: "/nonexistent".into(), ..Config::default() };
    assert_eq!(list(&config, Path::new("/nonexistent")).unwrap(), []);
    assert_eq!(render(&[]).lines().count(), 1);
}

#[test]
fn only_a_volume_that_is_there_and_free_is_removed() {
    let (root, config) = host(&["a", "b"]);
    let remove = |name: &str| remove(&config, root.path(), name).map_err(|error| error.to_string());
    remove("a").unwrap();
    assert_eq!(remove("a").unwrap_err(), "there is no volume \"a\" (`lazaret volume ls` lists them)");
    assert!(
        remove("../a")
            .unwrap_err()
            .starts_with("volume name: \"../a\" is not an identifier: expected letters")
    );
    let name = VolumeName::parse("b").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let volumes = Volumes::new(&config.disk_dir, root.path());
    let held = runtime.block_on(volumes.acquire(&name, crate::volume::Capacity::New(64))).unwrap();
    assert_eq!(remove("b").unwrap_err(), "volume \"b\" is in use");
    drop(held);
    let left: Vec<_> = list(&config, root.path()).unwrap().into_iter().map(|volume| volume.name).collect();
    assert_eq!(left, ["b"]);
}
