//! Steers lookups of sockets: an eBPF program that the kernel runs when it looks for the socket that a new connection or a
//! datagram is for (`BPF_PROG_TYPE_SK_LOOKUP`, Linux 5.9; Documentation/bpf/prog_sk_lookup.rst).
//!
//! ```text
//!   SYN or datagram ──► no connected socket ──► program ──► one of the given sockets, else whoever has the address
//! ```
//!
//! The program is attached to one network namespace, and is there as long as the descriptor of its link is open. A socket that
//! a given listener accepts has the address and port that the client meant.
//!
//! shim and agent share this, each with its own choice.

mod instructions;

pub use instructions::{
    Instruction, R2, R6, R7, TO_END, and, jump, jump_if_equal, jump_unless_equal, load_u32, set,
};
use instructions::{R0, R1, R3, R10, add, call, copy, exit, load_map, store_u32};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The commands of bpf(2) (`enum bpf_cmd`, include/uapi/linux/bpf.h, as all that follows).
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const LINK_DETACH: libc::c_int = 34;
/// A map of sockets (`BPF_MAP_TYPE_SOCKMAP`); of the maps of sockets, programs of this type can only look into this kind.
const MAP_TYPE_SOCKMAP: u32 = 15;
const PROG_TYPE_SK_LOOKUP: u32 = 30;
const ATTACH_SK_LOOKUP: u32 = 36;
/// Bytes of the verifier's log; what it says last is why it refuses.
const LOG_SIZE: u32 = 64 * 1024;

/// The verdict: the socket that was assigned, else the one that the kernel finds.
const PASS: i32 = 1;

/// Functions of the kernel (`__BPF_FUNC_MAPPER`).
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;

/// Fields of the program's context, `struct bpf_sk_lookup`. Addresses are in network order, the local port is in the host's.
pub const FAMILY: i16 = 8;
pub const PROTOCOL: i16 = 12;
pub const LOCAL_IP4: i16 = 40;
pub const LOCAL_IP6: i16 = 44;
pub const LOCAL_PORT: i16 = 60;

/// A program that is attached, until this is dropped.
#[derive(Debug)]
pub struct Steering {
    link: OwnedFd,
}

impl Drop for Steering {
    fn drop(&mut self) {
        #[repr(C)]
        struct Attributes {
            link: u32,
        }
        // Closing the descriptor does the same, once no child of this process has it any more: one that has not run its program
        // yet does. When this fails, the namespace has gone.
        let _ = bpf(LINK_DETACH, &Attributes { link: self.link.as_raw_fd().cast_unsigned() });
    }
}

/// Steers this thread's network namespace until what it returns is dropped.
///
/// `choose` finds the context of the lookup in [`R6`], and either puts into [`R7`] the place of a socket among `sockets`, or jumps
/// [`TO_END`]. A place without a socket is as that jump.
///
/// # Errors
/// The kernel's, with the name of the step.
pub fn steer(choose: &[Instruction], sockets: &[Option<BorrowedFd<'_>>]) -> io::Result<Steering> {
    let at =
        |step: &'static str| move |error: io::Error| io::Error::new(error.kind(), format!("{step}: {error}"));
    let map = create_map(sockets.len()).map_err(at("making a map of sockets"))?;
    for (place, socket) in (0..).zip(sockets) {
        if let Some(socket) = socket {
            put(&map, place, *socket).map_err(at("putting a socket into the map"))?;
        }
    }
    let program = load(&program(choose, map.as_raw_fd())).map_err(at("loading the program"))?;
    let link = attach(&program).map_err(at("attaching the program"))?;
    Ok(Steering { link })
}

/// The whole program, for a map of sockets.
fn program(choose: &[Instruction], map: RawFd) -> Vec<Instruction> {
    let assign = [
        // R7: the socket's place in the map, then the socket.
        store_u32(R10, -4, R7),
        copy(R2, R10),
        add(R2, -4),
        call(MAP_LOOKUP_ELEM),
        jump_if_equal(R0, 0, TO_END),
        copy(R7, R0),
        copy(R1, R6),
        copy(R2, R7),
        set(R3, 0),
        // When the kernel does not take the socket, the packet is for whoever has the address.
        call(SK_ASSIGN),
        // The lookup has taken a reference, and the verifier counts.
        copy(R1, R7),
        call(SK_RELEASE),
    ];
    // The context is needed after calls.
    let mut program = [&[copy(R6, R1)], choose, &load_map(R1, map), &assign].concat();
    let end = program.len();
    for (index, instruction) in program.iter_mut().enumerate() {
        if instruction.offset == TO_END {
            instruction.offset = i16::try_from(end - index - 1).unwrap_or_default();
        }
    }
    program.extend([set(R0, PASS), exit()]);
    program
}

fn create_map(sockets: usize) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
    }
    let size = 4;
    bpf_descriptor(
        MAP_CREATE,
        &Attributes {
            map_type: MAP_TYPE_SOCKMAP,
            key_size: size,
            value_size: size,
            max_entries: u32::try_from(sockets).map_err(io::Error::other)?,
            map_flags: 0,
        },
    )
}

