//! Work in another network namespace.

use super::NetworkError;
use nix::sched::{CloneFlags, setns};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the kernel may take: it makes and moves interfaces of the whole host under one lock.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Runs `work` in a thread of its own that has entered `namespace`: a thread that others use too must not be left in there.
/// When the caller leaves, or the work takes too long, it is still done, and its result dropped.
///
/// # Errors
/// [`NetworkError::Namespace`], [`NetworkError::Late`], and those of `work`.
pub(super) async fn run<T: Send + 'static>(
    namespace: Arc<OwnedFd>,
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    let (answer, answered) = oneshot::channel();
    spawn(namespace, move |entered| drop(answer.send(entered.and_then(|()| work()))))?;
    let answered = tokio::time::timeout(TIMEOUT, answered).await;
    answered.map_err(|_| NetworkError::Late(TIMEOUT.as_secs()))?.map_err(|_| failed())?
}

/// The same for a caller that waits.
///
/// # Errors
/// [`NetworkError::Namespace`], and those of `work`.
pub(super) fn run_and_wait<T: Send + 'static>(
    namespace: OwnedFd,
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    let thread = spawn(Arc::new(namespace), move |entered| entered.and_then(|()| work()))?;
    thread.join().map_err(|_| failed())?
}

fn spawn<T: Send + 'static>(
    namespace: Arc<OwnedFd>,
    work: impl FnOnce(Result<(), NetworkError>) -> T + Send + 'static,
) -> Result<JoinHandle<T>, NetworkError> {
    let enter = move || setns(&*namespace, CloneFlags::CLONE_NEWNET);
    std::thread::Builder::new()
        .name("network".into())
        .spawn(move || work(enter().map_err(|errno| NetworkError::Namespace(errno.into()))))
        .map_err(NetworkError::Namespace)
}

fn failed() -> NetworkError {
    NetworkError::Namespace(io::Error::other("its thread failed"))
}
