//! x86-64: where things are, how the kernel is started, what the processors look like.

pub mod boot;
pub mod cpuid;
pub mod layout;
pub mod mptable;