fn put(map: &OwnedFd, place: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        map: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let socket = socket.as_raw_fd();
    let attributes = Attributes {
        map: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: address(&raw const place),
        value: address(&raw const socket),
        flags: 0,
    };
    bpf(MAP_UPDATE_ELEM, &attributes).map(drop)
}

#[repr(C)]
#[derive(Clone)]
struct ProgramAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

/// Loads a program. When the kernel's verifier refuses it, the last lines of its log are in the error.
fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    const LICENSE: &CStr = c"Apache-2.0";
    let attributes = ProgramAttributes {
        program_type: PROG_TYPE_SK_LOOKUP,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: address(program.as_ptr()),
        license: address(LICENSE.as_ptr()),
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"lazaret\0\0\0\0\0\0\0\0\0",
        interface: 0,
        expected_attach_type: ATTACH_SK_LOOKUP,
    };
    bpf_descriptor(PROG_LOAD, &attributes).map_err(|error| {
        // The log costs time, so it is asked for only now.
        let mut log = vec![0; LOG_SIZE as usize];
        let logged = ProgramAttributes {
            log_level: 1,
            log_size: LOG_SIZE,
            log: address(log.as_mut_ptr()),
            ..attributes.clone()
        };
        // It fails again.
        let _ = bpf_descriptor(PROG_LOAD, &logged);
        let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
        let lines: Vec<_> = log.lines().rev().filter(|line| !line.starts_with("processed")).take(3).collect();
        let lines = lines.into_iter().rev().collect::<Vec<_>>().join(" | ");
        if lines.is_empty() { error } else { io::Error::new(error.kind(), format!("{error}: {lines}")) }
    })
}

fn attach(program: &OwnedFd) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
    }
    let namespace = File::open("/proc/thread-self/ns/net")?;
    let descriptor = |file: &dyn AsFd| file.as_fd().as_raw_fd().cast_unsigned();
    let attributes = Attributes {
        program: descriptor(program),
        target: descriptor(&namespace),
        attach_type: ATTACH_SK_LOOKUP,
        flags: 0,
    };
    bpf_descriptor(LINK_CREATE, &attributes)
}

/// An address as bpf(2) wants it.
fn address<T>(pointer: *const T) -> u64 {
    pointer as usize as u64
}

fn bpf_descriptor<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    let descriptor = bpf(command, attributes)?;
    // SAFETY: these commands return a new descriptor, close-on-exec, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// bpf(2). The kernel takes what is missing at the end of `attributes` to be zero.
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<RawFd> {
    let size = size_of::<T>();
    // SAFETY: `attributes` is one of the structures above: without padding, as long as its size says, and each address in it
    // is of something that outlives the call and is as long as the kernel reads or, for the log, writes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size) };
    match RawFd::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
#[path = "sk_lookup_test.rs"]
mod tests;
