//! virtio-vsock (VIRTIO 1.2, 5.10), terminated in this process: the far side of a guest's connection is a stream socket.
//!
//! ```text
//!   guest                      Vsock (one thread)                                   host
//!   tx queue ──► packet ──► Connection: state + credit ──► outbox (bounded) ──► stream socket
//!   rx queue ◄── packet ◄── ready list ◄── inner epoll ◄──────────────────────── stream socket
//!                                              ▲
//!                                  Connector::connect (any thread)
//! ```
//!
//! The life of a connection and the threat model are in this folder's README.

mod connection;
mod connector;
mod credit;
mod device;
#[cfg(test)]
mod guest;
#[cfg(test)]
mod model_test;
mod packet;
mod state;
#[cfg(test)]
mod stream_test;
mod table;
mod timer;

pub use connector::Connector;
pub use device::{Timeouts, Vsock, VsockError};
