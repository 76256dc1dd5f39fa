//! eBPF's instructions, as far as programs need them (Documentation/bpf/standardization/instruction-set.rst).

use std::os::fd::RawFd;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Instruction {
    pub(crate) code: u8,
    /// The destination in the low four bits, the source in the high ones.
    registers: u8,
    /// Bytes from an address, or instructions to jump over.
    pub(crate) offset: i16,
    immediate: i32,
}

/// R0 has a call's result and the program's verdict, R1 to R5 a call's arguments; R6 to R9 survive a call; R10 is
/// the end of the stack.
pub(crate) const R0: u8 = 0;
pub(crate) const R1: u8 = 1;
pub const R2: u8 = 2;
pub(crate) const R3: u8 = 3;
pub const R6: u8 = 6;
pub const R7: u8 = 7;
pub(crate) const R10: u8 = 10;

/// The offset of a jump to the end of the program, until the place of the end is known.
pub const TO_END: i16 = i16::MAX;

const fn raw(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, immediate }
}

/// `to = from`
pub(crate) const fn copy(to: u8, from: u8) -> Instruction {
    raw(0xbf, to, from, 0, 0)
}

/// `to = value`
pub const fn set(to: u8, value: i32) -> Instruction {
    raw(0xb7, to, 0, 0, value)
}

/// `to += value`
pub(crate) const fn add(to: u8, value: i32) -> Instruction {
    raw(0x07, to, 0, 0, value)
}

/// `to &= value`
pub const fn and(to: u8, value: i32) -> Instruction {
    raw(0x57, to, 0, 0, value)
}

/// `to = *(u32 *)(from + offset)`
pub const fn load_u32(to: u8, from: u8, offset: i16) -> Instruction {
    raw(0x61, to, from, offset, 0)
}

/// `*(u32 *)(to + offset) = from`
pub(crate) const fn store_u32(to: u8, offset: i16, from: u8) -> Instruction {
    raw(0x63, to, from, offset, 0)
}

pub const fn jump(offset: i16) -> Instruction {
    raw(0x05, 0, 0, offset, 0)
}

pub const fn jump_if_equal(register: u8, value: i32, offset: i16) -> Instruction {
    raw(0x15, register, 0, offset, value)
}

pub const fn jump_unless_equal(register: u8, value: i32, offset: i16) -> Instruction {
    raw(0x55, register, 0, offset, value)
}

pub(crate) const fn call(function: i32) -> Instruction {
    raw(0x85, 0, 0, 0, function)
}

pub(crate) const fn exit() -> Instruction {
    raw(0x95, 0, 0, 0, 0)
}

/// `to = map`: an instruction of twice the length, marked by the source register as the descriptor of a map.
pub(crate) const fn load_map(to: u8, map: RawFd) -> [Instruction; 2] {
    [raw(0x18, to, 1, 0, map), raw(0, 0, 0, 0, 0)]
}
