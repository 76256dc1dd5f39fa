//! Errors as the host sees them.

use crate::network::NetworkError;
use ttrpc::Code;

/// What an RPC can fail with: each variant is a status on the wire, with one line for the user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RpcError {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    AlreadyExists(String),
    #[error("{0}")]
    FailedPrecondition(String),
    #[error("{0}")]
    InvalidArgument(String),
    #[error("{0}")]
    Internal(String),
}

impl RpcError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Self::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
            Self::InvalidArgument(_) => Code::INVALID_ARGUMENT,
            Self::Internal(_) => Code::INTERNAL,
        }
    }
}

impl From<NetworkError> for RpcError {
    fn from(error: NetworkError) -> Self {
        match error {
            NetworkError::List(_) | NetworkError::Namespace(_) => Self::Internal(error.to_string()),
            _ => Self::FailedPrecondition(error.to_string()),
        }
    }
}

impl From<RpcError> for ttrpc::Error {
    fn from(error: RpcError) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), error.to_string()))
    }
}
