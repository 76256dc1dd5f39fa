use crate::budget::lock_file;
use crate::sandbox::test_support::{DISKS_MIB, Script, Stage, on_stage, state};
use crate::state::{DockerDisk, ProcessId, Record, StateDir};
use crate::volume::flock;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

#[test]
fn a_guest_that_never_asks_has_no_disk() {
    on_stage(Script::default(), async |stage: &mut Stage, dir: PathBuf| {
        // As long as two requests may take.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(stage.disks.lock().unwrap().is_empty());
        assert!(!dir.join("disks").exists());
        assert_eq!(state(&dir).load().unwrap().docker_disk, None);
    });
}

#[test]
fn a_guest_that_asks_gets_one_disk_however_often_it_asks() {
    on_stage(Script::default(), async |stage: &mut Stage, dir: PathBuf| {
        assert_eq!(stage.agent.ask_for_disk().await, "");
        for _ in 0..5 {
            let again = stage.agent.ask_for_disk();
            assert!(tokio::time::timeout(Duration::from_millis(40), again).await.is_err());
        }
        assert_eq!(stage.agent.calls(), ["wait disk"]);
        let disks = stage.disks.lock().unwrap();
        let [(2, file)] = &disks[..] else { panic!("{disks:?}") };
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.blocks(), metadata.nlink()), (64 << 20, 0, 0));
        let directory = dir.join("disks");
        assert_eq!(state(&dir).load().unwrap().docker_disk, Some(DockerDisk { directory, mib: 64 }));
    });
}

#[test]
fn a_disk_that_is_too_much_is_refused_until_there_is_room() {
    on_stage(Script::default(), async |stage: &mut Stage, dir: PathBuf| {
        let other = StateDir::new(&dir.join("run"), "default", "c2");
        other.create().unwrap();
        fs::create_dir(dir.join("disks")).unwrap();
        let record = Record {
            vmm: ProcessId::of(i32::try_from(std::process::id()).unwrap()).ok(),
            docker_disk: Some(DockerDisk { directory: dir.join("disks"), mib: 37 }),
            ..Record::default()
        };
        other.save(&record).unwrap();
        let why = format!(
            "the Docker disks of this host have {DISKS_MIB} MiB together (docker_disks_mib), with no room for one of 64 MiB"
        );
        for _ in 0..2 {
            assert_eq!(stage.agent.ask_for_disk().await, why);
        }
        assert!(stage.disks.lock().unwrap().is_empty());
        other.save(&Record { vmm: None, ..record }).unwrap();
        assert_eq!(stage.agent.ask_for_disk().await, "");
        assert_eq!(stage.disks.lock().unwrap().len(), 1);
    });
}

#[test]
fn a_directory_that_cannot_be_used_is_named_to_the_guest_and_can_be_mended() {
    on_stage(Script::default(), async |stage: &mut Stage, dir: PathBuf| {
        fs::write(dir.join("disks"), "no directory").unwrap();
        let why = stage.agent.ask_for_disk().await;
        assert!(why.contains(dir.join("disks").to_str().unwrap()) && why.contains("disk_dir"), "{why}");
        assert!(!why.contains('\n'), "{why}");
        fs::remove_file(dir.join("disks")).unwrap();
        assert_eq!(stage.agent.ask_for_disk().await, "");
    });
}

#[test]
fn a_file_that_is_late_is_the_next_requests() {
    on_stage(Script::default(), async |stage: &mut Stage, dir: PathBuf| {
        fs::create_dir(dir.join("disks")).unwrap();
        let lock = lock_file(&dir.join("disks")).unwrap();
        flock(&lock).unwrap();
        let why = stage.agent.ask_for_disk().await;
        assert!(why.contains("/disks, which disk_dir of config.toml sets, does not answer"), "{why}");
        drop(lock);
        assert_eq!(stage.agent.ask_for_disk().await, "");
        assert_eq!(stage.disks.lock().unwrap().len(), 1);
    });
}

