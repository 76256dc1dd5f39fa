//! OCI specs for what `ctr run` has no flag for: containerd's own default, changed as JSON, on a busybox root of its own.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::command;

/// A bundle in the making: `json` becomes its config.json.
pub struct Spec {
    pub json: Value,
    folder: PathBuf,
}

/// The archive of an image, as the test host brings it.
pub fn image_archive(name: &str) -> String {
    let folder =
        std::env::var("LAZARET_TEST_IMAGES").unwrap_or_else(|_| "/var/lib/lazaret-images".to_owned());
    format!("{folder}/{name}.tar")
}

/// The archive of busybox, and the name of its one layer in there, which ends with the layer's SHA-256.
#[track_caller]
pub fn busybox_layer() -> (String, String) {
    let archive = image_archive("busybox");
    let manifest = command::host("tar", &["-xOf", &archive, "manifest.json"]);
    let manifest: Value = serde_json::from_str(&manifest).expect("manifest.json is JSON");
    let layer = manifest[0]["Layers"][0].as_str().expect("one layer").to_owned();
    (archive, layer)
}

impl Spec {
    /// What `ctr run` would ask for, with this command on an unpacked busybox.
    #[track_caller]
    pub fn busybox(args: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = PathBuf::from(format!("/var/tmp/lazaret-test-spec-{}-{number}", std::process::id()));
        let root = folder.join("rootfs");
        fs::create_dir_all(&root).expect("a folder for the root");
        let (archive, layer) = busybox_layer();
        let unpack = format!("tar -xOf {archive} {layer} | tar -xp -C {}", root.display());
        command::host("sh", &["-c", &unpack]);

        let default = command::host("ctr", &["oci", "spec"]);
        let mut json: Value = serde_json::from_str(&default).expect("ctr oci spec gives JSON");
        json["root"] = json!({ "path": root, "readonly": false });
        json["process"]["args"] = json!(args);
        json["process"]["terminal"] = json!(false);
        json["linux"]["cgroupsPath"] = json!(format!("/lazaret-test/spec-{}-{number}", std::process::id()));
        Self { json, folder }
    }

    /// A path in the container's root, seen from the host.
    pub fn root(&self, path: &str) -> PathBuf {
        self.folder.join("rootfs").join(path)
    }

    /// A path beside the root, for what is to be bind mounted.
    pub fn beside(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// Adds a mount.
    pub fn mount(&mut self, kind: &str, source: &str, destination: &str, options: &[&str]) {
        let mount = json!({ "type": kind, "source": source, "destination": destination, "options": options });
        self.json["mounts"].as_array_mut().expect("the default has mounts").push(mount);
    }

    /// Writes config.json and gives its path, for `ctr run --config`.
    #[track_caller]
    pub fn write(&self) -> String {
        let path = self.folder.join("config.json");
        fs::write(&path, self.json.to_string()).expect("config.json can be written");
        path.display().to_string()
    }
}

impl Drop for Spec {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
