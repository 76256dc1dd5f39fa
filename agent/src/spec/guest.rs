//! What the guest's kernel has, as far as specs ask for it.

use crate::paths::{CGROUP_PARENT, CGROUP_ROOT};
use lazaret_agent_api::DOCKER_SOCKET;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) apparmor: bool,
    pub(crate) selinux: bool,
    /// Limits of swap can be set.
    pub(crate) swap: bool,
    /// The cgroup controllers that containers get.
    pub(crate) controllers: Vec<String>,
    /// `/sys/dev`.
    pub(crate) devices: PathBuf,
    /// The socket of the private Docker daemon; not there when the sandbox is to have none.
    pub(crate) docker_socket: PathBuf,
}

impl Guest {
    /// Looks at the running kernel, once mounts and cgroups are in place.
    pub(crate) fn look() -> Self {
        let cgroup = Path::new(CGROUP_ROOT).join(CGROUP_PARENT.trim_start_matches('/'));
        let controllers = fs::read_to_string(cgroup.join("cgroup.subtree_control")).unwrap_or_default();
        Self {
            apparmor: Path::new("/sys/module/apparmor").exists(),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            swap: cgroup.join("memory.swap.max").exists(),
            controllers: controllers.split_whitespace().map(str::to_owned).collect(),
            devices: PathBuf::from("/sys/dev"),
            docker_socket: PathBuf::from(DOCKER_SOCKET),
        }
    }

    pub(crate) fn has_controller(&self, name: &str) -> bool {
        self.controllers.iter().any(|controller| controller == name)
    }

    /// Whether a driver of the guest answers to this number. `kind` as in the OCI spec: `b`, else a character device.
    pub(crate) fn has_device(&self, kind: &str, major: i64, minor: i64) -> bool {
        let class = if kind == "b" { "block" } else { "char" };
        self.devices.join(class).join(format!("{major}:{minor}")).exists()
    }
}
