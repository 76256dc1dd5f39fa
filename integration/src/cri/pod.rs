//! Pods and their containers, as kubelet asks for them.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Answer, Node, Ran, api};
use crate::command::COMMAND_TIMEOUT;
use crate::container::BUSYBOX;
use crate::leftovers::{self, eventually};

/// Where kubelet has the cgroups of its pods.
const KUBEPODS: &str = "/sys/fs/cgroup/kubepods";

/// A pod of a node. However the test ends, it is removed; if the test has not failed, nothing of it may be left on the host then.
/// It is to be declared before its containers, so that it goes after them.
pub struct Pod {
    /// The id that CRI gave it.
    pub id: String,
    /// What it was run with.
    pub config: api::PodSandboxConfig,
    node: Arc<Node>,
}

impl Pod {
    /// What kubelet asks for when it runs a pod that wishes nothing. `purpose` is the start of its name.
    #[track_caller]
    pub fn config(node: &Node, purpose: &str) -> api::PodSandboxConfig {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{purpose}-{}-{number}", std::process::id());
        let logs = node.logs().join(&name);
        fs::create_dir_all(&logs).expect("a folder for the pod's logs");
        api::PodSandboxConfig {
            metadata: Some(api::PodSandboxMetadata {
                name: name.clone(),
                uid: name.clone(),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: purpose.into(),
            log_directory: logs.display().to_string(),
            linux: Some(api::LinuxPodSandboxConfig {
                cgroup_parent: format!("/kubepods/pod{name}"),
                security_context: Some(api::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Runs a pod that wishes nothing.
    #[track_caller]
    pub fn run(node: &Arc<Node>, purpose: &str) -> Self {
        Self::run_with(node, Self::config(node, purpose))
            .unwrap_or_else(|status| panic!("{purpose}: {status}"))
    }

    /// Runs a pod.
    ///
    /// # Errors
    /// As `RunPodSandbox`; nothing may be left of it then.
    #[track_caller]
    pub fn run_with(node: &Arc<Node>, config: api::PodSandboxConfig) -> Answer<Self> {
        make_cgroup(&config);
        match node.cri.run_pod(&config, node.handler()) {
            Ok(id) => Ok(Self { id, config, node: node.clone() }),
            Err(status) => {
                assert_gone(node, &config);
                Err(status)
            }
        }
    }

    /// Its name, which is its uid, too.
    pub fn name(&self) -> &str {
        name(&self.config)
    }

    /// What kubelet asks for when it creates a busybox in this pod that wishes nothing.
    pub fn container_config(&self, name: &str, args: &[&str]) -> api::ContainerConfig {
        api::ContainerConfig {
            metadata: Some(api::ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(api::ImageSpec { image: BUSYBOX.into(), ..Default::default() }),
            command: args.iter().map(|&arg| arg.to_owned()).collect(),
            log_path: format!("{name}.log"),
            linux: Some(api::LinuxContainerConfig {
                security_context: Some(api::LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Creates a container.
    ///
    /// # Errors
    /// As `CreateContainer`.
    pub fn create(&self, config: &api::ContainerConfig) -> Answer<PodContainer> {
        let id = self.node.cri.create(&self.id, config, &self.config)?;
        let log = Path::new(&self.config.log_directory).join(&config.log_path);
        Ok(PodContainer { id, log, node: self.node.clone() })
    }

    /// Creates and starts a busybox that wishes nothing.
    #[track_caller]
    pub fn start(&self, name: &str, args: &[&str]) -> PodContainer {
        self.start_with(&self.container_config(name, args))
    }

    /// Creates and starts a container.
    #[track_caller]
    pub fn start_with(&self, config: &api::ContainerConfig) -> PodContainer {
        let container = self.create(config).unwrap_or_else(|status| panic!("create {config:?}: {status}"));
        self.node.cri.start(&container.id).unwrap_or_else(|status| panic!("start {config:?}: {status}"));
        container
    }

    /// Its address of IPv4.
    #[track_caller]
    pub fn address(&self) -> String {
        let status = self.node.cri.pod_status(&self.id).expect("it is there").status.expect("a status");
        status.network.expect("a network").ip
    }

    /// The pid of the process that holds it on the host.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        pid(&self.node.cri.pod_status(&self.id).expect("it is there").info)
    }

    /// Whether it is ready, as CRI says.
    #[track_caller]
    pub fn is_ready(&self) -> bool {
        let status = self.node.cri.pod_status(&self.id).expect("it is there").status.expect("a status");
        status.state() == api::PodSandboxState::SandboxReady
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let removed = self.node.cri.stop_pod(&self.id).and_then(|()| self.node.cri.remove_pod(&self.id));
        if !std::thread::panicking() {
            removed.unwrap_or_else(|status| panic!("{} is not removed: {status}", self.name()));
            leftovers::assert_gone_beside(&self.id, &self.node.state());
            assert_gone(&self.node, &self.config);
        }
    }
}

/// A container of a pod. However the test ends, it is removed; if the test has not failed, nothing of it may be left on the host then.
pub struct PodContainer {
    /// The id that CRI gave it.
    pub id: String,
    log: PathBuf,
    node: Arc<Node>,
}

impl PodContainer {
    /// Runs a command in it, to its end.
    #[track_caller]
    pub fn exec(&self, args: &[&str]) -> Ran {
        let ran = self.node.cri.exec(&self.id, args, COMMAND_TIMEOUT);
        ran.unwrap_or_else(|status| panic!("{args:?}: {status}"))
    }

    /// What a command that succeeds says in it, without the end of the line.
    #[track_caller]
    pub fn says(&self, args: &[&str]) -> String {
        let ran = self.exec(args);
        assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
        ran.out.trim_end().to_owned()
    }

    /// Its state, its exit code and the like, as CRI says.
    #[track_caller]
    pub fn status(&self) -> api::ContainerStatus {
        self.node.cri.status(&self.id).expect("it is there").status.expect("a status")
    }

    /// Waits until CRI says that it has exited, and gives what it says then.
    #[track_caller]
    pub fn wait_for_exit(&self) -> api::ContainerStatus {
        eventually(|| match self.status() {
            status if status.state() == api::ContainerState::ContainerExited => Ok(()),
            status => Err(format!("{status:?}")),
        });
        self.status()
    }

    /// The pid of its first process on the host.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        pid(&self.node.cri.status(&self.id).expect("it is there").info)
    }

    /// What it has written to one of its streams so far, as its log has it.
    #[track_caller]
    pub fn logged(&self, stream: &str) -> String {
        let log = fs::read_to_string(&self.log).expect("it has a log");
        let mut text = String::new();
        for line in log.lines() {
            // TIME STREAM TAG TEXT; P is the tag of a part of a line.
            let fields: Vec<_> = line.splitn(4, ' ').collect();
            if fields[1] == stream {
                text.push_str(fields[3]);
                text.push_str(if fields[2] == "P" { "" } else { "\n" });
            }
        }
        text
    }
}

impl Drop for PodContainer {
    fn drop(&mut self) {
        let removed = self.node.cri.remove(&self.id);
        if !std::thread::panicking() {
            removed.unwrap_or_else(|status| panic!("{} is not removed: {status}", self.id));
            leftovers::assert_gone_beside(&self.id, &self.node.state());
        }
    }
}

/// Those of a pod that wishes nothing: all of the pod but the processes.
fn namespaces() -> api::NamespaceOption {
    api::NamespaceOption { pid: api::NamespaceMode::Container.into(), ..Default::default() }
}

/// The pid in what CRI tells beside a status.
#[track_caller]
fn pid(info: &HashMap<String, String>) -> u32 {
    let info: serde_json::Value = serde_json::from_str(&info["info"]).expect("JSON");
    info["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("a pid")
}

fn name(config: &api::PodSandboxConfig) -> &str {
    &config.metadata.as_ref().expect("it has a name").name
}

/// Removes the cgroup of a pod that is gone, which is empty then, and fails if anything is left of the pod.
#[track_caller]
fn assert_gone(node: &Node, config: &api::PodSandboxConfig) {
    let cgroup = cgroup(config);
    eventually(|| fs::remove_dir(&cgroup).map_err(|error| format!("{}: {error}", cgroup.display())));
    leftovers::assert_gone_beside(name(config), &node.state());
}

fn cgroup(config: &api::PodSandboxConfig) -> PathBuf {
    let parent = &config.linux.as_ref().expect("it is Linux").cgroup_parent;
    Path::new("/sys/fs/cgroup").join(parent.trim_start_matches('/'))
}

/// Makes the cgroup of a pod, as kubelet does, with the controllers that it hands down.
fn make_cgroup(config: &api::PodSandboxConfig) {
    fs::create_dir_all(KUBEPODS).expect("root may");
    for parent in [Path::new(KUBEPODS), &cgroup(config)] {
        fs::create_dir_all(parent).expect("root may");
        fs::write(parent.join("cgroup.subtree_control"), "+cpu +cpuset +io +memory +pids")
            .expect("the root hands them down");
    }
}
