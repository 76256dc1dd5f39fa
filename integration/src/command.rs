//! Commands with a deadline, and their output as it comes.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a command may take. An emulated host is slow, and a hang is told from slowness by minutes.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// A command that has ended.
pub struct Finished {
    /// The exit code; 128 + n for a death by signal n.
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    command: String,
}

impl Finished {
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Passes a command that ended with 0 and stops the test at any other.
    #[track_caller]
    pub fn success(self) -> Self {
        assert_eq!(self.code, 0, "{self}");
        self
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, command, .. } = self;
        write!(
            f,
            "`{command}` ended with {code}\nstdout: {}\nstderr: {}",
            tail(&self.stdout),
            tail(&self.stderr)
        )
    }
}

fn tail(bytes: &[u8]) -> String {
    let start = bytes.len().saturating_sub(2000);
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}

/// What one output has given so far.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    ended: bool,
}

type Shared = Arc<(Mutex<Output>, Condvar)>;

/// A command that runs.
pub struct Running {
    /// The process, for signals; not valid after [`Running::finish`].
    pub pid: Pid,
    pub stdin: Option<ChildStdin>,
    command: String,
    stdout: Shared,
    stderr: Shared,
    status: mpsc::Receiver<ExitStatus>,
    done: bool,
}

/// Starts `command` with all three streams piped.
#[track_caller]
pub fn start(mut command: Command) -> Running {
    let name = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let stdout = collect(child.stdout.take().expect("piped"));
    let stderr = collect(child.stderr.take().expect("piped"));
    let pid = Pid::from_raw(child.id().try_into().expect("a pid fits"));
    let stdin = child.stdin.take();
    let (sender, status) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait().expect("our own child")));
    Running { pid, stdin, command: name, stdout, stderr, status, done: false }
}

/// Runs `command` without input, to its end.
#[track_caller]
pub fn run(command: Command) -> Finished {
    let mut running = start(command);
    running.stdin = None;
    running.finish()
}

/// [`run`] for a program of the host that has to work.
#[track_caller]
pub fn host(program: &str, args: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(args);
    run(command).success().out()
}

fn collect(mut from: impl Read + Send + 'static) -> Shared {
    let shared = Shared::default();
    let into = Arc::clone(&shared);
    thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        loop {
            let count = from.read(&mut buffer).unwrap_or(0);
            let mut output = into.0.lock().expect("no reader panics");
            output.bytes.extend_from_slice(&buffer[..count]);
            output.ended = count == 0;
            into.1.notify_all();
            if count == 0 {
                return;
            }
        }
    });
    shared
}

/// Waits until `enough` says so, the stream ends or the deadline passes; says whether `enough` did.
fn wait_until(stream: &Shared, deadline: Instant, enough: impl Fn(&Output) -> bool) -> bool {
    let mut output = stream.0.lock().expect("no reader panics");
    while !enough(&output) {
        let left = deadline.saturating_duration_since(Instant::now());
        if output.ended || left.is_zero() {
            return false;
        }
        output = stream.1.wait_timeout(output, left).expect("no reader panics").0;
    }
    true
}

impl Running {
    /// Waits until `text` has come on stdout.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        self.wait_for_within(text, COMMAND_TIMEOUT);
    }

    #[track_caller]
    pub fn wait_for_within(&self, text: &str, limit: Duration) {
        let found = wait_until(&self.stdout, Instant::now() + limit, |output| {
            output.bytes.windows(text.len()).any(|window| window == text.as_bytes())
        });
        assert!(
            found,
            "{:?} never said {text:?}\nstdout: {}\nstderr: {}",
            self.command,
            tail(self.out().as_bytes()),
            self.err()
        );
    }

    /// All it has written to stdout so far.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout.0.lock().expect("no reader panics").bytes).into_owned()
    }

    fn err(&self) -> String {
        tail(&self.stderr.0.lock().expect("no reader panics").bytes)
    }

    /// Writes to its stdin, which stays open.
    #[track_caller]
    pub fn write(&mut self, text: &str) {
        self.stdin.as_mut().expect("still open").write_all(text.as_bytes()).expect("it reads its stdin");
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).expect("it still runs");
    }

    /// Waits for its end and for the end of its output.
    #[track_caller]
    pub fn finish(self) -> Finished {
        self.finish_within(COMMAND_TIMEOUT)
    }

    #[track_caller]
    pub fn finish_within(mut self, limit: Duration) -> Finished {
        let deadline = Instant::now() + limit;
        let Ok(status) = self.status.recv_timeout(limit) else {
            panic!(
                "{} still runs after {limit:?}\nstdout: {}\nstderr: {}",
                self.command,
                tail(self.out().as_bytes()),
                self.err()
            );
        };
        self.done = true;
        for stream in [&self.stdout, &self.stderr] {
            assert!(
                wait_until(stream, deadline, |output| output.ended),
                "{} ended, its output did not",
                self.command
            );
        }
        let take = |stream: &Shared| std::mem::take(&mut stream.0.lock().expect("no reader panics").bytes);
        Finished {
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: take(&self.stdout),
            stderr: take(&self.stderr),
            command: self.command.clone(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.done && self.status.try_recv().is_err() {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }
}
