//! Localhost of a sandbox's network namespace: connections that are made there to 127.0.0.1 or ::1 are the guest's.
//!
//! Programs of the host look there for the sandbox's servers: a CRI port-forward, probes. Two listeners of the namespace take
//! these connections, whatever the port ([`steering`]).

use super::ports::PORTS;
use super::{NetworkError, namespace, steering};
use lazaret_agent_api::LoopbackPort;
use lazaret_sk_lookup::Steering;
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};

/// The listeners; dropping this gives localhost back to the namespace.
#[derive(Debug)]
pub(crate) struct Localhost {
    _steering: Steering,
    ipv4: TcpListener,
    ipv6: Option<TcpListener>,
}

impl Localhost {
    /// Takes the connections of `namespace`, which is wired.
    ///
    /// # Errors
    /// [`NetworkError::Localhost`] where the kernel cannot do that; the namespace is as it was then.
    pub(crate) async fn open(namespace: Arc<OwnedFd>) -> Result<Self, NetworkError> {
        let (steering, ipv4, ipv6) =
            namespace::run(namespace, || open_here().map_err(NetworkError::Localhost)).await?;
        let ipv6 = ipv6.map(TcpListener::from_std).transpose().map_err(NetworkError::Localhost)?;
        let ipv4 = TcpListener::from_std(ipv4).map_err(NetworkError::Localhost)?;
        Ok(Self { _steering: steering, ipv4, ipv6 })
    }

    /// The next connection, and where in the guest it goes.
    ///
    /// # Errors
    /// Of accept(2).
    pub(crate) async fn accept(&self) -> io::Result<(TcpStream, LoopbackPort)> {
        loop {
            let ipv6 = async {
                match &self.ipv6 {
                    Some(listener) => listener.accept().await,
                    None => std::future::pending().await,
                }
            };
            let (client, _) = tokio::select! {
                accepted = self.ipv4.accept() => accepted?,
                accepted = ipv6 => accepted?,
            };
            let address = client.local_addr()?;
            match LoopbackPort::at(address).filter(|_| !PORTS.contains(&address.port())) {
                Some(port) => return Ok((client, port)),
                // The client has found the listener's own port, which is nobody's.
                None => reset(&client),
            }
        }
    }
}

impl Drop for Localhost {
    fn drop(&mut self) {
        for listener in [Some(&self.ipv4), self.ipv6.as_ref()].into_iter().flatten() {
            // Closing it does the same, once no child of this process that has not run its program yet has it.
            if let Err(errno) = shutdown(listener.as_raw_fd(), Shutdown::Both) {
                log::debug!("a listener of localhost: {errno}");
            }
        }
    }
}

/// Has the client see a reset, not an end of what the server says, when its connection is closed.
pub(crate) fn reset(client: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    if let Err(errno) = setsockopt(client, sockopt::Linger, &linger) {
        log::debug!("a connection to localhost is not reset: {errno}");
    }
}

type Opened = (Steering, StdTcpListener, Option<StdTcpListener>);

/// Listens in this thread's network namespace.
fn open_here() -> io::Result<Opened> {
    let ipv4 = listen(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0))?;
    let ipv6 = match listen(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 0)) {
        // The kernel, or this namespace, is without IPv6.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)) => None,
        listener => Some(listener?),
    };
    let steering = steering::to_listeners(&ipv4, ipv6.as_ref())?;
    Ok((steering, ipv4, ipv6))
}

/// A listener on a port of the block, since the kernel takes ports from there while the namespace is wired.
fn listen(address: SocketAddr) -> io::Result<StdTcpListener> {
    let listener = StdTcpListener::bind(address)?;
    let port = listener.local_addr()?.port();
    if !PORTS.contains(&port) {
        return Err(io::Error::other(format!("port {port} is not the namespace's own: it is not wired")));
    }
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
#[path = "localhost_test.rs"]
mod tests;
