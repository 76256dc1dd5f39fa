//! A containerd with CRI on, as a node of a cluster has it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::Signal;
use serde_json::json;

use super::Cri;
use crate::containerd::Containerd;
use crate::leftovers::eventually;
use crate::spec::{busybox_layer, image_archive};
use crate::{command, runtime};

/// containerd's namespace of what CRI makes.
const NAMESPACE: &str = "k8s.io";
/// The image of the container that holds a pod. There is no network to pull one from.
const PAUSE: &str = "docker.io/library/pause:latest";
const BRIDGE: &str = "lazaret-cri";
/// Where Debian has CNI's plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// A node: a containerd of its own with CRI, busybox, and a bridge for its pods. All of it goes with this value.
pub struct Node {
    /// The client of its CRI.
    pub cri: Cri,
    containerd: Mutex<Containerd>,
}

impl Node {
    /// Starts one.
    #[track_caller]
    pub fn start(name: &str) -> Self {
        assert!(Path::new(PLUGINS).join("bridge").exists(), "install containernetworking-plugins");
        let containerd = Containerd::configured(name, configure);
        containerd.import(NAMESPACE, &pause_archive(containerd.folder()));
        containerd.import(NAMESPACE, &image_archive("busybox"));
        let cri = Cri::new(&containerd.socket());
        // CRI hears of images by events.
        eventually(|| match cri.images().expect("CRI answers").as_slice() {
            images if images.len() == 2 => Ok(()),
            images => Err(format!("CRI knows of the images {images:?}")),
        });
        Self { cri, containerd: Mutex::new(containerd) }
    }

    /// The runtime handler under test, as a RuntimeClass names it.
    pub fn handler(&self) -> &'static str {
        if runtime().contains("lazaret") { "lazaret" } else { "runc" }
    }

    /// Ends its containerd; the pods go on.
    #[track_caller]
    pub fn stop(&self, signal: Signal) {
        self.containerd().stop(signal);
    }

    /// Starts its containerd again, and waits until its CRI answers.
    #[track_caller]
    pub fn resume(&self) {
        self.containerd().resume();
        eventually(|| self.cri.version().map(drop).map_err(|status| status.to_string()));
    }

    /// Where the logs of pods are, a folder each.
    pub(super) fn logs(&self) -> PathBuf {
        self.containerd().folder().join("logs")
    }

    /// Where its containerd and its CRI keep what belongs to one container.
    pub(super) fn state(&self) -> [PathBuf; 2] {
        ["state", "root/io.containerd.grpc.v1.cri"].map(|name| self.containerd().folder().join(name))
    }

    fn containerd(&self) -> MutexGuard<'_, Containerd> {
        self.containerd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", BRIDGE]).output();
    }
}

/// Writes the configuration of the network into `folder`. Gives containerd's.
fn configure(folder: &Path) -> String {
    let network = json!({
        "cniVersion": "0.4.0", "name": BRIDGE, "plugins": [{
            "type": "bridge", "bridge": BRIDGE, "isGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": folder.join("addresses"),
                "ranges": [[{ "subnet": "10.89.0.0/24" }], [{ "subnet": "fd89::/64" }]],
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            },
        }],
    });
    let networks = folder.join("cni");
    fs::create_dir_all(&networks).expect("a folder for the network");
    fs::write(networks.join("10-test.conflist"), network.to_string()).expect("the network's configuration");

    // containerd 2 took CRI apart; the tables of its runtimes are the same.
    let (version, cri, pause, plugins) = if command::host("containerd", &["--version"]).contains("/v2") {
        (
            3,
            "io.containerd.cri.v1.runtime",
            "'io.containerd.cri.v1.images'.pinned_images]\nsandbox",
            format!("bin_dirs = ['{PLUGINS}']"),
        )
    } else {
        (
            2,
            "io.containerd.grpc.v1.cri",
            "'io.containerd.grpc.v1.cri']\nsandbox_image",
            format!("bin_dir = '{PLUGINS}'"),
        )
    };
    format!(
        "version = {version}
[plugins.{pause} = '{PAUSE}'
[plugins.'{cri}'.cni]
{plugins}
conf_dir = '{}'
[plugins.'{cri}'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'{cri}'.containerd.runtimes.lazaret]
runtime_type = 'io.containerd.lazaret.v2'
pod_annotations = ['io.lazaret.*']
container_annotations = ['io.lazaret.*']
privileged_without_host_devices = true
",
        networks.display()
    )
}

/// Makes the archive of an image whose program only waits, of the files of busybox.
fn pause_archive(folder: &Path) -> String {
    let (busybox, layer) = busybox_layer();
    let digest = layer.rsplit('/').next().expect("a name");
    let work = folder.join("pause");
    fs::create_dir_all(&work).expect("a folder for the image");
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/bin/sleep", "2147483647"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [PAUSE], "Layers": ["layer.tar"] }]);
    fs::write(work.join("config.json"), config.to_string()).expect("the image's configuration");
    fs::write(work.join("manifest.json"), manifest.to_string()).expect("the image's manifest");
    let pack = format!(
        "cd '{}' && tar -xOf {busybox} {layer} >layer.tar && tar -cf image.tar config.json layer.tar manifest.json",
        work.display()
    );
    command::host("sh", &["-c", &pack]);
    work.join("image.tar").display().to_string()
}
