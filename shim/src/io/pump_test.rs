use super::*;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;

fn fifo() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    (dir, path)
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("in time")
}

#[tokio::test]
async fn an_output_is_closed_as_soon_as_the_stream_ends() {
    let (_dir, path) = fifo();
    let output_pipe = Output::fifo(&path).unwrap();
    let reading = tokio::task::spawn_blocking(move || std::fs::read(path).unwrap());
    let (ours, mut guests) = UnixStream::pair().unwrap();
    // The sender of the word that the process ended stays: the stream's end alone closes the pipe.
    let (_ended, word) = watch::channel(false);
    let pump = tokio::spawn(output(ours, output_pipe, word));
    let sent: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let expected = sent.clone();
    soon(async { guests.write_all(&sent).await.unwrap() }).await;
    drop(guests);
    soon(pump).await.unwrap();
    assert!(soon(reading).await.unwrap() == expected, "every byte, in order");
}

#[tokio::test]
async fn an_output_without_a_reader_waits_for_one_while_the_process_runs_and_is_given_up_after() {
    let (_dir, path) = fifo();
    let (ours, mut guests) = UnixStream::pair().unwrap();
    let (ended, word) = watch::channel(false);
    let pump = tokio::spawn(output(ours, Output::fifo(&path).unwrap(), word));
    guests.write_all(b"kept").await.unwrap();
    // A client that comes later finds it.
    let client = tokio::task::spawn_blocking(move || {
        let mut text = [0; 4];
        OpenOptions::new().read(true).open(&path).unwrap().read_exact(&mut text).unwrap();
        text
    });
    assert_eq!(&soon(client).await.unwrap(), b"kept");
    // More than a pipe holds: the pump is stuck until the process ends.
    let filler = tokio::spawn(async move {
        let _ = guests.write_all(&vec![0; 4 << 20]).await;
    });
    assert!(!pump.is_finished());
    ended.send_replace(true);
    soon(pump).await.unwrap();
    soon(filler).await.unwrap();
}

#[tokio::test]
async fn a_reader_that_is_slow_still_gets_everything_after_the_process_ended() {
    let (_dir, path) = fifo();
    let (ours, mut guests) = UnixStream::pair().unwrap();
    let (ended, word) = watch::channel(false);
    let mut client = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    let pump = tokio::spawn(output(ours, Output::fifo(&path).unwrap(), word));
    let writer = tokio::spawn(async move { guests.write_all(&vec![7; 1 << 20]).await.unwrap() });
    ended.send_replace(true);
    let reading = tokio::task::spawn_blocking(move || {
        let (mut total, mut buffer) = (0, [0; 512]);
        loop {
            match client.read(&mut buffer) {
                Ok(0) => return total,
                Ok(length) => total += length,
                Err(_) => std::thread::yield_now(),
            }
        }
    });
    soon(pump).await.unwrap();
    soon(writer).await.unwrap();
    assert_eq!(soon(reading).await.unwrap(), 1 << 20);
}

#[tokio::test]
async fn what_is_on_the_way_when_the_process_has_ended_survives_the_guest() {
    let (_dir, path) = fifo();
    let (ours, mut guests) = UnixStream::pair().unwrap();
    let (ended, word) = watch::channel(false);
    let mut client = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    let pump = tokio::spawn(output(ours, Output::fifo(&path).unwrap(), word));
    let sent: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let expected = sent.clone();
    let writer = tokio::spawn(async move { guests.write_all(&sent).await.unwrap() });
    ended.send_replace(true);
    // The guest has handed over everything, and is gone, before anybody reads.
    soon(writer).await.unwrap();
    let reading = tokio::task::spawn_blocking(move || {
        let (mut received, mut buffer) = (Vec::<u8>::new(), [0; 4096]);
        loop {
            match client.read(&mut buffer) {
                Ok(0) => return received,
                Ok(length) => received.extend(&buffer[..length]),
                Err(_) => std::thread::yield_now(),
            }
        }
    });
    soon(pump).await.unwrap();
    assert!(soon(reading).await.unwrap() == expected, "every byte, in order");
}

#[tokio::test]
async fn what_is_taken_over_of_a_process_that_has_ended_is_bounded() {
    let (_dir, path) = fifo();
    let (ours, mut guests) = UnixStream::pair().unwrap();
    let (_ended, word) = watch::channel(true);
    let _client = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    let _pump = tokio::spawn(output(ours, Output::fifo(&path).unwrap(), word));
    let flood = async {
        let mut total = 0;
        loop {
            let write = guests.write(&[0; 4096]);
            match tokio::time::timeout(Duration::from_millis(500), write).await {
                Ok(written) => total += written.unwrap(),
                Err(_) => return total,
            }
        }
    };
    let taken = soon(flood).await;
    // And what the pipe and the socket hold.
    assert!((MAX_REST..2 * MAX_REST).contains(&taken), "{taken}");
}

#[tokio::test]
async fn only_closing_the_hold_ends_an_input_and_after_what_is_in_flight() {
    let (_dir, path) = fifo();
    let super::super::fifo::Input { fifo, hold } = super::super::fifo::Input::open(&path).unwrap();
    let (ours, mut process) = UnixStream::pair().unwrap();
    let pump = tokio::spawn(input(fifo, ours));
    for part in ["one ", "two "] {
        // Each client goes away without the process noticing.
        let mut client = OpenOptions::new().write(true).open(&path).unwrap();
        client.write_all(part.as_bytes()).unwrap();
        drop(client);
        let mut text = [0; 4];
        soon(process.read_exact(&mut text)).await.unwrap();
        assert_eq!(text, part.as_bytes());
    }
    let mut last = OpenOptions::new().write(true).open(&path).unwrap();
    drop(hold);
    last.write_all(b"last").unwrap();
    drop(last);
    let mut rest = String::new();
    soon(process.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "last");
    soon(pump).await.unwrap();
}

#[tokio::test]
async fn a_process_that_closes_its_input_ends_the_copy() {
    let (_dir, path) = fifo();
    let super::super::fifo::Input { fifo, hold: _hold } = super::super::fifo::Input::open(&path).unwrap();
    let (ours, process) = UnixStream::pair().unwrap();
    drop(process);
    let pump = tokio::spawn(input(fifo, ours));
    OpenOptions::new().write(true).open(&path).unwrap().write_all(b"nobody takes this").unwrap();
    soon(pump).await.unwrap();
}
