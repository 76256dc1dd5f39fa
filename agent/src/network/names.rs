//! The guest's 127.0.0.11: what asks there for a name is answered by the resolver that the sandbox's network namespace has at
//! that address.
//!
//! ```text
//!   container ── UDP or TCP ──► 127.0.0.11:53 ── frames ──► vsock, a stream of the host ──► 127.0.0.11:53 of the namespace
//! ```
//!
//! The agent listens at that address only while the host has such a stream open.

use super::resolver::Resolver;
use crate::sync::lock;
use crate::vsock;
use lazaret_agent_api::{Ack, Frame, MAX_QUERIES, MAX_QUERY, RESOLVER, Transport};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_vsock::VsockListener;

/// How long a query waits for its answer: a moment longer than the host asks.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client's TCP connection may be without a query.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// The most TCP connections at a time; further ones are closed.
const MAX_CONNECTIONS: usize = 128;
/// How long no connection is accepted after an attempt failed, for want of memory or descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// The longest DNS message: TCP has two bytes for its length.
const MAX_ANSWER: usize = u16::MAX as usize;

/// Serves the host's streams for as long as the guest lives. Of two at a time the second is the one that is asked.
pub(super) async fn listen(listener: VsockListener) {
    vsock::for_each_host_stream(listener, "name query", |stream| {
        tokio::spawn(async move {
            if let Err(error) = serve(stream).await {
                log::warn!("names are not resolved at {RESOLVER} any more: {error}");
            }
        });
    })
    .await;
}

/// Listens at the address, and carries what is asked there to the host, until the stream ends.
async fn serve(host: impl AsyncRead + AsyncWrite) -> io::Result<()> {
    let mut host = std::pin::pin!(host);
    let resolver = match Resolver::listen().await {
        Ok(resolver) => Arc::new(resolver),
        Err(error) => {
            host.write_u8(Ack::NotFound as u8).await?;
            return Err(error);
        }
    };
    host.write_u8(Ack::Attached as u8).await?;
    let (from_host, to_host) = split(host);
    let (queries, queued) = mpsc::channel(MAX_QUERIES);
    let relay = Arc::new(Relay {
        queries,
        waiting: Mutex::default(),
        next_id: AtomicU32::new(0),
        free: Semaphore::new(MAX_QUERIES),
    });
    tokio::select! {
        ended = relay.take_answers(from_host) => ended,
        ended = send_queries(queued, to_host) => ended,
        ended = serve_udp(&resolver, &relay) => ended,
        () = serve_tcp(&resolver.tcp, &relay) => Ok(()),
    }
}

/// The queries that wait for their answers.
struct Relay {
    queries: mpsc::Sender<Frame>,
    waiting: Mutex<HashMap<u32, oneshot::Sender<Vec<u8>>>>,
    next_id: AtomicU32,
    free: Semaphore,
}

impl Relay {
    /// The host's answer. `None` when there is none, or too many queries wait already.
    async fn ask(&self, transport: Transport, message: Vec<u8>) -> Option<Vec<u8>> {
        let _permit = self.free.try_acquire().ok()?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        lock(&self.waiting).insert(id, answer);
        let sent = self.queries.try_send(Frame { id, transport, message });
        let answer = match sent {
            Ok(()) => timeout(ANSWER_TIMEOUT, answered).await.ok().and_then(Result::ok),
            Err(_) => None,
        };
        lock(&self.waiting).remove(&id);
        answer.filter(|answer| !answer.is_empty())
    }

    /// Hands answers to those who wait, until the host's stream ends.
    async fn take_answers(&self, mut host: impl AsyncRead + Unpin) -> io::Result<()> {
        loop {
            let frame = match Frame::read(&mut host, MAX_ANSWER).await {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                frame => frame?,
            };
            if let Some(waiting) = lock(&self.waiting).remove(&frame.id) {
                // Who has asked may have gone.
                let _ = waiting.send(frame.message);
            }
        }
    }
}

async fn send_queries(
    mut queries: mpsc::Receiver<Frame>,
    mut host: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    while let Some(query) = queries.recv().await {
        if let Some(bytes) = query.encode() {
            host.write_all(&bytes).await?;
        }
    }
    Ok(())
}

async fn serve_udp(resolver: &Arc<Resolver>, relay: &Arc<Relay>) -> io::Result<()> {
    let mut asking = JoinSet::new();
    // A datagram that does not fit is cut off, and seen to be too long.
    let mut buffer = vec![0; MAX_QUERY + 1];
    loop {
        let (length, client) = resolver.udp.recv_from(&mut buffer).await?;
        while asking.try_join_next().is_some() {}
        if length > MAX_QUERY || asking.len() == MAX_QUERIES {
            continue;
        }
        let (query, resolver, relay) = (buffer[..length].to_vec(), resolver.clone(), relay.clone());
        asking.spawn(async move {
            if let Some(answer) = relay.ask(Transport::Udp, query).await
                && let Err(error) = resolver.answer(&answer, client)
            {
                log::debug!("an answer to a name query: {error}");
            }
        });
    }
}

async fn serve_tcp(listener: &TcpListener, relay: &Arc<Relay>) {
    let mut clients = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                while clients.try_join_next().is_some() {}
                if clients.len() < MAX_CONNECTIONS {
                    clients.spawn(serve_client(client, relay.clone()));
                }
            }
            Err(error) => {
                log::warn!("cannot accept a connection to {RESOLVER}: {error}");
                sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

/// Answers a client's queries one after the other. A client whose query has no answer is closed.
async fn serve_client(mut client: TcpStream, relay: Arc<Relay>) {
    while let Ok(Ok(query)) = timeout(IDLE_TIMEOUT, read_query(&mut client)).await {
        let Some(answer) = relay.ask(Transport::Tcp, query).await else { return };
        let Ok(length) = u16::try_from(answer.len()) else { return };
        let bytes = [&length.to_be_bytes()[..], &answer].concat();
        match timeout(IDLE_TIMEOUT, client.write_all(&bytes)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

async fn read_query(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(client.read_u16().await?);
    if length > MAX_QUERY {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut query = vec![0; length];
    client.read_exact(&mut query).await?;
    Ok(query)
}

#[cfg(test)]
#[path = "names_test.rs"]
mod tests;
