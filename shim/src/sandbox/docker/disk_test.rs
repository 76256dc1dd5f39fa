use super::*;
use crate::budget::lock_file;
use crate::state::ProcessId;
use crate::volume::{Capacity, flock};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// A host with a sandbox that runs, and a budget of 1,000 MiB.
struct Host {
    dir: tempfile::TempDir,
    config: Config,
    state: StateDir,
    record: Record,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk_dir = dir.path().join("disks");
        let config = Config { disk_dir, docker_disks_mib: 1000, ..Config::default() };
        let state = StateDir::new(&dir.path().join("run"), "default", "c1");
        state.create().unwrap();
        let vmm = ProcessId::of(i32::try_from(std::process::id()).unwrap()).ok();
        let record = Record { vmm, ..Record::default() };
        state.save(&record).unwrap();
        Self { dir, config, state, record }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn later(&self, mib: u64) -> LaterDisk {
        LaterDisk::of(&docker(mib, None), &self.config, &self.state, &self.root()).unwrap()
    }

    fn open(&mut self, mib: u64) -> Result<File, DiskError> {
        let docker = docker(mib, Some("cache"));
        let name = docker.volume.clone().unwrap();
        let root = self.root();
        let opened = open_volume(&name, &docker, &self.config, &self.state, &root, &mut self.record);
        let opened = run(opened);
        assert_eq!(self.state.load().as_ref(), Some(&self.record));
        opened
    }

    fn entered(&self) -> Option<u64> {
        self.state.load().unwrap().docker_disk.map(|disk| disk.mib)
    }
}

fn docker(mib: u64, volume: Option<&str>) -> Docker {
    let volume = volume.map(|name| VolumeName::parse(name).unwrap());
    Docker { eager: false, capacity: Capacity::New(mib), volume, export: false, any_user: false }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn a_disk_is_a_sparse_file_without_a_name_and_its_size_is_entered() {
    let host = Host::new();
    assert!(!host.config.disk_dir.exists(), "before it is asked for there is nothing");
    let disk = run(host.later(512).make()).unwrap();
    let metadata = disk.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.blocks(), metadata.nlink()), (512 << 20, 0, 0));
    assert_eq!(host.entered(), Some(512));
    let record = Record { docker_disk: host.state.load().unwrap().docker_disk, ..host.record.clone() };
    assert_eq!(host.state.load(), Some(record), "all else stays");
}

#[test]
fn a_disk_that_is_too_much_or_cannot_be_made_is_not_entered() {
    let host = Host::new();
    let error = run(host.later(1001).make()).unwrap_err();
    assert!(matches!(error, DiskError::Budget(BudgetError::Exceeded { mib: 1001, .. })), "{error}");
    assert_eq!(host.entered(), None);
    // A size that no file system has.
    let config = Config { docker_disks_mib: 0, ..host.config.clone() };
    let disk = LaterDisk::of(&docker(1 << 42, None), &config, &host.state, &host.root()).unwrap();
    let error = run(disk.make()).unwrap_err().to_string();
    let directory = host.config.disk_dir.display();
    assert!(error.starts_with(&format!("a disk of {} MiB in {directory}: ", 1u64 << 42)), "{error}");
    assert_eq!(host.entered(), None);
}

#[test]
fn a_sandbox_whose_record_is_gone_gets_no_disk() {
    let host = Host::new();
    let disk = host.later(512);
    host.state.remove().unwrap();
    assert!(matches!(run(disk.make()), Err(DiskError::Record(_))));
    assert!(host.state.load().is_none());
}

#[test]
fn a_volume_counts_with_the_size_that_it_has() {
    let mut host = Host::new();
    assert!(LaterDisk::of(&docker(64, Some("cache")), &host.config, &host.state, &host.root()).is_none());
    drop(host.open(512).unwrap());
    assert_eq!(host.entered(), Some(512));
    // Its own size is what counts, not what a new one would have.
    drop(host.open(64).unwrap());
    assert_eq!(host.entered(), Some(512));
    assert_eq!(host.record.docker_volume, Some(host.config.disk_dir.join("volumes/cache")));
}

#[test]
fn a_volume_that_another_sandbox_makes_meanwhile_counts_with_the_size_that_it_has() {
    for (mib, entered) in [(512, Some(512)), (1001, None)] {
        let mut host = Host::new();
        fs::create_dir(&host.config.disk_dir).unwrap();
        let lock = lock_file(&host.config.disk_dir).unwrap();
        flock(&lock).unwrap();
        let volumes = host.config.disk_dir.join("volumes");
        let other = std::thread::spawn(move || {
            // The size is looked at before the lock is waited for.
            std::thread::sleep(Duration::from_millis(100));
            fs::create_dir(&volumes).unwrap();
            File::create(volumes.join("cache")).unwrap().set_len(mib << 20).unwrap();
            drop(lock);
        });
        assert_eq!(host.open(64).is_ok(), entered.is_some());
        other.join().unwrap();
        assert_eq!((host.entered(), host.record.docker_volume.is_some()), (entered, entered.is_some()));
    }
}

#[test]
fn a_volume_that_is_too_much_is_neither_made_nor_opened() {
    let mut host = Host::new();
    let error = host.open(1001).unwrap_err();
    assert!(matches!(error, DiskError::Budget(BudgetError::Exceeded { .. })), "{error}");
    assert!(!host.config.disk_dir.join("volumes").exists());
    assert_eq!((host.entered(), host.record.docker_volume.clone()), (None, None));
}

#[test]
fn a_volume_that_cannot_be_opened_does_not_count() {
    let mut host = Host::new();
    let volume = host.config.disk_dir.join("volumes/cache");
    fs::create_dir_all(&volume).unwrap();
    assert!(matches!(host.open(512), Err(DiskError::Volume(VolumeError::NotFile(_)))));
    assert_eq!((host.entered(), host.record.docker_volume.clone()), (None, None));
}
