//! A virtual machine: put together, run, and taken apart.
//!
//! ```text
//!   Machine::new ─► add(device)… ─► boot(kernel) ─► run ─► Ended ─► (report) ─► drop: teardown
//! ```

use crate::arch::{boot, cpuid, layout, mptable};
use crate::bus::Bus;
use crate::console::Output;
use crate::event_loop::{EventLoop, Subscriber};
use crate::hypervisor::{HypervisorError, KvmVm, Vm};
use crate::serial::Serial;
use crate::stop::Stop;
use crate::vcpu::{Gate, Vcpus};
use crate::virtio::{Interrupt, QUEUE_NOTIFY, Shape, Transport, TransportError, VirtioDevice, Worker};
use lazaret_vmm_wire::Cause;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use vm_memory::mmap::FromRangesError;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// The most vCPUs: 8-bit APIC ids, of which one is the I/O APIC's and 255 means all.
pub const MAX_VCPUS: u8 = 254;
/// The least and the most memory, MiB: a kernel with its tables, and what 46-bit physical addresses reach easily.
const MEMORY_MIB: std::ops::RangeInclusive<u32> = 2..=16 << 20;

/// Why a machine cannot be put together or started.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("a VM has from 1 to {MAX_VCPUS} vCPUs, not {0}")]
    Vcpus(u8),
    #[error("a VM has from {} to {} MiB of memory, not {mib}", MEMORY_MIB.start(), MEMORY_MIB.end())]
    MemorySize { mib: u32 },
    #[error("cannot reserve {mib} MiB for the guest's memory: {source}")]
    Memory { mib: u32, source: FromRangesError },
    #[error("no interrupt line is left for another device; there are {}", layout::IRQ_MAX - layout::VIRTIO_MMIO_IRQ + 1)]
    TooManyDevices,
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("cannot write the MP table: {0}")]
    MpTable(vm_memory::GuestMemoryError),
    #[error("cannot start the VM's threads: {0}")]
    Threads(#[from] io::Error),
}

/// Which thread serves a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// The VM's event loop: devices that never block.
    Shared,
    /// A thread of its own: devices that wait for the host's disks.
    Own,
    /// The thread of this name, with others that name it.
    Thread(&'static str),
}

/// Some of a device's queues, and what serves them.
pub struct Part {
    /// For messages, and for a thread of its own.
    pub name: String,
    pub device: Box<dyn VirtioDevice>,
    pub placement: Placement,
}

/// A machine that is being put together.
pub struct Machine {
    vm: Box<dyn Vm>,
    memory: Arc<GuestMemoryMmap>,
    vcpus: u8,
    stop: Stop,
    gate: Gate,
    /// Loop of the light devices, run by the thread that calls [`Machine::run`].
    main_loop: EventLoop,
    own_loops: Vec<(String, EventLoop)>,
    transports: Vec<Transport>,
    serial: Arc<Mutex<Serial>>,
    /// The kernel's arguments that name the devices.
    device_arguments: String,
    start: Option<(u64, u64)>,
}

