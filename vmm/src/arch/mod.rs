//! What differs from one processor architecture to another: one folder each.

mod x86_64;

pub use x86_64::{boot, cpuid, layout, mptable};
