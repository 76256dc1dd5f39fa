//! What the shim and the guest's agent say to each other: one ttrpc service over the stream the agent opens at its
//! start, and one stream for each stdio descriptor.
//!
//! ```text
//!   shim                                   agent (guest, CID 3)
//!    ◄──────── vsock host:1024 ───────────── dials once: "I am ready"
//!    ─── Configure, CreateContainer, … ────► the same stream carries ttrpc, the agent is the server
//!    ──────── vsock guest:1025 ────────────► one per stdio descriptor: header, ack, bytes (stdio.md)
//!    ──────── vsock guest:1026 ────────────► one per connection to the guest's Docker socket, if the host asks for it
//!    ──────── vsock guest:1027 ────────────► one per connection to the guest's localhost (forward.rs)
//!    ──────── vsock guest:1028 ────────────► one for all of the guest's name queries (names.rs)
//! ```
//!
//! The guest accepts connections from the host alone, and the host accepts one from the guest: nothing that runs in a
//! container can reach either side.

mod forward;
mod identifier;
mod names;
mod stream;

/// Messages and service, generated from `protos/agent.proto`.
#[allow(clippy::all, clippy::undocumented_unsafe_blocks, clippy::unwrap_used, unreachable_pub, missing_docs)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

pub use forward::LoopbackPort;
pub use generated::{agent, agent_ttrpc};
pub use identifier::{InvalidIdentifier, MAX_IDENTIFIER, check_identifier};
pub use names::{Frame, MAX_QUERIES, MAX_QUERY, RESOLVER, Transport};
pub use stream::{Ack, HeaderError, MAX_HEADER, decode_header, encode_header};

/// The host's vsock port that the agent dials at its start.
pub const AGENT_PORT: u32 = 1024;
/// The guest's vsock port for stdio streams.
pub const STDIO_PORT: u32 = 1025;
/// The guest's vsock port for its Docker socket, where the host asks for it.
pub const DOCKER_PORT: u32 = 1026;
/// The guest's vsock port for connections to its localhost.
pub const FORWARD_PORT: u32 = 1027;
/// The guest's vsock port for its name queries.
pub const NAMES_PORT: u32 = 1028;
/// The guest's vsock context id. The VMM ends vsock in user space, so all guests may share it.
pub const GUEST_CID: u32 = 3;
/// How the addresses of the guest's network devices begin before an interface is set up in them; the number of the slot
/// follows. The VMM gives them out.
pub const SLOT_ADDRESS: [u8; 5] = [2, 0, 0, 0, 0];
/// The tag of the virtio-fs device.
pub const SHARED_TAG: &str = "lazaret";
/// Where the agent mounts it. `<container-id>/rootfs` and `<container-id>/mounts/<n>` are below.
pub const SHARED_ROOT: &str = "/run/lazaret/shared";
/// The socket of the guest's Docker daemon, in the guest; a container finds it at `/var/run/docker.sock`.
pub const DOCKER_SOCKET: &str = "/run/docker.sock";
/// The shared memory of a sandbox's containers, in the guest, where they have one together; a container finds it at `/dev/shm`.
pub const SHARED_MEMORY: &str = "/run/lazaret/shm";
