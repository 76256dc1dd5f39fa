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
pub mod docker;
pub mod leftovers;
pub mod probe;
pub mod spec;
pub mod terminal;

use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

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

static HOST: RwLock<()> = RwLock::new(());

/// Held by every test that can run beside others.
pub fn beside_others() -> RwLockReadGuard<'static, ()> {
    // A test that failed while it held the lock has not broken anything the lock protects.
    HOST.read().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Held by a test that looks at, or changes, something of the whole host.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    HOST.write().unwrap_or_else(|poisoned| poisoned.into_inner())
}