impl Machine {
    /// A machine of `vcpus` and `memory_mib`, without devices but for a serial port that prints to `serial`.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub fn new(kvm: OwnedFd, vcpus: u8, memory_mib: u32, serial: Output) -> Result<Self, MachineError> {
        if !(1..=MAX_VCPUS).contains(&vcpus) {
            return Err(MachineError::Vcpus(vcpus));
        }
        if !MEMORY_MIB.contains(&memory_mib) {
            return Err(MachineError::MemorySize { mib: memory_mib });
        }
        let ranges: Vec<_> = layout::memory_ranges(u64::from(memory_mib) << 20)
            .into_iter()
            .map(|(start, length)| (GuestAddress(start), usize::try_from(length).unwrap_or(usize::MAX)))
            .collect();
        let memory = GuestMemoryMmap::from_ranges(&ranges)
            .map_err(|source| MachineError::Memory { mib: memory_mib, source })?;
        let memory = Arc::new(memory);
        let vm = KvmVm::new(kvm, Arc::clone(&memory))?;
        let stop = Stop::new()?;
        let serial = Serial::new(vm.interrupt_line(layout::SERIAL_IRQ)?, serial);
        Ok(Self {
            main_loop: EventLoop::new(stop.clone())?,
            own_loops: Vec::new(),
            vm: Box::new(vm),
            memory,
            vcpus,
            stop,
            gate: Gate::new()?,
            transports: Vec::new(),
            serial: Arc::new(Mutex::new(serial)),
            device_arguments: String::new(),
            start: None,
        })
    }

    /// The handle that ends this VM.
    #[must_use]
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// The handle that pauses this VM.
    #[must_use]
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }

    /// The serial port, for what is typed.
    #[must_use]
    pub fn serial(&self) -> Arc<Mutex<Serial>> {
        Arc::clone(&self.serial)
    }

    /// What the guest runs in.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> Arc<GuestMemoryMmap> {
        Arc::clone(&self.memory)
    }

    /// Has the VM's event loop serve something besides the devices.
    pub fn subscribe(&mut self, subscriber: Box<dyn Subscriber>) {
        self.main_loop.add(subscriber);
    }

    /// Plugs in `device`; `name` is for messages and its thread. Disks appear in the guest in the order they are added.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub fn add(
        &mut self,
        name: &str,
        device: Box<dyn VirtioDevice>,
        placement: Placement,
    ) -> Result<(), MachineError> {
        let shape = Shape::of(device.as_ref());
        self.add_parts(shape, vec![Part { name: name.to_owned(), device, placement }])
    }

    /// Plugs in a device that is served in parts: the queues of `shape` are those of `parts`, in order.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub fn add_parts(&mut self, shape: Shape, parts: Vec<Part>) -> Result<(), MachineError> {
        let slot = u32::try_from(self.transports.len()).unwrap_or(u32::MAX);
        let irq = slot.saturating_add(layout::VIRTIO_MMIO_IRQ);
        if irq > layout::IRQ_MAX {
            return Err(MachineError::TooManyDevices);
        }
        let address = layout::VIRTIO_MMIO + u64::from(slot) * layout::VIRTIO_MMIO_SIZE;
        let interrupt = Arc::new(Interrupt::new(self.vm.interrupt_line(irq)?));
        let mut queue = 0..;
        let mut handles = Vec::with_capacity(parts.len());
        for Part { name, device, placement } in parts {
            let queues = device.queue_sizes().iter().zip(&mut queue);
            let doorbells = queues.map(|(_, queue)| self.vm.doorbell(address + QUEUE_NOTIFY, queue));
            let doorbells = doorbells.collect::<Result<_, _>>()?;
            let (worker, handle) = Worker::new(name.clone(), device, doorbells)?;
            handles.push(handle);
            match placement {
                Placement::Shared => self.main_loop.add(Box::new(worker)),
                Placement::Own => self.add_loop(name)?.add(Box::new(worker)),
                Placement::Thread(name) => match self.own_loops.iter_mut().find(|(other, _)| other == name) {
                    Some((_, own)) => own.add(Box::new(worker)),
                    None => self.add_loop(name.to_owned())?.add(Box::new(worker)),
                },
            }
        }
        self.transports.push(Transport::new(shape, Arc::clone(&self.memory), interrupt, handles)?);
        let size = layout::VIRTIO_MMIO_SIZE >> 10;
        // Writing to a String cannot fail.
        let _ = write!(self.device_arguments, "virtio_mmio.device={size}K@{address:#x}:{irq} ");
        Ok(())
    }

    fn add_loop(&mut self, name: String) -> io::Result<&mut EventLoop> {
        let own = EventLoop::new(self.stop.clone())?;
        self.own_loops.push((name, own));
        let (_, own) = self.own_loops.last_mut().ok_or(io::ErrorKind::NotFound)?;
        Ok(own)
    }

    /// Loads the kernel; the devices plugged in so far are named on its command line before `cmdline`, which may end in
    /// arguments of init's (`-- …`).
    ///
    /// # Errors
    /// See [`MachineError`].
    pub fn boot(&mut self, kernel: &mut File, cmdline: &str) -> Result<(), MachineError> {
        let entry = boot::load_kernel(&self.memory, kernel)?;
        let info = boot::write_start_info(&self.memory, &format!("{}{cmdline}", self.device_arguments))?;
        mptable::write(&self.memory, self.vcpus).map_err(MachineError::MpTable)?;
        self.start = Some((entry, info));
        Ok(())
    }

    /// Runs the guest until something ends it. `running` is called when the vCPUs are off.
    ///
    /// The guest no longer runs when this returns, but the machine is still there: report the end before dropping it,
    /// because the kernel takes tens of milliseconds to take a VM apart.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(self, running: impl FnOnce()) -> Result<Ended, MachineError> {
        let host = self.vm.cpuid()?;
        let mut vcpus = Vec::new();
        for id in 0..self.vcpus {
            let mut vcpu = self.vm.create_vcpu(id)?;
            vcpu.set_cpuid(&cpuid::of_vcpu(&host, id, self.vcpus))?;
            vcpus.push(vcpu);
        }
        // The other processors wait for the kernel's INIT and start-up interrupts.
        if let (Some(vcpu), Some((entry, info))) = (vcpus.first_mut(), self.start) {
            vcpu.start_at(entry, info)?;
        }
        let bus = Arc::new(Bus::new(self.serial, self.transports, self.stop.clone()));
        let mut loops = Vec::new();
        for (name, own) in self.own_loops {
            loops.push(Builder::new().name(name).spawn(move || own.run())?);
        }
        let vcpus = Vcpus::run(vcpus, &bus, &self.gate, &self.stop)?;
        running();
        let main_loop = self.main_loop.run();
        drop(vcpus);
        let cause = self.stop.cause().cloned().unwrap_or(Cause::Requested);
        Ok(Ended { cause, _main_loop: main_loop, _own_loops: loops, _bus: bus, _vm: self.vm })
    }
}

/// A machine whose guest has ended. Dropping it takes it apart.
pub struct Ended {
    pub cause: Cause,
    _main_loop: EventLoop,
    _own_loops: Vec<JoinHandle<EventLoop>>,
    _bus: Arc<Bus>,
    _vm: Box<dyn Vm>,
}

#[cfg(test)]
#[path = "machine_test.rs"]
mod tests;
