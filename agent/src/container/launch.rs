//! Starting a process through crun, and its stdio with it.

use crate::crun::{CrunError, Launch};
use crate::reaper::{Child, Reaper};
use crate::rpc::RpcError;
use crate::stdio::{ConsoleError, ConsoleSocket, ProcessIo};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error(transparent)]
    Crun(#[from] CrunError),
    #[error(transparent)]
    Console(#[from] ConsoleError),
    #[error("cannot make its stdio: {0}")]
    Stdio(#[from] nix::Error),
}

impl From<LaunchError> for RpcError {
    fn from(error: LaunchError) -> Self {
        match error {
            LaunchError::Crun(CrunError::Refused(message)) => Self::InvalidArgument(message),
            error => Self::Internal(error.to_string()),
        }
    }
}

/// Has `crun` start a process with files in `directory`, and connects its stdio.
///
/// # Errors
/// [`LaunchError`]. There may be a process nevertheless: the container's end ends it.
pub(super) async fn launch<F>(
    reaper: &Arc<Reaper>,
    directory: &Path,
    io: &ProcessIo,
    oom_score_adj: i64,
    crun: F,
) -> Result<Child, LaunchError>
where
    F: AsyncFnOnce(Launch<'_>) -> Result<libc::pid_t, CrunError>,
{
    let expectation = reaper.expect();
    if !io.has_terminal() {
        let (stdio, ends) = io.pipes()?;
        let pid = crun(Launch { directory, stdio, console_socket: None, oom_score_adj }).await?;
        io.connect(ends);
        return Ok(expectation.claim(pid));
    }
    let socket = ConsoleSocket::bind(directory)?;
    let path = socket.path.clone();
    let stdio = [Stdio::null(), Stdio::null(), Stdio::null()];
    let pid = crun(Launch { directory, stdio, console_socket: Some(&path), oom_score_adj }).await?;
    io.connect_terminal(socket.receive().await?)?;
    Ok(expectation.claim(pid))
}
