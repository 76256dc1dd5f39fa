//! A containerd of a test's own, for tests that stop it, read its log or want to see only their own doing.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::command::{self, Running};
use crate::spec::image_archive;

/// A containerd with its own root, state, socket and busybox image; all of it goes with this value.
pub struct Containerd {
    folder: PathBuf,
    daemon: Option<Running>,
}

impl Containerd {
    /// Starts one and imports the busybox image.
    #[track_caller]
    pub fn start(name: &str) -> Self {
        let folder = PathBuf::from(format!("/var/tmp/lazaret-test-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for containerd");
        let mut containerd = Self { folder, daemon: None };
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{1}\"\n",
            containerd.folder.display(),
            containerd.socket(),
        );
        fs::write(containerd.folder.join("config.toml"), config).expect("containerd's configuration");
        containerd.resume();
        command::host(
            "ctr",
            &["--address", &containerd.socket(), "image", "import", &image_archive("busybox")],
        );
        containerd
    }

    pub fn socket(&self) -> String {
        format!("{}/containerd.sock", self.folder.display())
    }

    /// All it has logged since it was last started.
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Running::out).unwrap_or_default()
    }

    /// Ends the daemon; its shims go on.
    #[track_caller]
    pub fn stop(&mut self, signal: Signal) {
        let daemon = self.daemon.take().expect("it runs");
        daemon.signal(signal);
        daemon.finish();
    }

    /// Starts the daemon, and waits until it answers.
    #[track_caller]
    pub fn resume(&mut self) {
        let mut command = Command::new("sh");
        command.arg("-c").arg("exec containerd --config \"$0\" 2>&1").arg(self.folder.join("config.toml"));
        let daemon = command::start(command);
        daemon.wait_for("containerd successfully booted");
        self.daemon = Some(daemon);
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.signal(Signal::SIGTERM);
            daemon.finish();
        }
        // A test that failed may leave a mount in there, which a later look at the host will show.
        let _ = fs::remove_dir_all(&self.folder);
    }
}
