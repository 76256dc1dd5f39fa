//! virtio 1.2 devices over MMIO.
//!
//! ```text
//!   vCPU ──MMIO──► transport ──activate/notify──► event loop ──► VirtioDevice (one file each)
//!                                                    ▲                 │ Queues: pop, push
//!                                       own descriptors             guest memory, irq
//! ```
//!
//! A device is a plain state machine: it is told that a queue was kicked or that one of its own descriptors is ready,
//! and answers by popping and completing descriptor chains. Which thread that happens on is the event loop's business.

pub mod blk;
mod buffer;
mod chain;
mod config_space;
pub mod console;
mod device;
pub mod fs;
#[cfg(test)]
mod guest;
mod mmio;
pub mod net;
mod queues;
pub mod rng;
pub mod vsock;
mod worker;

pub use chain::Chain;
pub use config_space::ConfigSpace;
pub use device::{DeviceError, VirtioDevice, Watch};
pub use mmio::{QUEUE_NOTIFY, Shape, Transport, TransportError};
pub use queues::{Interrupt, Queues};
pub use worker::{Worker, WorkerHandle};