#[test]
fn a_vm_that_ends_while_its_disk_is_made_has_none_afterwards() {
    on_stage(Script::default(), async |stage: &mut Stage, dir: PathBuf| {
        fs::create_dir(dir.join("disks")).unwrap();
        let lock = lock_file(&dir.join("disks")).unwrap();
        flock(&lock).unwrap();
        let agent = stage.agent.clone();
        tokio::spawn(async move { agent.ask_for_disk().await });
        stage.agent.until_called("wait disk").await;
        // As long as the shim may take to try the lock.
        tokio::time::sleep(Duration::from_millis(50)).await;
        stage.sandbox.end().await;
        drop(lock);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(state(&dir).load().unwrap().docker_disk, None);
        flock(&lock_file(&dir.join("disks")).unwrap()).expect("nobody holds the lock");
    });
}

#[test]
fn a_full_file_system_is_named_to_the_guest_and_can_be_mended() {
    on_stage(Script::default(), async |stage: &mut Stage, dir: PathBuf| {
        let disks = dir.join("disks");
        fs::create_dir(&disks).unwrap();
        let tmpfs =
            |size: &str, flags| mount(Some("none"), &disks, Some("tmpfs"), flags, Some(size)).unwrap();
        tmpfs("size=8m", MsFlags::empty());
        let why = stage.agent.ask_for_disk().await;
        let expected = format!(
            "a disk of 64 MiB in {}: its file system is full: 8 MiB are free, and a Docker disk takes at least 16; disk_dir of \
             config.toml sets the directory",
            disks.display()
        );
        assert_eq!(why, expected);
        assert_eq!(state(&dir).load().unwrap().docker_disk, None);
        tmpfs("size=32m", MsFlags::MS_REMOUNT);
        assert_eq!(stage.agent.ask_for_disk().await, "");
        umount2(&disks, MntFlags::MNT_DETACH).unwrap();
    });
}

#[test]
fn a_paused_guest_gets_its_disk_when_it_is_resumed() {
    on_stage(Script::default(), async |stage: &mut Stage, dir: PathBuf| {
        fs::create_dir(dir.join("disks")).unwrap();
        let lock = lock_file(&dir.join("disks")).unwrap();
        flock(&lock).unwrap();
        let agent = stage.agent.clone();
        let asked = tokio::spawn(async move { agent.ask_for_disk().await });
        stage.agent.until_called("wait disk").await;
        let guest = stage.sandbox.guest().await.unwrap();
        guest.pause().await.unwrap();
        drop(lock);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(stage.disks.lock().unwrap().is_empty(), "its VMM is frozen");
        guest.resume().await.unwrap();
        assert_eq!(asked.await.unwrap(), "");
        assert_eq!(stage.disks.lock().unwrap().len(), 1);
    });
}

#[test]
fn a_vmm_that_says_it_took_no_disk_is_handed_the_same_one_again() {
    let script = Script { refused_disks: 2, ..Script::default() };
    on_stage(script, async |stage: &mut Stage, dir: PathBuf| {
        for _ in 0..2 {
            assert_eq!(stage.agent.ask_for_disk().await, "disk 2 of the VM: it is not taken");
            assert!(state(&dir).load().unwrap().docker_disk.is_some(), "it may have it");
        }
        assert_eq!(stage.agent.ask_for_disk().await, "");
        let disks = stage.disks.lock().unwrap();
        let files: Vec<_> = disks.iter().map(|(_, file)| file.metadata().unwrap().ino()).collect();
        assert_eq!(files, [files[0]; 3]);
    });
}

#[test]
fn a_sandbox_with_a_volume_does_not_wait_for_a_request() {
    let script = Script { keeps_data: true, ..Script::default() };
    on_stage(script, async |stage: &mut Stage, _: PathBuf| {
        let asked = stage.agent.ask_for_disk();
        assert!(tokio::time::timeout(Duration::from_millis(50), asked).await.is_err());
        assert!(stage.agent.calls().is_empty());
    });
}
