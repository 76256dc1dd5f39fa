use super::*;
use crate::state::{ProcessId, Record};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Barrier;

/// A host without volumes, and without sandboxes.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn volumes(&self) -> Volumes<'_> {
        Volumes::new(&self.0.path().join("disks"), self.0.path())
    }

    /// Opens a volume that is free. A process that another test starts has our descriptors for a moment, so this waits.
    fn open(&self, capacity: Capacity) -> Result<File, VolumeError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(self.volumes().acquire(&cache(), capacity))
    }

    /// A file of that many bytes where the volume should be.
    fn place(&self, bytes: u64) {
        let path = self.volumes().path(&cache());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::create(path).unwrap().set_len(bytes).unwrap();
    }
}

fn cache() -> VolumeName {
    VolumeName::parse("cache").unwrap()
}

const SMALL: Capacity = Capacity::New(64);

#[test]
fn a_name_is_that_of_one_file_in_the_directory() {
    let longest = "x".repeat(76);
    for good in ["a", "0", "cache", "a.b_c-D9", longest.as_str()] {
        assert!(VolumeName::parse(good).is_ok(), "{good}");
    }
    let too_long = "x".repeat(77);
    let bad = ["", ".", "..", "../x", "a/b", "-a", ".a", "_a", "a b", "a\n", "ä", "a\0", "a..", &too_long];
    for bad in bad {
        assert!(VolumeName::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_new_volume_takes_no_space_and_is_roots_alone() {
    let host = Host::new();
    let volume = host.volumes().open(&cache(), Capacity::New(20480)).unwrap();
    let metadata = fs::symlink_metadata(host.volumes().path(&cache())).unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (20480 << 20, 0));
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    for directory in ["disks", "disks/volumes"] {
        let mode = fs::metadata(host.0.path().join(directory)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
    assert_eq!(volume.metadata().unwrap().ino(), metadata.ino());
}

#[test]
fn a_volume_is_found_as_it_was_left() {
    let host = Host::new();
    let mut volume = host.volumes().open(&cache(), SMALL).unwrap();
    io::Write::write_all(&mut volume, b"kept").unwrap();
    drop(volume);
    let mut volume = host.open(Capacity::New(128)).unwrap();
    let mut kept = [0; 4];
    io::Read::read_exact(&mut volume, &mut kept).unwrap();
    assert_eq!((&kept, volume.metadata().unwrap().len()), (b"kept", 64 << 20));
}

#[test]
fn another_size_is_refused_with_both_sizes_and_what_to_do() {
    let host = Host::new();
    drop(host.volumes().open(&cache(), Capacity::Exactly(1024)).unwrap());
    drop(host.open(Capacity::Exactly(1024)).unwrap());
    let error = host.open(Capacity::Exactly(1 << 20)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "volume \"cache\" has 1Gi, which io.lazaret.docker.disk cannot change to 1Ti: leave that annotation out, \
         or remove the volume with `lazaret volume rm cache`"
    );
}

#[test]
fn a_volume_is_one_sandboxs_until_every_copy_of_its_descriptor_is_closed() {
    let host = Host::new();
    let shim = host.volumes().open(&cache(), SMALL).unwrap();
    let vmm = shim.try_clone().unwrap();
    let refused = || host.volumes().open(&cache(), SMALL).unwrap_err().to_string();
    assert_eq!(refused(), "volume \"cache\" is in use");
    drop(shim);
    assert_eq!(refused(), "volume \"cache\" is in use");
    drop(vmm);
    host.open(SMALL).unwrap();
}

#[test]
fn the_sandbox_that_has_a_volume_is_named() {
    let host = Host::new();
    let _volume = host.volumes().open(&cache(), SMALL).unwrap();
    let ourselves = ProcessId::of(i32::try_from(std::process::id()).unwrap()).ok();
    let gone = Some(ProcessId { pid: 1, start_time: u64::MAX });
    let docker_volume = Some(host.volumes().path(&cache()));
    let records = [
        ("ended", Record { shim: ourselves, vmm: gone, docker_volume, ..Record::default() }),
        ("other", Record { vmm: ourselves, docker_volume: Some("/else/cache".into()), ..Record::default() }),
    ];
    for (id, record) in &records {
        let state = StateDir::new(host.0.path(), "default", id);
        state.create().unwrap();
        state.save(record).unwrap();
    }
    assert_eq!(host.volumes().holder(&cache()), None);
    let state = StateDir::new(host.0.path(), "default", "a");
    state.create().unwrap();
    let record = Record { vmm: ourselves, ..records[0].1.clone() };
    state.save(&record).unwrap();
    let error = host.volumes().open(&cache(), SMALL).unwrap_err();
    assert_eq!(error.to_string(), "volume \"cache\" is in use by sandbox default/a");
    // Between the lock and the VMM's start.
    state.save(&Record { shim: ourselves, vmm: None, ..record }).unwrap();
    assert_eq!(host.volumes().holder(&cache()).as_deref(), Some("default/a"));
}

#[test]
fn a_volume_that_is_about_to_be_free_is_waited_for_and_no_other() {
    let host = Host::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let held = host.volumes().open(&cache(), SMALL).unwrap();
    let waited = runtime.block_on(async {
        let (free, ()) =
            tokio::join!(async { host.volumes().acquire(&cache(), SMALL).await.map(drop) }, async {
                tokio::time::sleep(RELEASE_TIMEOUT / 4).await;
                drop(held);
            });
        free.unwrap();
        let _held = host.volumes().acquire(&cache(), SMALL).await.unwrap();
        host.volumes().acquire(&cache(), SMALL).await
    });
    assert!(matches!(waited, Err(VolumeError::InUse { .. })));
}

#[test]
fn of_many_who_make_a_volume_at_once_one_has_it() {
    for _ in 0..20 {
        let host = Host::new();
        let together = Barrier::new(4);
        let open = || {
            together.wait();
            host.volumes().open(&cache(), SMALL)
        };
        let opened: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(opened.iter().filter(|volume| volume.is_ok()).count(), 1);
        assert!(opened.iter().all(|v| matches!(v, Ok(_) | Err(VolumeError::InUse { .. }))), "{opened:?}");
        assert_eq!(fs::read_dir(host.0.path().join("disks/volumes")).unwrap().count(), 1);
    }
}

#[test]
fn whoever_has_a_volume_has_the_one_of_that_name() {
    let host = Host::new();
    let rounds = 200;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..rounds {
                let _ = host.volumes().remove(&cache());
            }
        });
        for _ in 0..rounds {
            let Ok(volume) = host.volumes().open(&cache(), SMALL) else { continue };
            let named = fs::symlink_metadata(host.volumes().path(&cache())).unwrap();
            assert_eq!(named.ino(), volume.metadata().unwrap().ino());
        }
    });
}

