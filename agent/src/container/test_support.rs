//! For tests that start processes.

use super::Containers;
use crate::crun::Crun;
use crate::reaper::Reaper;
use tokio::sync::{Mutex, MutexGuard};

/// Each such test has a reaper, and a reaper collects every child of this program: one at a time.
pub(crate) async fn processes() -> MutexGuard<'static, ()> {
    ALONE.lock().await
}

/// The same for a test that is not async.
pub(crate) fn processes_blocking() -> MutexGuard<'static, ()> {
    ALONE.blocking_lock()
}

static ALONE: Mutex<()> = Mutex::const_new(());

pub(crate) fn no_containers() -> Containers {
    let nowhere = std::path::PathBuf::from("/nonexistent");
    Containers::at(nowhere.clone(), Crun::without_cgroups(nowhere, Reaper::start().unwrap()))
}
