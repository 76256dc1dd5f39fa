//! A terminal for a command: what `ctr run --tty` needs, and what a person would see and type.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use nix::libc;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::COMMAND_TIMEOUT;

nix::ioctl_write_ptr_bad!(set_size, libc::TIOCSWINSZ, Winsize);

/// A command on a terminal of its own.
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Terminal {
    /// Starts `command` as the leader of a session on a new terminal.
    #[track_caller]
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Self {
        let pty = openpty(Some(&size(rows, columns)), None).expect("a pseudo terminal");
        let slave = || -> OwnedFd { pty.slave.try_clone().expect("a descriptor") };
        command.stdin(slave()).stdout(slave()).stderr(slave());
        // SAFETY: only async-signal-safe system calls happen between fork and exec.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("the command starts");
        drop(command);
        drop(pty.slave);
        let keyboard = File::from(pty.master);
        let mut master = keyboard.try_clone().expect("a descriptor");
        let (sender, screen) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A terminal whose last user has left reads as an error (EIO): that is its end.
            while let Ok(count) = master.read(&mut buffer) {
                if count == 0 || sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, keyboard, screen, seen: String::new() }
    }

    /// Types `keys`.
    pub fn type_in(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the terminal takes input");
    }

    /// Makes the window another size.
    pub fn resize(&self, rows: u16, columns: u16) {
        use std::os::fd::AsRawFd;
        // SAFETY: the descriptor is a terminal of ours, the argument a live Winsize.
        unsafe { set_size(self.keyboard.as_raw_fd(), &size(rows, columns)) }.expect("a terminal has a size");
    }

    /// Waits until `text` is on the screen, after what was waited for before.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + COMMAND_TIMEOUT;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            match self.screen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("waiting for {text:?}: {error}; on the screen: {:?}", self.seen),
            }
        }
    }

    /// Waits for its end; its exit code.
    #[track_caller]
    pub fn finish(mut self) -> i32 {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a pid fits"));
        let (sender, ended) = mpsc::channel::<()>();
        let watchdog = thread::spawn(move || {
            let late = ended.recv_timeout(COMMAND_TIMEOUT) == Err(mpsc::RecvTimeoutError::Timeout);
            if late {
                let _ = kill(pid, Signal::SIGKILL);
            }
            late
        });
        let status = self.child.wait().expect("our own child");
        drop(sender);
        assert!(!watchdog.join().expect("it does not panic"), "it still ran after {COMMAND_TIMEOUT:?}");
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // After finish this is no process of ours any more, and says so.
        let _ = self.child.kill();
    }
}
