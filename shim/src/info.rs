//! `-info` and `-v`: what this runtime is.

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::{Message, MessageField};

/// The runtime's name in containerd.
pub const RUNTIME: &str = "io.containerd.lazaret.v2";
/// lazaret's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The bytes that answer `-info`.
///
/// # Errors
/// The encoder's.
pub fn runtime_info() -> Result<Vec<u8>, protobuf::Error> {
    let version = RuntimeVersion { version: VERSION.into(), ..Default::default() };
    RuntimeInfo { name: RUNTIME.into(), version: MessageField::some(version), ..Default::default() }
        .write_to_bytes()
}