#[test]
fn what_is_no_disk_is_refused_by_its_bytes() {
    for bytes in [0, 1, (64 << 20) + 512, 63 << 20] {
        let host = Host::new();
        host.place(bytes);
        let error = host.volumes().open(&cache(), SMALL).unwrap_err();
        assert!(matches!(&error, VolumeError::Damaged { bytes: found, .. } if *found == bytes), "{error}");
    }
}

#[test]
fn what_is_no_file_is_neither_followed_nor_removed() {
    let host = Host::new();
    let path = host.volumes().path(&cache());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let precious = host.0.path().join("precious");
    File::create(&precious).unwrap().set_len(64 << 20).unwrap();
    let refused = || {
        for result in [host.volumes().open(&cache(), SMALL).map(drop), host.volumes().remove(&cache())] {
            assert!(matches!(result, Err(VolumeError::NotFile(_))), "{result:?}");
        }
        assert_eq!(host.volumes().names().unwrap(), []);
    };
    symlink(&precious, &path).unwrap();
    refused();
    fs::remove_file(&path).unwrap();
    symlink("/nonexistent", &path).unwrap();
    refused();
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refused();
    fs::remove_dir(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused();
    assert!(precious.exists());
}

#[test]
fn a_volume_that_cannot_be_made_leaves_nothing() {
    let host = Host::new();
    fs::write(host.0.path().join("disks"), "no directory").unwrap();
    let error = host.volumes().open(&cache(), SMALL).unwrap_err();
    assert!(matches!(error, VolumeError::Os { .. }), "{error}");
}
