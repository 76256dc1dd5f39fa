//! A container as `ctr` makes it.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::command::{self, Finished, Running};
use crate::{leftovers, runtime};

/// Debian's statically linked busybox.
pub const BUSYBOX: &str = "docker.io/library/busybox:latest";
/// A minimal Debian of the host's suite, with `attr`.
pub const DEBIAN: &str = "docker.io/library/debian:latest";

/// A container with an id of its own. However the test ends, it is removed; if the test has not failed,
/// nothing of it may be left on the host then.
pub struct Container {
    pub id: String,
    pub runtime: String,
    image: Option<&'static str>,
    flags: Vec<String>,
    address: Option<String>,
    needs_removal: AtomicBool,
}

impl Container {
    /// A busybox under the runtime under test; `purpose` is the start of its id.
    pub fn new(purpose: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            id: format!("{purpose}-{}-{number}", std::process::id()),
            runtime: runtime(),
            image: Some(BUSYBOX),
            flags: Vec::new(),
            address: None,
            needs_removal: AtomicBool::new(false),
        }
    }

    pub fn under(mut self, runtime: &str) -> Self {
        runtime.clone_into(&mut self.runtime);
        self
    }

    pub fn image(mut self, image: &'static str) -> Self {
        self.image = Some(image);
        self
    }

    /// From a spec (`config.json`) that names its own root, without an image.
    pub fn config(mut self, path: &str) -> Self {
        self.image = None;
        self.flags(&["--config", path])
    }

    /// More flags of `ctr run`.
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
        self
    }

    /// On another containerd than the host's.
    pub fn on(mut self, socket: &str) -> Self {
        self.address = Some(socket.to_owned());
        self
    }

    /// `ctr`, to the right containerd.
    pub fn ctr(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        if let Some(address) = &self.address {
            command.args(["--address", address]);
        }
        command.args(args);
        command
    }

    /// `ctr run`, ready to be started: `how` is `--rm` or `--detach`.
    pub fn run_command(&self, how: &[&str], args: &[&str]) -> Command {
        if !how.contains(&"--rm") {
            self.needs_removal.store(true, Ordering::Relaxed);
        }
        let mut command = self.ctr(&["run"]);
        command.args(how).args(["--runtime", &self.runtime]).args(&self.flags);
        command.args(self.image).arg(&self.id).args(args);
        command
    }

    /// `ctr run --rm`, to its end.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Finished {
        command::run(self.run_command(&["--rm"], args))
    }

    /// `ctr run --rm`, in the foreground of a user who is still there.
    #[track_caller]
    pub fn attach(&self, args: &[&str]) -> Running {
        command::start(self.run_command(&["--rm"], args))
    }

    /// `ctr run --detach`: returns when the process has started.
    #[track_caller]
    pub fn detach(&self, args: &[&str]) {
        command::run(self.run_command(&["--detach"], args)).success();
    }

    /// `ctr task exec`, to its end.
    #[track_caller]
    pub fn exec(&self, args: &[&str]) -> Finished {
        command::run(self.exec_command(&[], args))
    }

    /// `ctr task exec`, ready to be started.
    pub fn exec_command(&self, flags: &[&str], args: &[&str]) -> Command {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let exec_id = format!("exec-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut command = self.ctr(&["task", "exec", "--exec-id", &exec_id]);
        command.args(flags).arg(&self.id).args(args);
        command
    }

    /// `ctr task <verb> [flags] ID`, to its end.
    #[track_caller]
    pub fn task(&self, verb: &str, flags: &[&str]) -> Finished {
        let mut command = self.ctr(&["task", verb]);
        command.args(flags).arg(&self.id);
        command::run(command)
    }

    /// Sends a signal to the first process, which is there.
    #[track_caller]
    pub fn kill(&self, signal: &str) {
        self.task("kill", &["--signal", signal]).success();
    }

    /// `ctr task delete`: the exit code that the task ended with.
    #[track_caller]
    pub fn delete(&self) -> i32 {
        let run = self.task("delete", &[]);
        // containerd 1.6's ctr exits with the code, later ones put it into a warning.
        match run.err().rsplit_once("non-zero exit code ") {
            Some((_, rest)) => {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                digits.parse().unwrap_or_else(|_| panic!("an exit code in: {run}"))
            }
            None if run.err().is_empty() => run.code,
            None => panic!("{run}"),
        }
    }

    /// Pid and status as `ctr task ls` tells them; nothing without a task.
    #[track_caller]
    pub fn status(&self) -> Option<(u32, String)> {
        let list = command::run(self.ctr(&["task", "ls"])).success().out();
        let line = list.lines().find(|line| line.split_whitespace().next() == Some(&self.id))?;
        let mut fields = line.split_whitespace().skip(1);
        let pid = fields.next().and_then(|field| field.parse().ok()).expect("ctr task ls gives a pid");
        Some((pid, fields.next().expect("ctr task ls gives a status").to_owned()))
    }

    /// Waits until the task has this status.
    #[track_caller]
    pub fn wait_for_status(&self, wanted: &str) {
        leftovers::eventually(|| match self.status() {
            Some((_, status)) if status == wanted => Ok(()),
            other => Err(format!("{} is {other:?}, not {wanted}", self.id)),
        });
    }

    /// Kills and removes it. A test that ends without calling this has it done for it.
    pub fn remove(&self) {
        if self.needs_removal.swap(false, Ordering::Relaxed) {
            self.remove_by_force();
        }
    }

    fn remove_by_force(&self) {
        for args in [["task", "delete", "--force"], ["container", "delete", "--"]] {
            let mut command = self.ctr(&args);
            command.arg(&self.id);
            // Whatever of it is still there goes; what is not there any more is not missed.
            let _ = command.output();
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.remove_by_force();
        } else {
            self.remove();
            leftovers::assert_gone(&self.id);
        }
    }
}
