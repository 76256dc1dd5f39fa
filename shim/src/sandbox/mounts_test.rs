use super::super::test_support::{in_namespace, mounts_below};
use super::*;
use nix::mount::{MsFlags, mount};
use serde_json::json;
use std::os::unix::net::UnixListener;

fn spec(dir: &Path, mounts: serde_json::Value) -> Spec {
    let root = dir.join("root");
    Spec::parse(&serde_json::to_vec(&json!({"root": {"path": root}, "mounts": mounts})).unwrap()).unwrap()
}

fn create(dir: &Path, shared: &Path, mounts: serde_json::Value) -> Result<ContainerMounts, MountsError> {
    ContainerMounts::create(shared, "c1", dir, &spec(dir, mounts), &[])
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
        let mounts = ContainerMounts::create(shared, "c1", dir, &spec(dir, json!([])), &[overlay]).unwrap();
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
        let error = ContainerMounts::create(shared, "c1", dir, &spec, &[first, failing]).unwrap_err();
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
