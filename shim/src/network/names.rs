//! Answers the guest's name queries: each is asked again of the resolver that the sandbox's network namespace has at
//! 127.0.0.11, which is dockerd's, by a socket in that namespace.
//!
//! A thread in the namespace does that until the guest's stream ends or [`Names`] is dropped. What it reads is the guest's: a
//! query has a bounded length, and so has the number of queries; what is beyond that is not answered.

use super::NetworkError;
use lazaret_agent_api::{Frame, MAX_QUERIES, MAX_QUERY, RESOLVER, Transport};
use nix::sched::{CloneFlags, setns};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// How long the resolver may take. dockerd's gives up on another name server after four seconds, and asks up to three.
const ANSWER_TIMEOUT: Duration = if cfg!(test) { Duration::from_secs(3) } else { Duration::from_secs(8) };
/// The most answers that the guest has not read yet; further ones are dropped.
const UNREAD_ANSWERS: usize = 64;
/// The longest answer: TCP has two bytes for its length.
const MAX_ANSWER: usize = u16::MAX as usize;

/// A thread that answers; dropping this ends it.
#[derive(Debug)]
pub(crate) struct Names {
    /// Dropped first, which is what ends the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Names {
    /// Answers the queries that come over `guest`, from within `namespace`.
    ///
    /// # Errors
    /// [`NetworkError::Namespace`] when there can be no thread.
    pub(crate) fn serve(namespace: Arc<OwnedFd>, guest: StdUnixStream) -> Result<Self, NetworkError> {
        let (stop, stopped) = oneshot::channel();
        let work = move || {
            if let Err(error) = run(&namespace, guest, stopped) {
                log::warn!("the guest's name queries are not answered any more: {error}");
            }
        };
        let thread =
            std::thread::Builder::new().name("names".into()).spawn(work).map_err(NetworkError::Namespace)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        drop(self.stop.take());
        // It does nothing that takes long, so it is awaited: no socket of it is left in the namespace.
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread that answers name queries failed");
        }
    }
}

fn run(namespace: &OwnedFd, guest: StdUnixStream, stopped: oneshot::Receiver<()>) -> io::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    // A runtime of this thread: the sockets are made where the thread is.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let (queries, answers) = UnixStream::from_std(guest)?.into_split();
        let (answer, answered) = mpsc::channel(UNREAD_ANSWERS);
        tokio::select! {
            ended = take_queries(queries, &answer) => ended,
            ended = send_answers(answered, answers) => ended,
            _ = stopped => Ok(()),
        }
    })
}

/// Reads queries and has each answered, until the guest's stream ends.
async fn take_queries(mut guest: OwnedReadHalf, answers: &mpsc::Sender<Frame>) -> io::Result<()> {
    let mut asking = JoinSet::new();
    loop {
        let query = match Frame::read(&mut guest, MAX_QUERY).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            query => query?,
        };
        while asking.try_join_next().is_some() {}
        if asking.len() < MAX_QUERIES {
            asking.spawn(answer(query, answers.clone()));
        }
    }
}

async fn send_answers(
    mut answers: mpsc::Receiver<Frame>,
    mut guest: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    while let Some(answer) = answers.recv().await {
        if let Some(bytes) = answer.encode() {
            guest.write_all(&bytes).await?;
        }
    }
    Ok(())
}

async fn answer(query: Frame, answers: mpsc::Sender<Frame>) {
    let asked = async {
        match query.transport {
            Transport::Udp => ask_by_udp(&query.message).await,
            Transport::Tcp => ask_by_tcp(&query.message).await,
        }
    };
    let message = match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(Ok(message)) => message,
        Ok(Err(error)) => {
            log::debug!("a name query of the guest: {RESOLVER}: {error}");
            Vec::new()
        }
        Err(_) => Vec::new(),
    };
    if answers.try_send(Frame { message, ..query }).is_err() {
        log::debug!("the guest does not read the answers to its name queries");
    }
}

async fn ask_by_udp(query: &[u8]) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect(RESOLVER).await?;
    socket.send(query).await?;
    socket.readable().await?;
    let mut answer = vec![0; MAX_ANSWER];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    answer.shrink_to_fit();
    Ok(answer)
}

async fn ask_by_tcp(query: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(RESOLVER).await?;
    stream.write_all(&[&length.to_be_bytes()[..], query].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
#[path = "names_test.rs"]
mod tests;
