//! Driving crun, the OCI runtime of the guest, one command at a time.

mod message;

use crate::paths;
use crate::reaper::Reaper;
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long a command of crun may take: far more than any needs. A command that takes longer is stuck, most likely in a
/// file system of the host.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub(crate) enum CrunError {
    /// What crun itself has to say: the spec cannot be run.
    #[error("{0}")]
    Refused(String),
    #[error("cannot run {0}: {1}")]
    Spawn(PathBuf, #[source] io::Error),
    #[error("crun {0} ended with status {1} and without an error message")]
    Silent(&'static str, u32),
    #[error("crun {0} was stopped: it did not finish within {n} s", n = COMMAND_TIMEOUT.as_secs())]
    Deadline(&'static str),
    #[error("crun {0} left no pid: {1}")]
    Pid(&'static str, #[source] io::Error),
}

/// What a new process gets from the agent.
pub(crate) struct Launch<'a> {
    /// A directory of its own, for crun's files.
    pub(crate) directory: &'a Path,
    pub(crate) stdio: [Stdio; 3],
    pub(crate) console_socket: Option<&'a Path>,
    /// What the process inherits: `crun exec` does not set what the process's spec says.
    pub(crate) oom_score_adj: i64,
}

pub(crate) struct Crun {
    binary: PathBuf,
    root: PathBuf,
    cgroup_manager: &'static str,
    pub(crate) reaper: Arc<Reaper>,
}

impl Crun {
    /// The guest's.
    pub(crate) fn guest(reaper: Arc<Reaper>) -> Self {
        Self { binary: paths::CRUN.into(), root: paths::CRUN_ROOT.into(), cgroup_manager: "cgroupfs", reaper }
    }

    /// The guest's, with its state elsewhere.
    #[cfg(test)]
    pub(crate) fn with_cgroups(root: PathBuf, reaper: Arc<Reaper>) -> Self {
        Self { root, ..Self::guest(reaper) }
    }

    /// One that leaves cgroups alone and keeps its state elsewhere, to be tried on any machine.
    #[cfg(test)]
    pub(crate) fn without_cgroups(root: PathBuf, reaper: Arc<Reaper>) -> Self {
        Self { binary: paths::CRUN.into(), root, cgroup_manager: "disabled", reaper }
    }

    /// Makes a container from the bundle in `launch.directory`; answers with its first process, which waits.
    ///
    /// # Errors
    /// [`CrunError`].
    pub(crate) async fn create(&self, id: &str, launch: Launch<'_>) -> Result<libc::pid_t, CrunError> {
        let bundle = [OsStr::new("--bundle"), launch.directory.as_os_str()];
        self.launch("create", &bundle, &[OsStr::new(id)], launch).await
    }

    /// Runs the process of `process.json` in `launch.directory` within a container.
    ///
    /// # Errors
    /// [`CrunError`].
    pub(crate) async fn exec(&self, id: &str, launch: Launch<'_>) -> Result<libc::pid_t, CrunError> {
        let spec = launch.directory.join("process.json");
        let process = [OsStr::new("--detach"), OsStr::new("--process"), spec.as_os_str()];
        self.launch("exec", &process, &[OsStr::new(id)], launch).await
    }

    /// Lets a created container's process go on.
    ///
    /// # Errors
    /// [`CrunError`].
    pub(crate) async fn start(&self, id: &str, directory: &Path) -> Result<(), CrunError> {
        self.run("start", directory, &[OsStr::new(id)], null(), 0).await
    }

    /// Sets the resources of the JSON in `resources`.
    ///
    /// # Errors
    /// [`CrunError`].
    pub(crate) async fn update(&self, id: &str, directory: &Path, resources: &Path) -> Result<(), CrunError> {
        let arguments = [OsStr::new("--resources"), resources.as_os_str(), OsStr::new(id)];
        self.run("update", directory, &arguments, null(), 0).await
    }

    /// Removes what crun and the kernel keep of a container; kills what runs. One that is gone is no error.
    ///
    /// # Errors
    /// [`CrunError`].
    pub(crate) async fn delete(&self, id: &str, directory: &Path) -> Result<(), CrunError> {
        self.run("delete", directory, &[OsStr::new("--force"), OsStr::new(id)], null(), 0).await
    }

    async fn launch(
        &self,
        command: &'static str,
        options: &[&OsStr],
        operands: &[&OsStr],
        launch: Launch<'_>,
    ) -> Result<libc::pid_t, CrunError> {
        let pid_file = launch.directory.join("pid");
        let mut arguments = options.to_vec();
        arguments.extend([OsStr::new("--pid-file"), pid_file.as_os_str()]);
        if let Some(socket) = launch.console_socket {
            arguments.extend([OsStr::new("--console-socket"), socket.as_os_str()]);
        }
        arguments.extend(operands);
        self.run(command, launch.directory, &arguments, launch.stdio, launch.oom_score_adj).await?;
        let pid = std::fs::read_to_string(pid_file).map_err(|error| CrunError::Pid(command, error))?;
        pid.trim().parse().map_err(|error| CrunError::Pid(command, io::Error::other(error)))
    }

    async fn run(
        &self,
        command: &'static str,
        directory: &Path,
        arguments: &[&OsStr],
        [stdin, stdout, stderr]: [Stdio; 3],
        oom_score_adj: i64,
    ) -> Result<(), CrunError> {
        let log = directory.join(format!("crun-{command}.log"));
        let mut crun = Command::new(&self.binary);
        crun.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
        crun.arg("--root").arg(&self.root).args(["--cgroup-manager", self.cgroup_manager]);
        // As text: when the program of a container turns out to be none, crun says so where its output would go.
        crun.args(["--log-format", "text", "--log"]).arg(&log).arg(command).args(arguments);
        crun.stdin(stdin).stdout(stdout).stderr(stderr);
        oom_score(&mut crun, oom_score_adj);
        let spawned = self.reaper.spawn(&mut crun);
        // Dropping the command closes the agent's copies of the container's ends of its pipes.
        drop(crun);
        let mut child = spawned.map_err(|error| CrunError::Spawn(self.binary.clone(), error))?;
        let Ok(exit) = timeout(COMMAND_TIMEOUT, &mut child.exit).await else {
            // An error says that crun has ended already.
            let _ = child.handle.signal(libc::SIGKILL);
            return Err(CrunError::Deadline(command));
        };
        let status = exit.map_or(255, |exit| exit.status);
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        // An error says that there is no log, which is as well.
        let _ = std::fs::remove_file(&log);
        match (status, message::last_error(&said)) {
            (0, _) => Ok(()),
            (_, Some(message)) => Err(CrunError::Refused(message)),
            (status, None) => Err(CrunError::Silent(command, status)),
        }
    }
}

/// Has the command run with this score, and not with the agent's "never me".
pub(crate) fn oom_score(command: &mut Command, score: i64) {
    let score = score.to_string();
    let set = move || {
        // SAFETY: both pointers are to memory that outlives the calls, with the lengths that are said.
        unsafe {
            let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if file < 0 || libc::write(file, score.as_ptr().cast(), score.len()) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(set) };
}

fn null() -> [Stdio; 3] {
    [Stdio::null(), Stdio::null(), Stdio::null()]
}
