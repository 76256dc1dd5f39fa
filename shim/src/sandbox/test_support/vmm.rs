//! A VMM that runs no VM.

use super::super::vm::{Place, Vm};
use crate::sync::lock;
use lazaret_agent_api::agent::stream_header::Kind;
use lazaret_agent_api::{Ack, DOCKER_PORT, decode_header};
use lazaret_vmm_wire::{Cause, Channel, DiskState, Event as VmEvent, Name, Request, Stopped};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// The disks that a VMM was handed: the index and the file of each.
pub(crate) type Disks = Arc<Mutex<Vec<(u8, File)>>>;

/// A VMM that runs no VM: a process that only is there, and its end of the channel answered from here. Of the disks it is handed it
/// says of the first `refused_disks` that it does not take them.
pub(super) fn spawn(dir: &Path, refuses: Option<Kind>, mut refused_disks: usize, disks: Disks) -> Vm {
    let binary = dir.join("vmm");
    fs::write(&binary, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let (vm, _) = Vm::spawn(Place { binary, network: None, cgroup: None }).unwrap();
    let channel = descriptor_of(vm.pid(), 3);
    let pid = nix::unistd::Pid::from_raw(vm.pid().try_into().unwrap());
    std::thread::spawn(move || {
        let channel = Channel::from(channel);
        let mut streams = Vec::new();
        while let Ok((request, descriptors)) = channel.receive::<Request>() {
            match request {
                Request::Boot(_) | Request::PlugNic { .. } | Request::UnplugNic { .. } => {}
                Request::AttachDisk { index } => {
                    let file = descriptors.only(Name::Disk(index)).unwrap();
                    lock(&disks).push((index, file.into()));
                    let state = match refused_disks.checked_sub(1) {
                        None => DiskState::Attached,
                        Some(left) => {
                            refused_disks = left;
                            DiskState::Refused("it is not taken".into())
                        }
                    };
                    let _ = channel.send(&VmEvent::Disk { index, state }, &[]);
                }
                Request::Pause => _ = channel.send(&VmEvent::Paused, &[]),
                Request::Resume => _ = channel.send(&VmEvent::Resumed, &[]),
                Request::Connect { port: DOCKER_PORT } => {
                    echo(StdUnixStream::from(descriptors.only(Name::Stream).unwrap()));
                }
                Request::Connect { .. } => {
                    streams.push(acknowledge(
                        StdUnixStream::from(descriptors.only(Name::Stream).unwrap()),
                        refuses,
                    ));
                }
                Request::Stop => {
                    let stopped = Stopped { cause: Cause::Requested, console: Vec::new() };
                    let _ = channel.send(&VmEvent::Stopped(stopped), &[]);
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
                    return;
                }
            }
        }
    });
    vm
}

/// A daemon that says what it hears, once it has heard everything.
fn echo(mut stream: StdUnixStream) {
    std::thread::spawn(move || {
        let mut heard = Vec::new();
        // A client that is gone wants no answer.
        let _ = stream.read_to_end(&mut heard);
        let _ = stream.write_all(&heard);
    });
}

/// Answers a stream's header; a process that has its outputs closed from the start.
fn acknowledge(mut stream: StdUnixStream, refuses: Option<Kind>) -> Option<StdUnixStream> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut header = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut header).unwrap();
    let kind = decode_header(&header).unwrap().kind.unwrap();
    let ack = if refuses == Some(kind) { Ack::NotFound } else { Ack::Attached };
    stream.write_all(&[ack as u8]).unwrap();
    (kind == Kind::STDIN).then_some(stream)
}

/// A copy of a descriptor of another process (pidfd_getfd(2)).
pub(crate) fn descriptor_of(pid: u32, fd: i32) -> OwnedFd {
    // SAFETY: both calls take integers; each result is checked to be a new descriptor, which nothing else owns.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        assert!(pidfd >= 0);
        let pidfd = OwnedFd::from_raw_fd(pidfd.try_into().unwrap());
        let copy = libc::syscall(libc::SYS_pidfd_getfd, std::os::fd::AsRawFd::as_raw_fd(&pidfd), fd, 0);
        assert!(copy >= 0, "{}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(copy.try_into().unwrap())
    }
}
