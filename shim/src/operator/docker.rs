//! `lazaret docker`: the host's Docker command line, on the daemon of one sandbox.

use super::sandboxes::{Condition, Sandbox};
use std::convert::Infallible;
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::unix::process::CommandExt;
use std::process::Command;

#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    #[error("sandbox {0} does not run (`lazaret ps` tells)")]
    NotRunning(String),
    #[error(
        "sandbox {0} does not export its Docker socket: start it with the annotation io.lazaret.docker.export=true"
    )]
    NotExported(String),
    #[error("there is no docker in PATH: install Docker's command line (Debian: docker-cli)")]
    NoCommand,
    #[error("docker: {0}")]
    Os(io::Error),
}

/// Becomes `docker`, with these arguments; returns only when that cannot be.
///
/// # Errors
/// [`DockerError`].
pub fn exec(sandbox: &Sandbox, arguments: &[OsString]) -> Result<Infallible, DockerError> {
    let error = command(sandbox, arguments)?.exec();
    Err(match error.kind() {
        ErrorKind::NotFound => DockerError::NoCommand,
        _ => DockerError::Os(error),
    })
}

fn command(sandbox: &Sandbox, arguments: &[OsString]) -> Result<Command, DockerError> {
    let name = || format!("{}/{}", sandbox.namespace, sandbox.id);
    if sandbox.condition != Condition::Running {
        return Err(DockerError::NotRunning(name()));
    }
    if !sandbox.docker_socket.exists() {
        return Err(DockerError::NotExported(name()));
    }
    let mut host = OsString::from("unix://");
    host.push(&sandbox.docker_socket);
    let mut command = Command::new("docker");
    command.arg("--host").arg(host).args(arguments);
    // What the environment says of another daemon is not about this one.
    for about_another in ["DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_API_VERSION"] {
        command.env_remove(about_another);
    }
    Ok(command)
}

#[cfg(test)]
#[path = "docker_test.rs"]
mod tests;
