//! Network namespaces for sandboxes, as whoever runs a sandbox makes them.

use std::process::Command;

use crate::command::{self, Finished};

/// A network namespace under `/run/netns`, which goes at the end of the test.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    #[track_caller]
    pub fn new(name: &str) -> Self {
        let name = format!("{name}-{}", std::process::id());
        ip(&format!("netns add {name}"));
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// What `ctr run --with-ns` needs for a container to be in it.
    pub fn flags(&self) -> [String; 2] {
        ["--with-ns".into(), format!("network:/run/netns/{}", self.name)]
    }

    /// A veth pair: `interface` in the namespace, the other end a port of `bridge`.
    #[track_caller]
    pub fn join(&self, interface: &str, bridge: &str, mtu: u32) -> String {
        let port = format!("{interface}-{}", self.name);
        let port = port[..port.len().min(15)].to_owned();
        ip(&format!(
            "link add {port} mtu {mtu} type veth peer name {interface} mtu {mtu} netns {}",
            self.name
        ));
        ip(&format!("link set {port} master {bridge} up"));
        port
    }

    /// `ip`, in the namespace.
    #[track_caller]
    pub fn ip(&self, args: &str) -> String {
        ip(&format!("-n {} {args}", self.name))
    }

    /// A command in the namespace, on the host.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Finished {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(args);
        command::run(command)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

/// A bridge of the host, which goes at the end of the test.
pub struct Bridge {
    pub name: &'static str,
}

impl Bridge {
    /// With these addresses, each with its prefix length.
    #[track_caller]
    pub fn new(name: &'static str, mtu: u32, addresses: &[&str]) -> Self {
        ip(&format!("link add {name} mtu {mtu} type bridge"));
        for address in addresses {
            ip(&format!("addr add {address} dev {name}"));
        }
        ip(&format!("link set {name} up"));
        Self { name }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", self.name]).output();
    }
}

/// `ip` on the host: its words in one string.
#[track_caller]
pub fn ip(args: &str) -> String {
    let mut command = Command::new("ip");
    command.args(args.split_whitespace());
    command::run(command).success().out()
}
