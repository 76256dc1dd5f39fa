use super::*;
use crate::sandbox::test_support::{in_namespace, mounts_below};
use nix::mount::{MsFlags, mount};
use serde_json::json;
use std::os::unix::net::UnixListener;

fn spec(dir: &Path, mounts: serde_json::Value) -> Spec {
    let root = dir.join("root");
    Spec::parse(&serde_json::to_vec(&json!({"root": {"path": root}, "mounts": mounts})).unwrap()).unwrap()
}

fn create(dir: &Path, shared: &Path, mounts: serde_json::Value) -> Result<ContainerMounts, MountsError> {
    ContainerMounts::create(shared, "c1", dir, &spec(dir, mounts), &[], None, &Steps::default())
}

fn bind_of(source: &Path, options: &[&str]) -> serde_json::Value {
    json!([{"destination": "/d", "type": "bind", "source": source, "options": options}])
}

#[test]
fn an_empty_rootfs_list_takes_the_specs_root() {
    in_namespace(|dir, shared| {
        let mounts = create(dir, shared, json!([])).unwrap();
        assert_eq!(fs::read_to_string(shared.join("c1/rootfs/hello")).unwrap(), "hello");
        assert_eq!(mounts.paths().root, Path::new("/run/lazaret/shared/c1/rootfs"));
    });
}

#[test]
fn mounts_that_are_given_up_stop_at_the_next_step_and_are_undone() {
    in_namespace(|dir, shared| {
        let spec = spec(dir, bind_of(&dir.join("root"), &["bind"]));
        let create = |steps: &Steps| ContainerMounts::create(shared, "c1", dir, &spec, &[], None, steps);
        // The bind's source is looked at, the root is bound, the source is.
        for steps in 0..3 {
            let given_up = create(&Steps::abandoned_after(steps));
            assert!(matches!(given_up, Err(MountsError::Abandoned(_))), "after {steps}");
            assert_eq!(mounts_below(shared), 0);
        }
        let steps = Steps::abandoned_after(3);
        create(&steps).unwrap();
        assert!(steps.abandon().starts_with("bind mount of"), "the last step is known");
    });
}

#[test]
fn a_single_file_shows_that_file_alone() {
    in_namespace(|dir, shared| {
        fs::write(dir.join("secret"), "secret").unwrap();
        fs::write(dir.join("file"), "file").unwrap();
        let mounts = create(dir, shared, bind_of(&dir.join("file"), &["bind"])).unwrap();
        assert_eq!(fs::read_to_string(shared.join("c1/mounts/0")).unwrap(), "file");
        assert_eq!(fs::read_dir(shared.join("c1/mounts")).unwrap().count(), 1);
        assert_eq!(mounts.paths().binds[&0], Path::new("/run/lazaret/shared/c1/mounts/0"));
    });
}

#[test]
fn the_file_that_will_be_resolv_conf_is_known() {
    in_namespace(|dir, shared| {
        let file = dir.join("of-dockerd");
        fs::write(&file, "nameserver 127.0.0.11").unwrap();
        let mount = |destination: &str, source: &Path| json!([{"destination": destination, "type": "bind", "source": source, "options": ["bind"]}]);
        let mounts = create(dir, shared, mount("/etc/resolv.conf", &file)).unwrap();
        let found = mounts.resolv_conf().unwrap();
        // dockerd writes it after Create.
        fs::write(&file, "nameserver 10.0.0.1").unwrap();
        assert_eq!(fs::read_to_string(found).unwrap(), "nameserver 10.0.0.1");
        drop(mounts);
        for (destination, source) in [("/etc/hosts", file.as_path()), ("/etc/resolv.conf", dir)] {
            assert_eq!(create(dir, shared, mount(destination, source)).unwrap().resolv_conf(), None);
        }
    });
}

#[test]
fn read_only_is_enforced_in_the_copy_the_vmm_follows_too() {
    in_namespace(|dir, shared| {
        fs::create_dir(dir.join("data")).unwrap();
        // What the VMM has: a slave of the shared tree, made before the container comes.
        let follower = dir.join("follower");
        fs::create_dir(&follower).unwrap();
        let none = None::<&str>;
        mount(Some(shared), &follower, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).unwrap();
        mount(none, &follower, none, MsFlags::MS_SLAVE, none).unwrap();
        let mounts = create(dir, shared, bind_of(&dir.join("data"), &["rbind", "ro"])).unwrap();
        for tree in [shared, follower.as_path()] {
            let error = fs::write(tree.join("c1/mounts/0/x"), "").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem, "{}", tree.display());
        }
        fs::write(follower.join("c1/rootfs/written"), "through").unwrap();
        drop(mounts);
        assert_eq!(mounts_below(&follower), 0, "the VMM's copy goes with the shim's");
        assert_eq!(fs::read_to_string(dir.join("root/written")).unwrap(), "through");
        umount2(&follower, MntFlags::MNT_DETACH).unwrap();
    });
}

