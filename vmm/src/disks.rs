//! The machine's disks, and the files that the shim attaches to those that are empty at the boot.

use crate::control::send;
use crate::machine::{Machine, MachineError, Part, Placement};
use crate::virtio::blk::{Blk, Slot};
use lazaret_vmm_wire::{Channel, Descriptors, DiskState, Event, Name, VmConfig};
use std::fs::File;
use std::io;
use std::sync::Arc;

/// Why the machine has no such disk.
#[derive(Debug, thiserror::Error)]
pub enum DisksError {
    #[error("cannot use disk{index}: {source}")]
    File { index: usize, source: io::Error },
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Plugs a disk into the machine; `name` is for messages and its thread.
///
/// # Errors
/// See [`MachineError`].
pub(crate) fn add(machine: &mut Machine, name: &str, disk: Blk) -> Result<(), MachineError> {
    let shape = disk.shape();
    let part = Part { name: name.to_owned(), device: Box::new(disk), placement: Placement::Own };
    machine.add_parts(shape, vec![part])
}

/// The disks of a VM whose shim is at the other end of `channel`.
pub(crate) struct Disks {
    /// Of each disk; `None` for one that has had its file from the boot on.
    slots: Vec<Option<Slot>>,
    channel: Arc<Channel>,
}

impl Disks {
    /// Gives `machine` the disks that `config` asks for. `files` has one for each that is not empty.
    ///
    /// # Errors
    /// See [`DisksError`].
    pub(crate) fn new(
        machine: &mut Machine,
        config: &VmConfig,
        files: Vec<Option<File>>,
        channel: &Arc<Channel>,
    ) -> Result<Self, DisksError> {
        let mut slots = Vec::new();
        for (index, (file, disk)) in files.into_iter().zip(&config.disks).enumerate() {
            let name = format!("disk{index}");
            let empty = file.is_none();
            let made = match file {
                Some(file) => Blk::new(file, disk.read_only, &name),
                None => Blk::empty(disk.read_only, &name),
            };
            let made = made.map_err(|source| DisksError::File { index, source })?;
            slots.push(empty.then(|| made.slot()));
            add(machine, &name, made)?;
        }
        Ok(Self { slots, channel: Arc::clone(channel) })
    }

    /// [`Request::AttachDisk`](lazaret_vmm_wire::Request::AttachDisk); it is answered by this.
    pub(crate) fn attach(&self, index: u8, descriptors: Descriptors) {
        let state = match self.try_attach(index, descriptors) {
            Ok(()) => DiskState::Attached,
            Err(why) => DiskState::Refused(why),
        };
        if let Err(error) = send(&self.channel, &Event::Disk { index, state }) {
            log::warn!("disk {index}: {error}");
        }
    }

    fn try_attach(&self, index: u8, descriptors: Descriptors) -> Result<(), String> {
        let slot = self.slots.get(usize::from(index));
        let slot = slot.ok_or_else(|| format!("the VM has {} disks, from 0 on", self.slots.len()))?;
        let slot = slot.as_ref().ok_or("the disk has had its file from the boot on")?;
        let file = descriptors.only(Name::Disk(index)).map_err(|error| error.to_string())?;
        slot.attach(file.into()).map_err(|error| error.to_string())
    }
}
