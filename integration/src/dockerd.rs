//! dockerd of the host, as a client of the runtime under test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::command::{self, Finished, Running};
use crate::spec::image_archive;
use crate::{RUNC, leftovers, runtime};

/// How long a script of docker commands may take.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(900);
/// How long dockerd may take to start: it makes its rules for the network by a program for each.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Where the state of sandboxes of dockerd's containers is.
const STATE: &str = "/run/lazaret/moby";

/// A dockerd with a data root and a socket of its own, on the host's containerd, with the image `busybox`. Its configuration has the
/// runtime under test under the name `sandboxed`, and its containers live on without it.
pub struct Dockerd {
    folder: PathBuf,
    /// None while it is stopped.
    daemon: Mutex<Option<Running>>,
}

impl Dockerd {
    #[track_caller]
    pub fn start() -> Self {
        let folder = PathBuf::from(format!("/var/tmp/lazaret-test-dockerd-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for dockerd");
        let config = serde_json::json!({
            "runtimes": { "sandboxed": { "runtimeType": runtime() } },
            "containerd": "/run/containerd/containerd.sock",
            "data-root": folder.join("data"),
            "live-restore": true,
            "exec-root": folder.join("exec"),
            "pidfile": folder.join("pid"),
            "hosts": [format!("unix://{}", folder.join("docker.sock").display())],
        });
        fs::write(folder.join("daemon.json"), config.to_string()).expect("dockerd's configuration");
        let dockerd = Self { folder, daemon: Mutex::new(None) };
        dockerd.resume();
        dockerd.sh(&format!("docker load --quiet --input {}", image_archive("busybox"))).success();
        dockerd
    }

    /// Where its files are, and those that a script needs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ends it by a signal.
    #[track_caller]
    pub fn stop(&self, signal: Signal) {
        let daemon = self.lock().take().expect("it runs");
        daemon.signal(signal);
        daemon.finish_within(START_TIMEOUT);
    }

    /// Starts it, the first time or after [`Self::stop`].
    #[track_caller]
    pub fn resume(&self) {
        let mut command = Command::new("sh");
        command.args(["-c", "exec dockerd --config-file \"$0\" 2>&1"]).arg(self.folder.join("daemon.json"));
        let daemon = command::start(command);
        daemon.wait_for_within("API listen on", START_TIMEOUT);
        *self.lock() = Some(daemon);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a script as a user of the docker command, with the runtime under test as `$RUNTIME`.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Finished {
        self.start_script(script, &runtime(), 0).finish_within(SCRIPT_TIMEOUT)
    }

    /// Runs a script under runc and under the runtime under test beside each other, and fails unless both say the same. In the script
    /// `$RUNTIME` is the runtime, and `$N` a digit for names and addresses of its own. Answers with what both said.
    #[track_caller]
    pub fn compare(&self, script: &str) -> String {
        let runs = [(RUNC, 1), (runtime().as_str(), 2)]
            .map(|(runtime, number)| self.start_script(script, runtime, number));
        let [expected, found] = runs.map(|run| run.finish_within(SCRIPT_TIMEOUT).success().out());
        assert_eq!(found, expected, "{} says the first, runc the second", runtime());
        found
    }

    fn start_script(&self, script: &str, runtime: &str, number: u8) -> Running {
        let work = self.folder.join(format!("work{number}"));
        fs::create_dir_all(&work).expect("a folder for the script");
        let mut command = Command::new("bash");
        command.args(["-uc", script]).current_dir(work);
        let socket = format!("unix://{}", self.folder.join("docker.sock").display());
        command.env("DOCKER_HOST", socket).env("RUNTIME", runtime).env("N", number.to_string());
        let mut running = command::start(command);
        running.stdin = None;
        running
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        self.sh("docker ps --all --quiet | xargs --no-run-if-empty docker rm --force --volumes");
        let runs = self.lock().is_some();
        if runs {
            self.stop(Signal::SIGTERM);
        }
        let _ = Command::new("ip").args(["link", "delete", "docker0"]).output();
        let _ = fs::remove_dir_all(&self.folder);
        if !std::thread::panicking() {
            leftovers::eventually(|| {
                let left: Vec<_> = fs::read_dir(STATE).into_iter().flatten().flatten().collect();
                if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:#?}")) }
            });
        }
    }
}
