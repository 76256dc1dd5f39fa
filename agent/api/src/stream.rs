//! The handshake of a stdio stream: `stdio.md` draws it. Its ack is other streams' answer, too.

use crate::agent::StreamHeader;
use protobuf::Message;

/// The largest encoded header, in bytes.
pub const MAX_HEADER: usize = 1024;

/// The agent's one-byte answer to a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Ack {
    Attached = 0,
    /// There is no such process, or it has no such descriptor; nothing accepts connections at that port.
    NotFound = 1,
    /// Another stream is attached to that descriptor.
    Taken = 2,
}

#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    #[error("a stream header of {0} bytes, more than {MAX_HEADER}")]
    TooLarge(usize),
    #[error("not a stream header: {0}")]
    Malformed(#[from] protobuf::Error),
}

impl TryFrom<u8> for Ack {
    type Error = u8;

    fn try_from(byte: u8) -> Result<Self, u8> {
        [Self::Attached, Self::NotFound, Self::Taken].into_iter().find(|ack| *ack as u8 == byte).ok_or(byte)
    }
}

/// The bytes that open a stream: a big-endian `u16` length, then the header.
///
/// # Errors
/// [`HeaderError::TooLarge`] for ids that do not fit.
pub fn encode_header(header: &StreamHeader) -> Result<Vec<u8>, HeaderError> {
    let body = header.write_to_bytes()?;
    let length = u16::try_from(body.len()).ok().filter(|&n| usize::from(n) <= MAX_HEADER);
    let mut bytes = length.ok_or(HeaderError::TooLarge(body.len()))?.to_be_bytes().to_vec();
    bytes.extend(body);
    Ok(bytes)
}

/// Reads the body of a header, whose length has been read before and is at most [`MAX_HEADER`].
///
/// # Errors
/// [`HeaderError::Malformed`], [`HeaderError::TooLarge`].
pub fn decode_header(body: &[u8]) -> Result<StreamHeader, HeaderError> {
    if body.len() > MAX_HEADER {
        return Err(HeaderError::TooLarge(body.len()));
    }
    Ok(StreamHeader::parse_from_bytes(body)?)
}

#[cfg(test)]
#[path = "stream_test.rs"]
mod tests;
