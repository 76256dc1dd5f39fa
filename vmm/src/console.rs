//! Where the guest's console goes: to a file or terminal, and its last lines to memory, for the error when the VM ends.

use crate::sync::lock;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

/// Lines kept in memory, and the bytes kept of each.
const TAIL_LINES: usize = 40;
const TAIL_LINE_BYTES: usize = 256;

/// The sink of all consoles of a guest. Clones are the same sink.
#[derive(Clone)]
pub struct Output(Arc<Mutex<Sink>>);

struct Sink {
    tail: Tail,
    target: Box<dyn Write + Send>,
}

impl Output {
    #[must_use]
    pub fn new(target: Box<dyn Write + Send>) -> Self {
        Self(Arc::new(Mutex::new(Sink { tail: Tail::default(), target })))
    }

    /// The last lines, oldest first, free of control characters.
    #[must_use]
    pub fn tail(&self) -> Vec<String> {
        lock(&self.0).tail.lines()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut sink = lock(&self.0);
        sink.tail.push(bytes);
        // A target that fails (a full disk, a closed terminal) must not stop the guest.
        if let Err(error) = sink.target.write_all(bytes) {
            log::debug!("the console's output is lost: {error}");
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        lock(&self.0).target.flush()
    }
}

/// The last lines of a stream of bytes.
#[derive(Default)]
struct Tail {
    lines: VecDeque<String>,
    current: Vec<u8>,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                byte if self.current.len() < TAIL_LINE_BYTES => self.current.push(*byte),
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        let line = printable(&self.current);
        self.current.clear();
        if line.is_empty() {
            return;
        }
        if self.lines.len() == TAIL_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    fn lines(&self) -> Vec<String> {
        let unfinished = Some(printable(&self.current)).filter(|line| !line.is_empty());
        self.lines.iter().cloned().chain(unfinished).collect()
    }
}

/// A hostile guest writes the console: its escape sequences must not reach an operator's terminal by way of an error.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().filter(|character| !character.is_control()).collect::<String>().trim_end().to_owned()
}

/// A log file that a guest cannot fill the host with: when it is full, its newer half is kept.
pub struct BoundedLog {
    file: File,
    length: u64,
    limit: u64,
}

impl BoundedLog {
    /// Appends to `file`, which is open for reading and writing, up to `limit` bytes.
    ///
    /// # Errors
    /// When the file's length or flags cannot be had.
    pub fn new(file: File, limit: u64) -> io::Result<Self> {
        // With O_APPEND, Linux appends what is to be written at a place (pwrite(2), BUGS).
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
        fcntl(&file, FcntlArg::F_SETFL(flags - OFlag::O_APPEND))?;
        let length = file.metadata()?.len();
        Ok(Self { file, length, limit })
    }

    /// Moves the newest bytes, half a limit of them, to the start.
    fn halve(&mut self) -> io::Result<()> {
        let keep = self.limit / 2;
        let mut from = self.length.saturating_sub(keep);
        let mut to = 0;
        let mut piece = vec![0; 64 << 10];
        while from < self.length {
            let read = self.file.read_at(&mut piece, from)?;
            if read == 0 {
                break;
            }
            let piece = piece.get(..read).unwrap_or_default();
            self.file.write_all_at(piece, to)?;
            from += piece.len() as u64;
            to += piece.len() as u64;
        }
        self.length = to;
        self.file.set_len(to)
    }
}

impl Write for BoundedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = usize::try_from(self.limit / 2).unwrap_or(usize::MAX);
        let bytes = bytes.get(..room).unwrap_or(bytes);
        if self.length + bytes.len() as u64 > self.limit {
            self.halve()?;
        }
        self.file.write_all_at(bytes, self.length)?;
        self.length += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "console_test.rs"]
mod tests;
