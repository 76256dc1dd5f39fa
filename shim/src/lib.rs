//! lazaret's side of containerd: the runtime shim, and what the operator's command shares with it.
//!
//! ```text
//!   start ─► args, bootstrap, config ─► socket ─► fork ─► server
//!                                                           ├ service   containerd's calls
//!                                                           ├ sandbox/  the VM, its containers, their processes
//!                                                           ├ network/  its network namespace, wired to the guest
//!                                                           ├ io/       stdio between pipes and guest
//!                                                           ├ events    what happened, in order
//!                                                           └ logging   lines in containerd's log
//!   delete ─► state: what a sandbox has left behind, ended and removed
//!   lazaret ─► operator/: the host, its sandboxes and their volumes, looked at and looked after
//! ```

pub mod args;
pub mod bootstrap;
mod budget;
pub mod config;
pub mod delete;
mod error;
mod events;
mod guest_files;
pub mod info;
mod io;
mod logging;
mod network;
pub mod operator;
mod sandbox;
mod server;
mod service;
mod socket;
pub mod start;
pub mod state;
mod sync;
mod volume;
