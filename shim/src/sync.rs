//! Locks whose poisoning is ignored: what they guard is consistent at every step, also where a panic ended one.
//!
//! shim, agent and vmm each have this file: the crates they share are contracts, not places for code.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
