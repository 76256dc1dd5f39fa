//! Pods by containerd's CRI, as kubelet makes them: one node for all tests, one pod for those that only use it.

use std::sync::{Arc, OnceLock};

use lazaret_integration::cri::{Node, Pod, PodContainer, api};
use lazaret_integration::leftovers::eventually;
use lazaret_integration::shared::{Shared, Use};

mod busy_pod;
mod faults;
mod life;

/// Works until it is told to end, with exit code 21, and says when it can be told.
const UNTIL_TERM: [&str; 3] =
    ["sh", "-c", "trap 'exit 21' TERM; echo ready; while :; do sleep 1000 & wait; done"];

/// Waits for a process of [`UNTIL_TERM`], and ends it.
#[track_caller]
fn stop(node: &Node, container: &PodContainer) {
    eventually(|| match container.logged("stdout") {
        out if out == "ready\n" => Ok(()),
        out => Err(format!("{out:?}")),
    });
    node.cri.stop(&container.id, 60).expect("it runs");
    assert_eq!(container.wait_for_exit().exit_code, 21);
}

static NODE: Shared<Together> = Shared::new(module_path!(), Together::start);

/// What the tests of this module use together.
struct Together {
    busy: OnceLock<BusyPod>,
    node: Arc<Node>,
}

impl Together {
    fn start() -> Self {
        Self { busy: OnceLock::new(), node: Arc::new(Node::start("cri")) }
    }
}

/// The node, for as long as a test needs it.
fn node() -> Use<Together> {
    NODE.sandbox()
}

/// A pod with three containers, after one that came before them; which a test uses and leaves as it is.
struct BusyPod {
    /// It has ended.
    init: PodContainer,
    /// It has a memory limit, and tells its two streams apart.
    app: PodContainer,
    /// It serves `hello` on ports of every address, of IPv4's loopback, and of IPv6's.
    server: PodContainer,
    /// It shares the processes of `app`.
    debugger: PodContainer,
    pod: Pod,
}

/// Bytes.
const APP_MEMORY: i64 = 64 << 20;

impl BusyPod {
    fn start(node: &Arc<Node>) -> Self {
        let pod = Pod::run(node, "busy");
        let volume =
            [api::Mount { container_path: "/volume".into(), host_path: volume(&pod), ..Default::default() }];
        std::fs::create_dir_all(&volume[0].host_path).expect("a folder for the volume");

        let mut config = pod.container_config("init", &["sh", "-c", "hostname >/volume/of-init; exit 7"]);
        config.mounts = volume.to_vec();
        let init = pod.start_with(&config);
        init.wait_for_exit();

        let mut config = pod.container_config("app", &["sh", "-c", APP]);
        config.mounts = volume.to_vec();
        config.linux.as_mut().expect("it is Linux").resources = Some(limits(APP_MEMORY, 50_000));
        let app = pod.start_with(&config);

        let serve = "echo hello >/hello; httpd -p 0.0.0.0:80 -h /; httpd -p 127.0.0.1:81 -h /; \
                     httpd -p '[::1]:82' -h /; exec sleep 1000000";
        let server = pod.start("server", &["sh", "-c", serve]);

        let mut config = pod.container_config("debugger", &["sleep", "1000000"]);
        let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
        security.expect("it has one").namespace_options = Some(api::NamespaceOption {
            pid: api::NamespaceMode::Target.into(),
            target_id: app.id.clone(),
            ..Default::default()
        });
        let debugger = pod.start_with(&config);
        Self { init, app, server, debugger, pod }
    }
}

/// `memory` in bytes, `quota` in microseconds of each tenth of a second.
fn limits(memory: i64, quota: i64) -> api::LinuxContainerResources {
    api::LinuxContainerResources {
        memory_limit_in_bytes: memory,
        cpu_period: 100_000,
        cpu_quota: quota,
        ..Default::default()
    }
}

/// A directory of the host that goes with the logs of the pod.
fn volume(pod: &Pod) -> String {
    format!("{}/volume", pod.config.log_directory)
}

/// Its second line on stdout is longer than the parts that CRI logs.
const APP: &str =
    "cat /volume/of-init; echo error >&2; head -c 40000 /dev/zero | tr '\\0' x; echo; exec sleep 1000000";

/// The pod with three containers, which the first test that asks for it starts.
fn busy_pod(together: &Together) -> &BusyPod {
    together.busy.get_or_init(|| BusyPod::start(&together.node))
}
