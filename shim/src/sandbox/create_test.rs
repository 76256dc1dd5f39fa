use super::super::test_support::{Script, Stage, new, on_stage};
use super::*;
use crate::state::ProcessId;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Puts a named pipe in the place of the bundle's spec: whoever reads it waits until somebody writes. Returns what was there.
fn block_spec(bundle: &Path) -> Vec<u8> {
    let path = bundle.join("config.json");
    let spec = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    spec
}

/// Lets the reader of the spec go on, if there is one.
fn unblock_spec(bundle: &Path, spec: &[u8]) {
    let mut options = fs::OpenOptions::new();
    match options.write(true).custom_flags(libc::O_NONBLOCK).open(bundle.join("config.json")) {
        Ok(mut pipe) => pipe.write_all(spec).unwrap(),
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENXIO)),
    }
}

#[test]
fn a_create_that_blocks_is_answered_at_its_deadline_and_undone_when_it_comes_back() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        let vmm = ProcessId::of(stage.vmm.try_into().unwrap()).unwrap();
        let spec = block_spec(&bundle);
        let begun = Instant::now();
        let refused = stage.sandbox.create(new(&bundle)).await;
        assert!(begun.elapsed() < MOUNT_TIMEOUT * 10);
        let Err(Error::DeadlineExceeded(line)) = refused else { panic!("{refused:?}") };
        let step = format!("container c1: reading the spec in {}: not done within", bundle.display());
        assert!(line.contains(&step), "{line}");
        assert!(stage.sandbox.is_empty(), "Shutdown finds nothing left");
        tokio::task::spawn_blocking(move || vmm.wait(20_000)).await.unwrap().unwrap();
        // Now it comes back. That nothing of it is left is looked at when the test has ended.
        unblock_spec(&bundle, &spec);
    });
}

#[test]
fn a_create_whose_guest_fails_waits_no_longer_than_the_deadline_for_its_mounts() {
    on_stage(Script::default(), async |stage: &mut Stage, bundle: PathBuf| {
        let spec = block_spec(&bundle);
        let vmm = nix::unistd::Pid::from_raw(stage.vmm.try_into().unwrap());
        nix::sys::signal::kill(vmm, nix::sys::signal::SIGKILL).unwrap();
        stage.sandbox.until_over().await;
        let begun = Instant::now();
        let mounted = stage.sandbox.mount_beside_boot(&new(&bundle)).await;
        assert!(matches!(mounted, Err(Error::Internal(line)) if line.contains("VM has ended")));
        assert!(begun.elapsed() < MOUNT_TIMEOUT * 4);
        unblock_spec(&bundle, &spec);
    });
}
