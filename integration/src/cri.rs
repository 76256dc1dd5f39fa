//! containerd's CRI as kubelet sees it: a client of its gRPC, a containerd with CRI on, and pods.
//!
//! ```text
//!  tests/e2e/cri.rs ──► Pod, PodContainer ──► Cri ──gRPC──► containerd of a Node ──► the runtime under test, or runc
//!                            └ on drop: removed, and leftovers::assert_gone(id)
//! ```

mod client;
mod node;
mod pod;

pub use client::{Answer, Cri, Ran};
/// CRI's messages.
pub use k8s_cri::v1 as api;
pub use node::Node;
pub use pod::{Pod, PodContainer};
/// The code that a call is refused with.
pub use tonic::Code;
