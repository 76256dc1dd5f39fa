//! The errors that leave the shim: each variant is a status code on the wire, each message one line for the user.

use ttrpc::{Code, Error as TtrpcError, get_status};

/// What an RPC answers when it does not succeed. containerd maps these codes and no others; anything else becomes
/// "unknown", and then `docker stop` or a pod's garbage collection no longer recognise "already gone".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    AlreadyExists(String),
    #[error("{0}")]
    FailedPrecondition(String),
    #[error("{0}")]
    InvalidArgument(String),
    #[error("{0}")]
    Unimplemented(String),
    #[error("{0}")]
    DeadlineExceeded(String),
    #[error("{0}")]
    Internal(String),
}

impl Error {
    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Self::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
            Self::InvalidArgument(_) => Code::INVALID_ARGUMENT,
            Self::Unimplemented(_) => Code::UNIMPLEMENTED,
            Self::DeadlineExceeded(_) => Code::DEADLINE_EXCEEDED,
            Self::Internal(_) => Code::INTERNAL,
        }
    }

    /// What the agent answered to `call`. Its codes are the shim's own, so they pass through; a broken connection
    /// names the call.
    #[must_use]
    pub fn from_agent(call: &str, error: ttrpc::Error) -> Self {
        let ttrpc::Error::RpcStatus(status) = error else {
            return Self::Internal(format!("{call}: the connection to the guest's agent broke: {error}"));
        };
        let message = one_line(&status.message);
        match status.code() {
            Code::NOT_FOUND => Self::NotFound(message),
            Code::ALREADY_EXISTS => Self::AlreadyExists(message),
            Code::FAILED_PRECONDITION => Self::FailedPrecondition(message),
            Code::INVALID_ARGUMENT => Self::InvalidArgument(message),
            Code::UNIMPLEMENTED => Self::Unimplemented(message),
            Code::DEADLINE_EXCEEDED => {
                Self::DeadlineExceeded(format!("{call}: the guest's agent did not answer in time"))
            }
            _ => Self::Internal(message),
        }
    }
}

/// What a guest says is shown on terminals and kept in logs: one line of printable characters, not endless.
pub(crate) fn one_line(message: &str) -> String {
    const MAX_MESSAGE_CHARS: usize = 1024;
    message.chars().take(MAX_MESSAGE_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        TtrpcError::RpcStatus(get_status(error.code(), error.to_string()))
    }
}

/// The shim's results.
pub(crate) type Result<T> = std::result::Result<T, Error>;
