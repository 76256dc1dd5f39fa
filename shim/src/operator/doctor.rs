//! `lazaret doctor`: whether this host can run sandboxes, and what to do where it cannot.

use super::network;
use crate::config::Config;
use crate::guest_files::{image_size, image_version, kernel_version};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest containerd that knows shims of this kind well enough.
const OLDEST_CONTAINERD: (u32, u32) = (1, 6);
const SHIM: &str = "containerd-shim-lazaret-v2";

/// The outcome of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Good,
    /// Sandboxes run, but not as well as they could.
    Warning,
    Bad,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    /// What was found, in one line.
    pub detail: String,
    /// What to do, where there is something to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Check {
    pub(super) fn good(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Good, detail: detail.into(), advice: None }
    }

    pub(super) fn bad(name: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Bad, detail: detail.into(), advice: Some(advice.into()) }
    }

    pub(super) fn warning(name: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, ..Self::bad(name, detail, advice) }
    }
}

/// Checks everything; takes some tens of milliseconds.
#[must_use]
pub fn examine() -> Vec<Check> {
    let (config, check) = match Config::load(None) {
        Ok(config) => (config, Check::good("config", "read")),
        Err(error) => {
            let advice = "correct the file; `lazaret config --default` prints every key";
            (Config::default(), Check::bad("config", error.to_string(), advice))
        }
    };
    let vmm = config.vmm_binary();
    let mut checks = vec![
        check,
        kvm(vmm.as_deref()),
        guest_file(
            "kernel",
            &config.kernel,
            kernel_version(&config.kernel).map_err(|error| error.to_string()),
        ),
        guest_file(
            "base_image",
            &config.base_image,
            image_version(&config.base_image).map_err(|e| e.to_string()),
        ),
        guest_file(
            "docker_image",
            &config.docker_image,
            image_size(&config.docker_image).map_err(|error| error.to_string()),
        ),
        shim(),
        containerd(),
        cgroup(),
    ];
    checks.extend(network::checks(&config));
    checks
}

/// What `lazaret-vmm --probe` prints: it runs a guest of a few instructions.
#[derive(Debug, Deserialize)]
struct Probe {
    kvm: Kvm,
    detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kvm {
    Absent,
    Unusable,
    Good,
}

fn kvm(vmm: Option<&Path>) -> Check {
    let reinstall = "install lazaret completely, or set vmm in config.toml";
    let Some(vmm) = vmm else {
        return Check::bad(
            "kvm",
            "cannot be tried: lazaret-vmm is neither beside the shim nor in PATH",
            reinstall,
        );
    };
    let output = match Command::new(vmm).arg("--probe").output() {
        Ok(output) => output,
        Err(error) => {
            return Check::bad("kvm", format!("cannot be tried: {}: {error}", vmm.display()), reinstall);
        }
    };
    match serde_json::from_slice(&output.stdout) {
        Ok(probe) => judge_kvm(probe),
        Err(_) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let line = said.lines().next().unwrap_or("it said nothing");
            Check::bad("kvm", format!("{} --probe failed: {line}", vmm.display()), reinstall)
        }
    }
}

fn judge_kvm(probe: Probe) -> Check {
    match probe.kvm {
        Kvm::Good => Check::good("kvm", probe.detail),
        Kvm::Absent => Check::bad(
            "kvm",
            probe.detail,
            "use a machine with KVM: a virtual machine's host has to allow nested virtualisation",
        ),
        Kvm::Unusable => Check::bad(
            "kvm",
            probe.detail,
            "use a machine whose KVM has hardware behind it: the one here is emulated, and no VMM could use it",
        ),
    }
}

fn guest_file(name: &'static str, path: &Path, version: Result<String, String>) -> Check {
    match version {
        Ok(version) => Check::good(name, format!("{} ({version})", path.display())),
        Err(line) => {
            Check::bad(name, line, format!("install lazaret's guest files, or set {name} in config.toml"))
        }
    }
}

fn find_in_path(binary: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(binary)).find(|file| file.is_file())
}

fn shim() -> Check {
    match find_in_path(SHIM) {
        Some(path) => Check::good("shim", path.display().to_string()),
        None => Check::bad(
            "shim",
            format!("{SHIM} is not in PATH"),
            "install it in a directory of containerd's PATH, or beside containerd",
        ),
    }
}

fn containerd() -> Check {
    let install = "install containerd 1.6 or newer";
    let Some(path) = find_in_path("containerd") else {
        return Check::bad("containerd", "not in PATH", install);
    };
    let output = match Command::new(&path).arg("--version").output() {
        Ok(output) => output,
        Err(error) => return Check::bad("containerd", format!("{}: {error}", path.display()), install),
    };
    judge_containerd(&path, &String::from_utf8_lossy(&output.stdout))
}

/// The line is `containerd <source> <version> <revision>`.
fn judge_containerd(path: &Path, line: &str) -> Check {
    let numbers = |version: &str| -> Option<(u32, u32)> {
        let mut parts = version.trim_start_matches('v').split(['.', '~', '-', '+']);
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    match line.split_whitespace().find_map(|field| Some((field, numbers(field)?))) {
        Some((version, numbers)) if numbers >= OLDEST_CONTAINERD => {
            Check::good("containerd", format!("{} ({version})", path.display()))
        }
        Some((version, _)) => {
            Check::bad("containerd", format!("{} is {version}", path.display()), "update to 1.6 or newer")
        }
        None => Check::warning(
            "containerd",
            format!("{} does not tell its version", path.display()),
            "make sure that it is 1.6 or newer",
        ),
    }
}

fn cgroup() -> Check {
    let root = Path::new(crate::sandbox::cgroup::CGROUP_ROOT);
    if crate::sandbox::cgroup::is_v2(root) {
        Check::good("cgroup", "version 2")
    } else {
        Check::warning(
            "cgroup",
            format!("no cgroup v2 at {}: sandboxes are not accounted for", root.display()),
            "boot the host with cgroup v2 (systemd.unified_cgroup_hierarchy=1)",
        )
    }
}

/// The report for a person.
#[must_use]
pub fn render(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let mark = match check.verdict {
            Verdict::Good => "good",
            Verdict::Warning => "WARN",
            Verdict::Bad => "BAD",
        };
        text += &format!("{mark:<5} {:<11} {}\n", check.name, check.detail);
        if let Some(advice) = &check.advice {
            text += &format!("{:17} -> {advice}\n", "");
        }
    }
    text
}

#[cfg(test)]
#[path = "doctor_test.rs"]
mod tests;
