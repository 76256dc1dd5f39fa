//! virtio-console (VIRTIO 1.2, 5.3) with one port: what the guest prints, and what is typed.

use super::buffer::Buffer;
use super::{DeviceError, Queues, VirtioDevice, Watch};
use crate::console::Output;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vmm_sys_util::epoll::EventSet;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_SIZES: [u16; 2] = [64, 64];
/// Bytes printed of one chain: Linux sends a page at most, and one chain shall not hold the thread for long.
const MAX_CHAIN: usize = 64 << 10;
const INPUT: u32 = 0;

/// The device.
pub struct Console {
    output: Output,
    /// A pipe or socket that does not block.
    input: Option<File>,
    /// The input may have bytes: it is watched for the edge at which it gets some.
    readable: bool,
}

impl Console {
    /// A console that prints to `output` and takes what `input`, a non-blocking pipe or socket, has.
    #[must_use]
    pub fn new(output: Output, input: Option<File>) -> Self {
        Self { output, input, readable: false }
    }

    fn print(&mut self, queues: &mut Queues) -> Result<(), DeviceError> {
        let memory = queues.memory().clone();
        let mut bytes = [0; 4096];
        while let Some(chain) = queues.pop(TRANSMIT)? {
            let (mut text, _) = Buffer::of(&memory, &chain);
            let mut rest = text.len().min(MAX_CHAIN);
            while rest > 0 {
                let count = text.copy_to(&mut bytes).min(rest);
                self.output.write_all(bytes.get(..count).unwrap_or_default())?;
                rest -= count;
                let Some((_, tail)) = text.split_at(count) else { break };
                text = tail;
            }
            queues.push(TRANSMIT, chain.head_index(), 0)?;
        }
        Ok(())
    }

    /// Passes on what is typed, as far as the guest has room.
    fn type_in(&mut self, queues: &mut Queues) -> Result<(), DeviceError> {
        let memory = queues.memory().clone();
        let Some(input) = &mut self.input else { return Ok(()) };
        while self.readable {
            let Some(chain) = queues.pop(RECEIVE)? else { break };
            let (_, room) = Buffer::of(&memory, &chain);
            let mut bytes = [0; 4096];
            let count = room.len().min(bytes.len());
            match input.read(bytes.get_mut(..count).unwrap_or_default()) {
                Ok(0) if count > 0 => self.readable = false, // the end: nothing more will come
                Ok(count) => {
                    let written = room.copy_from(bytes.get(..count).unwrap_or_default());
                    queues.push(RECEIVE, chain.head_index(), u32::try_from(written).unwrap_or(0))?;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
            queues.unpop(RECEIVE);
        }
        Ok(())
    }
}

impl VirtioDevice for Console {
    fn id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, _: u64) -> Result<Vec<Watch>, DeviceError> {
        self.readable = self.input.is_some();
        let watch = self.input.as_ref().map(|input| Watch::Set {
            fd: input.as_raw_fd(),
            token: INPUT,
            events: EventSet::IN | EventSet::EDGE_TRIGGERED,
        });
        Ok(watch.into_iter().collect())
    }

    fn notified(&mut self, index: usize, queues: &mut Queues) -> Result<(), DeviceError> {
        if index == TRANSMIT { self.print(queues) } else { self.type_in(queues) }
    }

    fn ready(&mut self, _: u32, _: EventSet, queues: &mut Queues) -> Result<Vec<Watch>, DeviceError> {
        self.readable = true;
        self.type_in(queues)?;
        Ok(Vec::new())
    }

    fn reset(&mut self) {
        self.readable = false;
    }
}

#[cfg(test)]
#[path = "console_test.rs"]
mod tests;
