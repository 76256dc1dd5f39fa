//! lazaret-vmm: one virtual machine on KVM.
//!
//! ```text
//!   shim ══control channel══► control ─┐                      ┌─ arch: layout, kernel, MP table, CPUID
//!   flags ──────────────► standalone ──┴─► Machine ───────────┤
//!                                             │               └─ hypervisor: KVM, behind nine methods
//!            ┌────────────────────────────────┴───────────────┐
//!     Vcpus: a thread each ──port, MMIO──► Bus ──► serial, i8042, virtio Transport
//!            ▲                                                      │ Command
//!            └────────── irqfd ◄── VirtioDevice ◄── Worker ◄── EventLoop ◄── ioeventfd
//! ```
//!
//! It knows nothing of containers. Adding a device is one file in `virtio/` and one [`machine::Machine::add`].
#![deny(clippy::cast_possible_truncation)]

pub mod arch;
pub mod bus;
pub mod console;
pub mod control;
mod disks;
pub mod event_loop;
pub mod hypervisor;
pub mod jail;
pub mod machine;
pub mod micro_guest;
mod nics;
pub mod pause;
mod pauses;
pub mod probe;
pub mod serial;
pub mod standalone;
pub mod stop;
mod sync;
mod terminal;
pub mod vcpu;
pub mod virtio;
