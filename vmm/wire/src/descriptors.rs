//! The descriptors of a message, by name.
//!
//! A packet carries its descriptors in an order; the message lists their names in the same order. Who receives them takes
//! each by its name and then says that none is left, so that a sender and a receiver who disagree find out at once.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::os::fd::OwnedFd;

/// What a descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    /// `/dev/kvm`.
    Kvm,
    /// The kernel image.
    Kernel,
    /// The file that the guest's console is logged to.
    ConsoleLog,
    /// The disk with this index in [`VmConfig::disks`](crate::VmConfig::disks).
    Disk(u8),
    /// A stream socket: one end of a vsock connection.
    Stream,
    /// The queue with this number, from 0 on, of a tap device.
    Tap(u8),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kvm => f.write_str("kvm"),
            Self::Kernel => f.write_str("kernel"),
            Self::ConsoleLog => f.write_str("console log"),
            Self::Disk(index) => write!(f, "disk {index}"),
            Self::Stream => f.write_str("stream"),
            Self::Tap(queue) => write!(f, "tap queue {queue}"),
        }
    }
}

/// Why the descriptors of a message are not those that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    #[error("the descriptor \"{0}\" is missing")]
    Missing(Name),
    #[error("the descriptor \"{0}\" is not expected")]
    Unexpected(Name),
    #[error("the descriptor \"{0}\" is there twice")]
    Duplicate(Name),
    #[error("{names} descriptors are named and {descriptors} came")]
    Count { names: usize, descriptors: usize },
}

/// The descriptors that came with a message. Those that are not taken are closed.
#[derive(Debug, Default)]
pub struct Descriptors(Vec<(Name, OwnedFd)>);

impl Descriptors {
    /// Pairs `names` with the `descriptors` of the same packet.
    pub(crate) fn pair(names: Vec<Name>, descriptors: Vec<OwnedFd>) -> Result<Self, DescriptorError> {
        if names.len() != descriptors.len() {
            return Err(DescriptorError::Count { names: names.len(), descriptors: descriptors.len() });
        }
        check_distinct(&names)?;
        Ok(Self(names.into_iter().zip(descriptors).collect()))
    }

    /// Takes the descriptor that is named `name`.
    ///
    /// # Errors
    /// [`DescriptorError::Missing`].
    pub fn take(&mut self, name: Name) -> Result<OwnedFd, DescriptorError> {
        let index = self.0.iter().position(|(candidate, _)| *candidate == name);
        index.map(|index| self.0.swap_remove(index).1).ok_or(DescriptorError::Missing(name))
    }

    /// Checks that every descriptor was taken.
    ///
    /// # Errors
    /// [`DescriptorError::Unexpected`] names one that was not.
    pub fn finish(self) -> Result<(), DescriptorError> {
        self.0.first().map_or(Ok(()), |(name, _)| Err(DescriptorError::Unexpected(*name)))
    }

    /// The one descriptor of a message that has no other.
    ///
    /// # Errors
    /// [`DescriptorError::Missing`] and [`DescriptorError::Unexpected`].
    pub fn only(mut self, name: Name) -> Result<OwnedFd, DescriptorError> {
        let descriptor = self.take(name)?;
        self.finish().map(|()| descriptor)
    }
}

/// # Errors
/// [`DescriptorError::Duplicate`].
pub(crate) fn check_distinct(names: &[Name]) -> Result<(), DescriptorError> {
    let duplicate = (1..names.len()).find(|index| names[..*index].contains(&names[*index]));
    duplicate.map_or(Ok(()), |index| Err(DescriptorError::Duplicate(names[index])))
}

#[cfg(test)]
#[path = "descriptors_test.rs"]
mod tests;
