//! A sandbox has the network that its network namespace was given.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use lazaret_integration::command::{self, host};
use lazaret_integration::container::Container;
use lazaret_integration::faults::{kill_process, shim_of};
use lazaret_integration::leftovers::{Snapshot, eventually};
use lazaret_integration::namespace::{Bridge, Namespace, ip};
use lazaret_integration::{alone, beside_others, is_lazaret};

/// Where `ctr` looks for plugins, and where Debian has them.
const PLUGINS: &str = "/opt/cni/bin";
const DEBIAN_PLUGINS: &str = "/usr/lib/cni";
const CONFIG: &str = "/etc/cni/net.d/10-lazaret-e2e.conflist";
const BRIDGE: &str = "lazaret-e2e";
const MTU: &str = "1400";
/// The host's port for the guest's port 80, by the portmap plugin.
const PUBLISHED: u16 = 8099;

/// A network of the host's for `ctr run --cni`. At its end nothing of it is left.
pub(super) struct Network;

impl Network {
    /// A bridge, and a published port.
    pub(super) fn set_up() -> Self {
        Self::of(&format!(
            r#"{{
                "type": "bridge", "bridge": "{BRIDGE}", "isGateway": true, "mtu": {MTU},
                "ipam": {}
            }}, {{
                "type": "portmap",
                "runtimeConfig": {{
                    "portMappings": [{{ "hostPort": {PUBLISHED}, "containerPort": 80, "protocol": "tcp" }}]
                }}
            }}"#,
            addresses_of(88)
        ))
    }

    fn of(plugins: &str) -> Self {
        assert!(Path::new(DEBIAN_PLUGINS).join("bridge").exists(), "install containernetworking-plugins");
        if !Path::new(PLUGINS).exists() {
            fs::create_dir_all("/opt/cni").expect("root may");
            std::os::unix::fs::symlink(DEBIAN_PLUGINS, PLUGINS).expect("there is none");
        }
        let config = format!(r#"{{ "cniVersion": "0.4.0", "name": "{BRIDGE}", "plugins": [{plugins}] }}"#);
        fs::create_dir_all("/etc/cni/net.d").expect("root may");
        fs::write(CONFIG, config).expect("root may");
        Self
    }
}

/// The address management of a plugin: 10.N.0.0/24 and fdN::/64, with default routes.
fn addresses_of(network: u8) -> String {
    format!(
        r#"{{
            "type": "host-local", "dataDir": "/run/{BRIDGE}",
            "ranges": [[{{ "subnet": "10.{network}.0.0/24" }}], [{{ "subnet": "fd{network}::/64" }}]],
            "routes": [{{ "dst": "0.0.0.0/0" }}, {{ "dst": "::/0" }}]
        }}"#
    )
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = fs::remove_file(CONFIG);
        let _ = fs::remove_dir_all(format!("/run/{BRIDGE}"));
        let _ = Command::new("ip").args(["link", "delete", BRIDGE]).output();
    }
}

/// What a tool says in the network namespace of a process.
pub(super) fn in_namespace(pid: u32, args: &[&str]) -> String {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{pid}/ns/net")).args(args);
    command::run(command).success().out()
}

/// The addresses of `ip addr`, which busybox and iproute2 show alike up to flags.
fn addresses(text: &str) -> Vec<String> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| word.starts_with("inet")).and(words.next()).map(str::to_owned)
    };
    let mut addresses: Vec<_> = text.lines().filter_map(address).collect();
    addresses.sort();
    addresses
}

/// Destination and gateway of `ip route`, without what only one of the two programs shows.
fn routes(text: &str) -> Vec<String> {
    let route = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let gateway = words.iter().position(|word| *word == "via").and_then(|at| words.get(at + 1));
        (line.contains("eth0") && !line.starts_with("ff00"))
            .then(|| format!("{} via {}", words[0], gateway.unwrap_or(&"none")))
    };
    let mut routes: Vec<_> = text.lines().filter_map(route).collect();
    routes.sort();
    routes
}

