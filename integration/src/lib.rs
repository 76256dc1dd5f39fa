//! What the end-to-end tests are written with. They run inside the test host (or on a machine with a good `/dev/kvm`),
//! as root, against a real containerd, and see what a user of `ctr` sees:
//!
//! ```text
//!  tests/e2e/<theme>.rs ──► Container ──► ctr ──► containerd ──► the runtime under test, or runc to compare with
//!                    │          └ on drop: leftovers::assert_gone(id)
//!                    └──► Running: output as it comes, stdin, a deadline on everything
//! ```
//!
//! `LAZARET_TEST_RUNTIME=io.containerd.runc.v2` runs the tests against runc: most must pass there too, which tests the tests.

pub mod command;
pub mod container;
pub mod containerd;
pub mod cri;
pub mod docker;
pub mod dockerd;
pub mod faults;
pub mod host;
pub mod leftovers;
pub mod namespace;
pub mod probe;
pub mod shared;
pub mod spec;
pub mod terminal;
pub mod traffic;

pub use host::{alone, beside_few, beside_others, next_beside_few};

/// The runtime that lazaret is compared with.
pub const RUNC: &str = "io.containerd.runc.v2";

/// The runtime under test.
pub fn runtime() -> String {
    std::env::var("LAZARET_TEST_RUNTIME").unwrap_or_else(|_| "io.containerd.lazaret.v2".to_owned())
}

/// Whether the runtime under test is lazaret. A test of what only a microVM promises begins with
/// `if !is_lazaret() { return; }`.
pub fn is_lazaret() -> bool {
    let yes = runtime().contains("lazaret");
    if !yes {
        eprintln!("not for {}: skipped", runtime());
    }
    yes
}
