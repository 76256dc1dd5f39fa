//! The end-to-end tests, one module a theme, one test a promise. They run in the test host: `integration/test`.
//!
//! Modules named in `integration/test` as every suite's also run on the containerd of Debian bookworm and sid.

mod bad_input;
mod cri;
mod docker;
mod docker_faults;
mod docker_host;
mod docker_use;
mod dockerd;
mod faults;
mod files;
mod isolation;
mod lifecycle;
mod limits;
mod localhost;
mod many_at_once;
mod network;
mod network_traffic;
mod network_user;
mod pods;
mod run_and_exit_codes;
mod snapshot;
mod spec_parity;
mod stdio;
mod terminal;
