use super::*;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

/// An io whose process would be this test: its ends of the pipes, and the agent's connected.
fn io(wanted: &Wanted) -> (ProcessIo, [Option<std::fs::File>; 3]) {
    let io = ProcessIo::new(wanted, false);
    let mut theirs = [None, None, None];
    let mut ends: Ends = [None, None, None];
    for (i, wanted) in [wanted.stdin, wanted.stdout, wanted.stderr].into_iter().enumerate() {
        if wanted {
            let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
            let (their, our) = if i == 0 { (read, write) } else { (write, read) };
            set_nonblocking(&our).unwrap();
            theirs[i] = Some(std::fs::File::from(their));
            ends[i] = Some(our);
        }
    }
    io.connect(ends);
    (io, theirs)
}

fn all() -> Wanted {
    Wanted { stdin: true, stdout: true, stderr: true, ..Default::default() }
}

fn attach(io: &ProcessIo, kind: Kind) -> DuplexStream {
    let (host, guest) = duplex(CHUNK_OF_HOST);
    io.copy(io.attach(kind).ok().unwrap(), guest);
    host
}

const CHUNK_OF_HOST: usize = 4096;

async fn everything(mut host: DuplexStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    host.read_to_end(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn each_descriptor_has_one_stream_and_those_not_asked_for_have_none() {
    let (io, _theirs) = io(&Wanted { stdout: true, ..Default::default() });
    let _stdout = attach(&io, Kind::STDOUT);
    assert_eq!(io.attach(Kind::STDOUT).err(), Some(Ack::Taken));
    assert_eq!(io.attach(Kind::STDERR).err(), Some(Ack::NotFound));
    assert_eq!(io.attach(Kind::STDIN).err(), Some(Ack::NotFound));
}

#[tokio::test]
async fn output_written_before_the_stream_is_attached_is_kept() {
    use std::io::Write;
    let (io, [_, stdout, stderr]) = io(&all());
    stdout.unwrap().write_all(b"out").unwrap();
    stderr.unwrap().write_all(b"err").unwrap();
    assert_eq!(everything(attach(&io, Kind::STDOUT)).await, b"out");
    assert_eq!(everything(attach(&io, Kind::STDERR)).await, b"err");
}

#[tokio::test]
async fn output_ends_with_the_process_though_a_child_holds_the_pipe_and_nothing_is_lost() {
    use std::io::Write;
    let (io, [_, stdout, _]) = io(&all());
    let mut held = stdout.unwrap();
    // All that a pipe holds, far more than the stream takes at once.
    let written = vec![b'x'; 64 * 1024];
    held.write_all(&written).unwrap();
    io.end();
    let host = attach(&io, Kind::STDOUT);
    assert_eq!(everything(host).await, written);
    io.drained().await;
    drop(held);
}

#[tokio::test]
async fn a_child_that_never_stops_writing_does_not_keep_the_stream_open() {
    use std::io::Write;
    let (io, [_, stdout, _]) = io(&all());
    let mut stdout = stdout.unwrap();
    let host = attach(&io, Kind::STDOUT);
    let writer = std::thread::spawn(move || while stdout.write_all(&[b'y'; 4096]).is_ok() {});
    let mut host = host;
    host.read_exact(&mut [0; 100_000]).await.unwrap();
    io.end();
    tokio::time::timeout(Duration::from_secs(60), everything(host)).await.unwrap();
    io.drained().await;
    // With the agent's end its pipe is broken.
    tokio::task::spawn_blocking(|| writer.join().unwrap()).await.unwrap();
}

#[tokio::test]
async fn the_end_of_the_stdin_stream_is_the_end_of_the_input_and_all_before_it_arrives() {
    use std::io::Read;
    let (io, [stdin, _, _]) = io(&all());
    let mut host = attach(&io, Kind::STDIN);
    let mut stdin = stdin.unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdin.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let sent: Vec<u8> = (0..1_000_000_u32).map(|i| i.to_le_bytes()[0]).collect();
    host.write_all(&sent).await.unwrap();
    host.shutdown().await.unwrap();
    let got = tokio::task::spawn_blocking(|| reader.join().unwrap()).await.unwrap();
    assert_eq!(got, sent);
}

#[tokio::test]
async fn input_nobody_reads_any_more_closes_its_stream() {
    let (io, [stdin, _, _]) = io(&all());
    let mut host = attach(&io, Kind::STDIN);
    drop(stdin);
    host.write_all(b"x").await.unwrap();
    assert!(everything(host).await.is_empty());
}

#[tokio::test]
async fn streams_attached_to_a_process_that_never_starts_close() {
    let io = ProcessIo::new(&all(), false);
    let (stdin, stdout) = (attach(&io, Kind::STDIN), attach(&io, Kind::STDOUT));
    io.fail();
    assert!(everything(stdout).await.is_empty());
    assert!(everything(stdin).await.is_empty());
    io.drained().await;
}

#[tokio::test]
async fn drained_waits_for_attached_outputs_alone() {
    use futures::FutureExt;
    let (io, _theirs) = io(&all());
    let _stdin = attach(&io, Kind::STDIN);
    assert!(io.drained().now_or_never().is_some());
    let stdout = attach(&io, Kind::STDOUT);
    assert!(io.drained().now_or_never().is_none());
    io.end();
    assert!(everything(stdout).await.is_empty());
    io.drained().await;
}

#[tokio::test]
async fn a_size_asked_for_early_is_the_terminals_from_its_start() {
    let pty = nix::pty::openpty(None, None).unwrap();
    let io = ProcessIo::new(&all(), true);
    assert_eq!(io.attach(Kind::STDERR).err(), Some(Ack::NotFound));
    io.resize(132, 43).unwrap().unwrap();
    io.connect_terminal(pty.master).unwrap();
    let size = || {
        // SAFETY: all zeroes is a `winsize`, which TIOCGWINSZ fills.
        let mut size: libc::winsize = unsafe { std::mem::zeroed() };
        // SAFETY: as above; it outlives the call.
        let result = unsafe { libc::ioctl(pty.slave.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
        assert_eq!(result, 0);
        (size.ws_col, size.ws_row)
    };
    assert_eq!(size(), (132, 43));
    io.resize(80, 24).unwrap().unwrap();
    assert_eq!(size(), (80, 24));
}

#[tokio::test]
async fn a_terminals_last_words_arrive() {
    let pty = nix::pty::openpty(None, None).unwrap();
    let io = ProcessIo::new(&all(), true);
    io.connect_terminal(pty.master).unwrap();
    let host = attach(&io, Kind::STDOUT);
    nix::unistd::write(&pty.slave, b"bye").unwrap();
    drop(pty.slave);
    io.end();
    assert_eq!(everything(host).await, b"bye");
}