/// Whether a mount lets nothing in it be a device, a privilege or a program of the host's.
fn inert(path: &Path) -> bool {
    use nix::sys::statvfs::{FsFlags, statvfs};
    statvfs(path).unwrap().flags().contains(FsFlags::ST_NODEV | FsFlags::ST_NOSUID | FsFlags::ST_NOEXEC)
}

#[test]
fn a_bind_is_inert_on_the_host() {
    in_namespace(|dir, shared| {
        let mounts = create(dir, shared, bind_of(&dir.join("root"), &["rbind"])).unwrap();
        assert!(inert(&shared.join("c1/mounts/0")) && inert(&shared.join("c1/rootfs")));
        drop(mounts);
    });
}

#[test]
fn a_snapshots_overlay_is_mounted_as_the_root() {
    in_namespace(|dir, shared| {
        // Overlay needs an upper layer that is no overlay itself.
        let none = None::<&str>;
        let layers = dir.join("layers");
        fs::create_dir(&layers).unwrap();
        mount(Some("tmpfs"), &layers, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        for layer in ["lower", "upper", "work"] {
            fs::create_dir(layers.join(layer)).unwrap();
        }
        fs::write(layers.join("lower/base"), "base").unwrap();
        let option = |name: &str, layer: &str| format!("{name}={}", layers.join(layer).display());
        let overlay = RootMount {
            fs_type: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec![
                option("lowerdir", "lower"),
                option("upperdir", "upper"),
                option("workdir", "work"),
            ],
        };
        let mounts = ContainerMounts::create(
            shared,
            "c1",
            dir,
            &spec(dir, json!([])),
            &[overlay],
            None,
            &Steps::default(),
        )
        .unwrap();
        assert_eq!(fs::read_to_string(shared.join("c1/rootfs/base")).unwrap(), "base");
        assert!(inert(&shared.join("c1/rootfs")));
        fs::write(shared.join("c1/rootfs/new"), "new").unwrap();
        assert_eq!(fs::read_to_string(layers.join("upper/new")).unwrap(), "new");
        drop(mounts);
        umount2(&layers, MntFlags::MNT_DETACH).unwrap();
    });
}

#[test]
fn a_mount_that_fails_undoes_those_before_it() {
    in_namespace(|dir, shared| {
        let good = dir.join("root");
        let mounts = json!([
            {"destination": "/a", "type": "bind", "source": good, "options": ["rbind"]},
            {"destination": "/b", "type": "bind", "source": dir.join("absent"), "options": ["rbind"]},
        ]);
        assert!(matches!(create(dir, shared, mounts), Err(MountsError::Bind { .. })));
        let failing = RootMount {
            fs_type: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec!["lowerdir=/nonexistent/a:/nonexistent/b".into()],
        };
        let first = RootMount {
            fs_type: "bind".into(),
            source: dir.join("root").display().to_string(),
            target: String::new(),
            options: vec!["rbind".into()],
        };
        let spec = spec(dir, json!([]));
        let error =
            ContainerMounts::create(shared, "c1", dir, &spec, &[first, failing], None, &Steps::default())
                .unwrap_err();
        assert!(
            error.to_string().starts_with("mounting the container's root (overlay from overlay) failed: "),
            "{error}"
        );
    });
}

#[test]
fn sockets_and_devices_of_the_host_are_refused() {
    in_namespace(|dir, shared| {
        let (docker, other) = (dir.join("docker.sock"), dir.join("other.sock"));
        let _listeners = [&docker, &other].map(|path| UnixListener::bind(path).unwrap());
        let mounts = create(dir, shared, bind_of(&docker, &[])).unwrap();
        assert_eq!(mounts.paths().binds[&0], Path::new(DOCKER_SOCKET), "the sandbox's own takes its place");
        drop(mounts);
        assert!(matches!(create(dir, shared, bind_of(&other, &[])), Err(MountsError::Socket { .. })));
        assert!(matches!(
            create(dir, shared, bind_of(Path::new("/dev/null"), &[])),
            Err(MountsError::Device { .. })
        ));
    });
}

#[test]
fn the_shared_memory_of_the_sandbox_is_the_guests_and_any_other_is_the_hosts() {
    in_namespace(|dir, shared| {
        let (pods, volume) = (dir.join("shm"), dir.join("volume"));
        fs::create_dir(&volume).unwrap();
        let paths = |source: &Path, destination: &str| {
            let mounts = json!([{ "destination": destination, "type": "bind", "source": source }]);
            let spec = spec(dir, mounts);
            ContainerMounts::create(shared, "c1", dir, &spec, &[], Some(&pods), &Steps::default())
                .map(|mounts| mounts.paths().binds[&0].clone())
        };
        // It is not even looked at.
        assert_eq!(paths(&pods, "/dev/shm").unwrap(), Path::new(SHARED_MEMORY));
        let own = Path::new("/run/lazaret/shared/c1/mounts/0");
        assert_eq!(paths(&volume, "/dev/shm").unwrap(), own);
        fs::create_dir(&pods).unwrap();
        assert_eq!(paths(&pods, "/data").unwrap(), own);
    });
}