fn request(to: &str) -> String {
    let mut stream = TcpStream::connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    stream.write_all(b"GET /hello HTTP/1.0\r\n\r\n").expect("the guest listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    answer
}

#[test]
fn a_sandbox_has_the_addresses_routes_and_mtu_of_its_network_namespace_and_talks() {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    let before = Snapshot::take();
    let network = Network::set_up();
    {
        let container = Container::new("network").flags(&["--cni"]);
        container.detach(&["sh", "-c", "echo hello >/hello; exec httpd -f -p 80 -h /"]);
        let (pid, _) = container.status().expect("there is a task");
        let guest = |args: &[&str]| container.exec(args).success().out();

        let own = addresses(&in_namespace(pid, &["ip", "addr", "show", "dev", "eth0"]));
        assert_eq!(own.len(), 3, "IPv4, IPv6 and link-local: {own:?}");
        assert_eq!(addresses(&guest(&["ip", "addr", "show", "dev", "eth0"])), own);
        let link = guest(&["ip", "link", "show", "dev", "eth0"]);
        assert!(link.contains(&format!("mtu {MTU}")), "{link}");
        let mac = in_namespace(pid, &["ip", "-br", "link", "show", "dev", "eth0"]);
        let mac = mac.split_whitespace().nth(2).expect("a MAC address").to_owned();
        assert!(link.contains(&mac), "{mac}: {link}");
        for family in ["-4", "-6"] {
            let expected = routes(&in_namespace(pid, &["ip", family, "route"]));
            assert!(expected.len() >= 2, "{expected:?}");
            assert_eq!(routes(&guest(&["ip", family, "route"])), expected);
        }
        assert_eq!(guest(&["ls", "/sys/class/net"]).split_whitespace().collect::<Vec<_>>(), ["eth0", "lo"]);

        guest(&["ping", "-c", "3", "-W", "30", "10.88.0.1"]);
        guest(&["ping", "-c", "3", "-W", "30", "fd88::1"]);
        let address = |prefix: &str| {
            let found = own.iter().find(|address| address.starts_with(prefix)).expect("an address");
            found.split('/').next().expect("an address").to_owned()
        };
        assert!(request(&format!("{}:80", address("10.88."))).ends_with("hello\n"));
        assert!(request(&format!("10.88.0.1:{PUBLISHED}")).ends_with("hello\n"), "a published port");
        assert!(request(&format!("[{}]:80", address("fd88:"))).ends_with("hello\n"));

        let listener = TcpListener::bind("10.88.0.1:0").expect("the bridge has the address");
        let port = listener.local_addr().expect("it listens").port().to_string();
        let greeter = thread::spawn(move || {
            let (mut stream, peer) = listener.accept().expect("the guest dials");
            stream.write_all(b"greetings\n").expect("the guest reads");
            peer.ip().to_string()
        });
        let heard = guest(&["sh", "-c", &format!("nc -w 30 10.88.0.1 {port} </dev/null")]);
        assert_eq!(heard, "greetings\n");
        assert_eq!(greeter.join().expect("it greets"), address("10.88."), "under its own address");

        let taps = in_namespace(pid, &["ip", "-br", "link"]);
        assert!(taps.contains("lazaret0"), "{taps}");
    }
    drop(network);
    // The veth pair went with the namespace, which nobody holds any more.
    let links = host("ip", &["-br", "link"]);
    assert!(!links.contains("veth"), "{links}");
    before.assert_nothing_new();
}

#[test]
fn networks_of_other_plugins_are_the_guests_too() {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    let outside = Namespace::new("beyond");
    ip(&format!("link add cnimaster type veth peer name cnipeer netns {}", outside.name));
    ip("link set cnimaster up");
    outside.ip("link set cnipeer up");
    for address in ["10.86.0.1/24", "fd86::1/64"] {
        outside.ip(&format!("addr add {address} dev cnipeer"));
    }
    for (plugin, network) in [(r#""type": "ptp""#, 87), (r#""type": "macvlan", "master": "cnimaster""#, 86)] {
        let _network = Network::of(&format!(r#"{{ {plugin}, "ipam": {} }}"#, addresses_of(network)));
        let container = Container::new("plugin").flags(&["--cni"]);
        container.detach(&["sleep", "1000"]);
        let (pid, _) = container.status().expect("there is a task");
        for family in ["-4", "-6"] {
            let expected = routes(&in_namespace(pid, &["ip", family, "route"]));
            let found = container.exec(&["ip", family, "route"]).success().out();
            assert_eq!(routes(&found), expected, "{plugin}");
        }
        for gateway in [format!("10.{network}.0.1"), format!("fd{network}::1")] {
            container.exec(&["ping", "-c", "2", "-W", "30", &gateway]).success();
        }
    }
    ip("link delete cnimaster");
}

#[test]
fn a_sandbox_has_every_interface_of_its_namespace_whatever_its_kind() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let bridge = Bridge::new("lazaret-veth", 1500, &["10.94.0.1/24"]);
    // What stands for the network outside of a macvlan's and an ipvlan's parent.
    let outside = Namespace::new("outside");
    let namespace = Namespace::new("several");
    namespace.join("eth0", bridge.name, 1500);
    for (parent, address) in [("macparent", "10.95.0.1/24"), ("ipparent", "10.96.0.1/24")] {
        ip(&format!("link add {parent} type veth peer name {parent}1 netns {}", outside.name));
        ip(&format!("link set {parent} up"));
        outside.ip(&format!("addr add {address} dev {parent}1"));
        outside.ip(&format!("link set {parent}1 up"));
    }
    ip(&format!("link add link macparent name eth1 netns {} type macvlan mode bridge", namespace.name));
    ip(&format!("link add link ipparent name eth2 netns {} type ipvlan mode l2", namespace.name));
    for (interface, address) in [("eth0", "10.94.0.2/24"), ("eth1", "10.95.0.2/24"), ("eth2", "10.96.0.2/24")]
    {
        namespace.ip(&format!("addr add {address} dev {interface}"));
        namespace.ip(&format!("link set {interface} up"));
    }
    {
        let flags = namespace.flags();
        let container = Container::new("several").flags(&[&flags[0], &flags[1]]);
        container.detach(&["sleep", "1000"]);
        for address in ["10.94.0.1", "10.95.0.1", "10.96.0.1"] {
            container.exec(&["ping", "-c", "2", "-W", "30", address]).success();
        }
        for (network, address) in [("10.95.0.1", "10.95.0.2"), ("10.96.0.1", "10.96.0.2")] {
            outside.run(&["busybox", "ping", "-c", "2", "-W", "30", "-I", network, address]).success();
        }
        let listed = host("lazaret", &["ps"]);
        assert!(listed.contains("10.94.0.2/24 10.95.0.2/24 10.96.0.2/24"), "{listed}");
    }
    for parent in ["macparent", "ipparent"] {
        ip(&format!("link delete {parent}"));
    }
}

/// What the wiring leaves in a namespace: taps, qdiscs, and a range of ports of its own.
fn wiring_of(namespace: &Namespace) -> String {
    let run = |args: &[&str]| namespace.run(args).success().out();
    let links = run(&["ip", "-br", "link"]).lines().filter(|line| line.contains("lazaret")).count();
    let qdiscs = run(&["tc", "qdisc", "show"]).lines().filter(|line| line.contains("ingress")).count();
    let range = run(&["cat", "/proc/sys/net/ipv4/ip_local_port_range"]);
    format!(
        "{links} taps, {qdiscs} qdiscs, ports {}",
        range.split_whitespace().collect::<Vec<_>>().join(" to ")
    )
}

#[test]
fn a_namespace_is_as_it_was_after_its_sandbox_however_that_ends() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let namespace = Namespace::new("kept");
    let bridge = Bridge::new("lazaret-kept", 1500, &["10.93.0.1/24"]);
    namespace.join("eth0", bridge.name, 1500);
    namespace.ip("addr add 10.93.0.2/24 dev eth0");
    namespace.ip("link set eth0 up");
    let before = wiring_of(&namespace);
    assert!(before.starts_with("0 taps, 0 qdiscs, ports 32768 to "), "{before}");
    let flags = namespace.flags();
    for how in ["of itself", "its VMM killed", "its shim killed"] {
        let container = Container::new("kept").flags(&[&flags[0], &flags[1]]);
        container.detach(&["sleep", "1000"]);
        container.exec(&["ping", "-c", "1", "-W", "30", "10.93.0.1"]).success();
        assert_eq!(wiring_of(&namespace), "1 taps, 2 qdiscs, ports 61440 to 61951");
        let (vmm, _) = container.status().expect("there is a task");
        match how {
            "its VMM killed" => kill_process(vmm),
            "its shim killed" => kill_process(shim_of(&container.id)),
            _ => {}
        }
        container.remove();
        eventually(|| {
            let now = wiring_of(&namespace);
            if now == before { Ok(()) } else { Err(format!("{how}: {now}")) }
        });
    }
}

#[test]
fn sandboxes_without_a_common_network_do_not_reach_each_other() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    let sandboxes: Vec<_> = [("lazaret-left", "10.91.0"), ("lazaret-right", "10.92.0")]
        .into_iter()
        .map(|(name, network)| {
            let bridge = Bridge::new(name, 1500, &[&format!("{network}.1/24")]);
            let namespace = Namespace::new(&name[8..]);
            namespace.join("eth0", name, 1500);
            namespace.ip(&format!("addr add {network}.2/24 dev eth0"));
            namespace.ip("link set eth0 up");
            let flags = namespace.flags();
            let container = Container::new("apart").flags(&[&flags[0], &flags[1]]);
            container.detach(&["sleep", "1000"]);
            (container, namespace, bridge, network)
        })
        .collect();
    for (own, other) in [(0, 1), (1, 0)] {
        let ping = |address: &str| sandboxes[own].0.exec(&["ping", "-c", "2", "-W", "5", address]);
        ping(&format!("{}.1", sandboxes[own].3)).success();
        let reached = ping(&format!("{}.2", sandboxes[other].3));
        assert_ne!(reached.code, 0, "{reached}");
    }
}
