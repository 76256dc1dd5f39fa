//! What a sandbox may not leave on the host.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};

use crate::container::Container;

/// How long clean-up may take after the client was told that the container is gone.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(30);

/// Where runtimes and containerd keep what belongs to one running container.
const STATE: [&str; 5] = [
    "/run/lazaret",
    "/run/containerd",
    "/run/netns",
    "/var/lib/containerd/io.containerd.runtime.v2.task",
    "/sys/fs/cgroup",
];

/// The fifos of `ctr`, which makes them, and leaves them behind when it is killed or fails.
const CLIENTS: &str = "/run/containerd/fifo";

/// Asks again until `check` passes. Nothing announces that the last trace of something is gone, so this does poll. The
/// checks take a quarter of the time at most: they are work for the host, which then has less time for what is waited for.
#[track_caller]
pub fn eventually(check: impl Fn() -> Result<(), String>) {
    let deadline = Instant::now() + CLEANUP_TIMEOUT;
    loop {
        let began = Instant::now();
        let Err(problem) = check() else { return };
        assert!(Instant::now() < deadline, "after {CLEANUP_TIMEOUT:?}: {problem}");
        thread::sleep((began.elapsed() * 3).max(Duration::from_millis(100)));
    }
}

/// Fails if any process, mount, cgroup or file of the host still carries this container's id.
#[track_caller]
pub fn assert_gone(id: &str) {
    assert_gone_beside(id, &[]);
}

/// [`assert_gone`], with folders of a containerd of a test's own.
#[track_caller]
pub fn assert_gone_beside(id: &str, folders: &[PathBuf]) {
    eventually(|| {
        let left = traces(id, folders);
        if left.is_empty() { Ok(()) } else { Err(format!("{id} left behind: {left:#?}")) }
    });
}

fn traces(id: &str, folders: &[PathBuf]) -> Vec<String> {
    let mut left = Vec::new();
    let mut mount_namespaces = BTreeSet::new();
    for process in processes() {
        // A process that ends while it is looked at reads as empty.
        let command = fs::read(process.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(id) {
            left.push(format!("process {}: {command}", process.display()));
        }
        let namespace = fs::read_link(process.join("ns/mnt")).unwrap_or_default();
        if mount_namespaces.contains(&namespace) {
            continue;
        }
        let mounts = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
        if !mounts.is_empty() {
            mount_namespaces.insert(namespace);
        }
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(id))
                .map(|line| format!("mount of {}: {line}", process.display())),
        );
    }
    for folder in STATE.iter().map(Path::new).chain(folders.iter().map(PathBuf::as_path)) {
        left.extend(tree(folder).into_iter().filter(|path| path.contains(id) && !path.starts_with(CLIENTS)));
    }
    left
}

fn processes() -> Vec<PathBuf> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
        .map(|entry| entry.path())
        .collect()
}

/// Every path under `folder`, which need not exist; symbolic links are not followed.
fn tree(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            found.push(entry.path().display().to_string());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    found
}

/// All that a sandbox could leave anywhere on the host, for a test that runs alone.
#[derive(Debug)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    pub fn take() -> Self {
        // containerd makes directories of its own with its first container.
        static FIRST: Once = Once::new();
        FIRST.call_once(|| _ = Container::new("first").run(&["true"]));
        let mut all = BTreeSet::new();
        for process in processes() {
            // Kernel threads have no command line, and come and go as they like.
            let command = fs::read(process.join("cmdline")).unwrap_or_default();
            if command.is_empty() {
                continue;
            }
            all.insert(format!(
                "process {} {}",
                process.display(),
                String::from_utf8_lossy(&command).replace('\0', " ")
            ));
            for kind in ["net", "mnt"] {
                let namespace = fs::read_link(process.join("ns").join(kind)).unwrap_or_default();
                all.insert(format!("namespace {}", namespace.display()));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
        // The first field is an id; what is mounted where begins at the third.
        all.extend(
            mounts
                .lines()
                .map(|line| format!("mount {}", line.split(' ').skip(2).collect::<Vec<_>>().join(" "))),
        );
        let folders = ["/tmp", "/dev/shm", "/sys/class/net", "/sys/block"];
        for folder in STATE.iter().chain(&folders) {
            all.extend(tree(Path::new(folder)).into_iter().map(|path| format!("file {path}")));
        }
        let snapshots = crate::command::host("ctr", &["snapshots", "ls"]);
        all.extend(snapshots.lines().map(|line| format!("snapshot {line}")));
        Self(all)
    }

    /// Fails if there is anything now that was not there when this was taken.
    #[track_caller]
    pub fn assert_nothing_new(&self) {
        eventually(|| {
            let now = Self::take();
            let new: Vec<_> = now.0.difference(&self.0).collect();
            if new.is_empty() { Ok(()) } else { Err(format!("left behind: {new:#?}")) }
        });
    }
}
