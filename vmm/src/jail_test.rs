use super::enter;
use crate::virtio::fs::own_descriptors;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

fn reach(directory: &File, path: &str) -> Result<File, Errno> {
    openat(directory, path, OFlag::O_PATH, Mode::empty()).map(File::from)
}

/// Runs `test` on a thread in the jail, with the directory of descriptors. What the jail changes is the thread's alone.
fn in_jail(test: impl FnOnce(File) + Send) {
    if !nix::unistd::geteuid().is_root() {
        let _ = writeln!(io::stderr(), "the jail's test is skipped: mounts need root");
        return;
    }
    let shared = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| test(enter(Some(shared.path())).unwrap().unwrap()));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

const REST_OF_PROC: [&str; 5] =
    ["../status", "../../sys", "../sys", "../../sys/kernel/core_pattern", "../../mounts"];

#[test]
fn the_rest_of_proc_is_out_of_reach() {
    // What it is about: opened by its name, the directory leads there.
    let open = own_descriptors().unwrap();
    reach(&open, "../status").unwrap();
    reach(&open, "../../sys/kernel/core_pattern").unwrap();
    in_jail(|descriptors| {
        for path in REST_OF_PROC {
            assert_eq!(reach(&descriptors, path).unwrap_err(), Errno::ENOENT, "{path}");
        }
        for path in ["..", "../..", "../../.."] {
            let (here, above) =
                (fstat(&descriptors).unwrap(), fstat(reach(&descriptors, path).unwrap()).unwrap());
            assert_eq!((here.st_dev, here.st_ino), (above.st_dev, above.st_ino), "{path}");
        }
        assert!(!Path::new("/proc").exists());
    });
    // And outside nothing is mounted on it.
    fs::read("/proc/self/status").unwrap();
}

#[test]
fn no_other_vmm_may_trace_it() {
    in_jail(|_| assert!(!nix::sys::prctl::get_dumpable().unwrap()));
}

#[test]
fn descriptors_are_reopened_by_their_directory() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"afloat").unwrap();
    in_jail(|descriptors| {
        let name = file.as_raw_fd().to_string();
        // Those of the process, whichever thread asks.
        let again = std::thread::spawn(move || {
            openat(&descriptors, name.as_str(), OFlag::O_RDONLY, Mode::empty()).map(File::from)
        });
        let mut text = String::new();
        again.join().unwrap().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "afloat");
    });
}
