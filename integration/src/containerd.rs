//! A containerd of a test's own, for tests that stop it, read its log or want to see only their own doing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::command::{self, Running};
use crate::spec::image_archive;

/// A containerd with its own root, state and socket; all of it goes with this value.
pub struct Containerd {
    folder: PathBuf,
    daemon: Option<Running>,
}

/// Without CRI, as `ctr` needs none.
const WITHOUT_CRI: &str = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";

impl Containerd {
    /// Starts one without CRI, and imports the busybox image.
    #[track_caller]
    pub fn start(name: &str) -> Self {
        let containerd = Self::configured(name, |_| WITHOUT_CRI.into());
        containerd.import("default", &image_archive("busybox"));
        containerd
    }

    /// Starts one with the configuration that `config` writes, given the folder that is to be its own.
    #[track_caller]
    pub fn configured(name: &str, config: impl FnOnce(&Path) -> String) -> Self {
        let folder = PathBuf::from(format!("/var/tmp/lazaret-test-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for containerd");
        let config = config(&folder);
        let mut containerd = Self { folder, daemon: None };
        let config = format!(
            "root = \"{0}/root\"\nstate = \"{0}/state\"\n{config}\n[grpc]\naddress = \"{1}\"\n",
            containerd.folder.display(),
            containerd.socket(),
        );
        fs::write(containerd.folder.join("config.toml"), config).expect("containerd's configuration");
        containerd.resume();
        containerd
    }

    /// Imports an archive of an image into a namespace.
    #[track_caller]
    pub fn import(&self, namespace: &str, archive: &str) {
        let socket = self.socket();
        command::host("ctr", &["--address", &socket, "--namespace", namespace, "image", "import", archive]);
    }

    /// Where all is that is its own.
    pub fn folder(&self) -> &Path {
        &self.folder
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
