//! `lazaret doctor`, of networks: whether a network namespace can be wired to a guest, and whether there can be user-mode
//! networks.

use super::doctor::Check;
use crate::config::{Config, NetworkDefault};
use crate::network::{Wiring, find_pasta, is_young_enough};
use nix::sys::utsname::uname;
use std::fs;
use std::path::{Path, PathBuf};

/// What the wiring needs of the kernel.
const MODULES: [&str; 4] = ["tun", "sch_ingress", "cls_u32", "act_mirred"];
const INSTALL_PASTA: &str = "install the package passt, of Debian 13 or newer; user-mode networks need it";

pub(super) fn checks(config: &Config) -> [Check; 2] {
    [wiring(), pasta(config)]
}

/// By doing it, in a network namespace that goes with the check: what is built in, what the kernel loads by itself, and what
/// is locked away is seen only so.
fn wiring() -> Check {
    if !nix::unistd::geteuid().is_root() {
        return Check::warning("network", "cannot be tried: root is needed", "run `lazaret doctor` as root");
    }
    match Wiring::try_out() {
        Ok(()) => Check::good("network", "a tap device was wired by tc redirect"),
        Err(error) => {
            let release =
                uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
            let state = |name: &&str| {
                state(name, Path::new("/sys/module"), &Path::new("/lib/modules").join(&release))
            };
            let states: Vec<_> = MODULES.iter().map(|name| (*name, state(name))).collect();
            Check::bad("network", error.to_string(), advice(&states, &release))
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Loaded, or built in.
    Present,
    Loadable,
    /// Or the host does not say.
    Absent,
}

/// `loaded` has a directory for each module, `available` is that of the kernel's modules.
fn state(name: &str, loaded: &Path, available: &Path) -> State {
    let lists = |list: &str| {
        let text = fs::read_to_string(available.join(list)).unwrap_or_default();
        let file = format!("/{name}.ko");
        // In modules.dep a module's file comes first in its line, perhaps compressed, and a colon after it.
        text.lines().any(|line| line.split(':').next().is_some_and(|path| path.contains(&file)))
    };
    if loaded.join(name).exists() || lists("modules.builtin") {
        State::Present
    } else if lists("modules.dep") {
        State::Loadable
    } else {
        State::Absent
    }
}

fn advice(states: &[(&str, State)], release: &str) -> String {
    let names = |state| {
        let of = states.iter().filter(|(_, found)| *found == state).map(|(name, _)| *name);
        of.collect::<Vec<_>>().join(" ")
    };
    let (loadable, absent) = (names(State::Loadable), names(State::Absent));
    if !absent.is_empty() {
        return format!(
            "give kernel {release} its module {absent} (on Ubuntu in the package linux-modules-extra-{release}), \
             or boot one that has it"
        );
    }
    if !loadable.is_empty() {
        return format!("modprobe -a {loadable}");
    }
    "see dmesg; the kernel has the modules that are needed".into()
}

fn pasta(config: &Config) -> Check {
    judge_pasta(find_pasta(), [config.network, config.host_network].contains(&NetworkDefault::User))
}

fn judge_pasta(pasta: Option<PathBuf>, needed: bool) -> Check {
    let lacking = |detail: String| {
        let check = if needed { Check::bad } else { Check::warning };
        check("pasta", detail, INSTALL_PASTA)
    };
    let Some(path) = pasta else { return lacking("not in PATH".into()) };
    match is_young_enough(&path) {
        Ok(true) => Check::good("pasta", path.display().to_string()),
        Ok(false) => lacking(format!("{} is too old", path.display())),
        Err(error) => lacking(format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
#[path = "network_test.rs"]
mod tests;
