//! Processes that tests kill.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[track_caller]
pub fn kill_process(pid: u32) {
    kill(Pid::from_raw(pid.try_into().expect("a pid fits")), Signal::SIGKILL).expect("it runs");
}

/// The shim of this container, by its command line.
#[track_caller]
pub fn shim_of(id: &str) -> u32 {
    let processes = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let mut shims = processes.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_string_lossy().parse().ok()?;
        let command = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let words: Vec<_> = command.split('\0').collect();
        (words[0].contains("containerd-shim-") && words.windows(2).any(|pair| pair == ["-id", id]))
            .then_some(pid)
    });
    let shim = shims.next().unwrap_or_else(|| panic!("no shim has -id {id}"));
    assert_eq!(shims.next(), None, "one shim for {id}");
    shim
}
