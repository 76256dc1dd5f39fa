//! Connections of the host's programs that are carried into the guest: how many there can be, and how bytes go both ways.

use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::task::JoinSet;

/// How long no connection is accepted after an attempt failed: descriptors that have run out do not come back at once.
const ACCEPT_RETRY_DELAY: Duration =
    if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(1) };

/// Has each connection that `accept` gives carried by `carry`, until this is dropped, and every connection with it. When there
/// are `most` already, a further one goes to `refuse` rather than being kept waiting: nothing says that another client will
/// leave. `what` names the place they come from in the log.
pub(in crate::sandbox) async fn serve<C, A, F>(
    what: &str,
    most: usize,
    accept: impl Fn() -> A,
    carry: impl Fn(C) -> F,
    refuse: impl Fn(C),
) where
    A: Future<Output = io::Result<C>>,
    F: Future<Output = ()> + Send + 'static,
{
    let mut relays = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = relays.join_next() => {}
            accepted = accept() => match accepted {
                Ok(client) if relays.len() == most => {
                    log::warn!("a connection to {what} is refused: there are {most} already");
                    refuse(client);
                }
                Ok(client) => drop(relays.spawn(carry(client))),
                Err(error) => {
                    log::warn!("{what} takes no connection: {error}");
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
    }
}

/// Carries bytes both ways until both sides have ended their direction, with a buffer of so many bytes for each. The end of one
/// direction is passed on, and the other direction stays open.
///
/// # Errors
/// When a side breaks. Closing the other one then says so.
pub(in crate::sandbox) async fn copy(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut guest: impl AsyncRead + AsyncWrite + Unpin,
    buffer: usize,
) -> io::Result<()> {
    copy_bidirectional_with_sizes(&mut client, &mut guest, buffer, buffer).await.map(drop)
}
