//! Two sandboxes on a bridge of the host, and everything that goes between them, the host and their namespaces.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::Duration;

use lazaret_integration::container::Container;
use lazaret_integration::namespace::{Bridge, Namespace, ip};
use lazaret_integration::shared::Shared;
use lazaret_integration::{beside_few, is_lazaret, leftovers, probe, traffic};
use nix::sys::socket::{getsockopt, sockopt};

const MTU: u32 = 9000;
const PORT: u16 = 7000;
/// The host's addresses on the bridge. To the third one the route has an MTU of its own.
const HOST: [&str; 2] = ["10.99.0.1", "fd99::1"];
const HOST_BY_NARROW_ROUTE: &str = "10.98.0.1";
const NARROW: u32 = 1280;

/// Dropped in this order: the containers leave their namespaces before these go.
struct Pair {
    a: End,
    b: End,
    /// Of the host's server.
    port: u16,
    /// Held for writing by the test that cuts a link.
    links: RwLock<()>,
    _bridge: Bridge,
}

struct End {
    container: Container,
    namespace: Namespace,
    /// The other end of its interface, a port of the bridge.
    bridge_port: String,
    addresses: [IpAddr; 2],
}

static PAIR: Shared<Pair> = Shared::new(module_path!(), || {
    let own = [format!("{}/24", HOST[0]), format!("{}/64", HOST[1]), format!("{HOST_BY_NARROW_ROUTE}/32")];
    let bridge = Bridge::new("lazaret-two", MTU, &own.each_ref().map(String::as_str));
    let pair = Pair {
        a: End::new("a", 2, 1),
        b: End::new("b", 3, 2),
        port: traffic::serve(0).expect("a port"),
        links: RwLock::new(()),
        _bridge: bridge,
    };
    // A detached container has been started, and its server not yet.
    for server in [pair.a.servers()[0], pair.b.servers()[0]] {
        leftovers::eventually(|| traffic::tcp(server, 1));
    }
    pair
});

impl End {
    /// As many vCPUs are as many pairs of queues.
    fn new(name: &str, number: u8, vcpus: u8) -> Self {
        let namespace = Namespace::new(name);
        let bridge_port = namespace.join("eth0", "lazaret-two", MTU);
        let addresses = [format!("10.99.0.{number}"), format!("fd99::{number}")];
        namespace.ip("link set eth0 up");
        namespace.ip(&format!("addr add {}/24 dev eth0", addresses[0]));
        namespace.ip(&format!("addr add {}/64 dev eth0 nodad", addresses[1]));
        namespace.ip(&format!("route add default via {}", HOST[0]));
        namespace.ip(&format!("route add {HOST_BY_NARROW_ROUTE} via {} mtu {NARROW}", HOST[0]));
        let mount = format!("type=bind,src={},dst=/probe,options=rbind:ro", probe::path());
        let flags = namespace.flags();
        let vcpus = format!("io.lazaret.vm.vcpus={vcpus}");
        let container = Container::new("pair").flags(&["--mount", &mount, &flags[0], &flags[1]]);
        let container = container.flags(&["--annotation", &vcpus]);
        container.detach(&["/probe", "serve", &PORT.to_string()]);
        let addresses = addresses.map(|address| address.parse().expect("an address"));
        Self { container, namespace, bridge_port, addresses }
    }

    /// Its servers, by IPv4 and IPv6.
    fn servers(&self) -> [SocketAddr; 2] {
        self.addresses.map(|address| (address, PORT).into())
    }

    /// Has its guest talk to a server.
    #[track_caller]
    fn talks(&self, protocol: &str, server: SocketAddr, bytes: usize, connections: usize) {
        let (server, bytes, connections) = (server.to_string(), bytes.to_string(), connections.to_string());
        self.container.exec(&["/probe", "talk", protocol, &server, &bytes, &connections]).success();
    }
}

impl Pair {
    /// For as long as a test needs every link as it is.
    fn undisturbed(&self) -> RwLockReadGuard<'_, ()> {
        self.links.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host's servers.
    fn host(&self) -> [SocketAddr; 2] {
        HOST.map(|address| (address.parse::<IpAddr>().expect("an address"), self.port).into())
    }
}

#[test]
fn tcp_brings_payloads_of_every_size_whole() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_few();
    let pair = PAIR.sandbox();
    let _links = pair.undisturbed();
    for (family, server) in pair.a.servers().into_iter().enumerate() {
        for size in [1, 1_400, 60_000] {
            traffic::tcp(server, size).expect("from the host to a guest");
            pair.a.talks("tcp", pair.host()[family], size, 1);
            pair.a.talks("tcp", pair.b.servers()[family], size, 1);
        }
    }
    traffic::tcp(pair.a.servers()[0], 100 << 20).expect("much, from the host to a guest and back");
    pair.a.talks("tcp", pair.b.servers()[1], 20 << 20, 1);
}

#[test]
fn udp_brings_datagrams_of_every_size_whole() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_few();
    let pair = PAIR.sandbox();
    let _links = pair.undisturbed();
    for (family, server) in pair.a.servers().into_iter().enumerate() {
        for size in [1, 1_400, 60_000] {
            traffic::udp(server, size).expect("from the host to a guest");
            pair.a.talks("udp", pair.host()[family], size, 1);
            pair.a.talks("udp", pair.b.servers()[family], size, 1);
        }
    }
}

#[test]
fn two_hundred_connections_at_once_are_served() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_few();
    let pair = PAIR.sandbox();
    let _links = pair.undisturbed();
    let server = pair.b.servers()[0];
    let threads: Vec<_> = (0..200).map(|_| thread::spawn(move || traffic::tcp(server, 10_000))).collect();
    for thread in threads {
        thread.join().expect("it does not panic").expect("a connection of the host's");
    }
    pair.b.talks("tcp", pair.host()[0], 10_000, 200);
}

#[test]
fn packets_are_as_large_as_the_interface_and_the_route_allow() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_few();
    let pair = PAIR.sandbox();
    let _links = pair.undisturbed();
    let guest = |args: &[&str]| pair.a.container.exec(args).success().out();
    assert!(guest(&["ip", "link", "show", "dev", "eth0"]).contains("mtu 9000"));
    // One packet, and several fragments.
    for size in ["8000", "20000"] {
        for address in HOST {
            guest(&["ping", "-c", "2", "-W", "30", "-s", size, address]);
        }
    }
    let segment = |host: &str| {
        let listener = TcpListener::bind((host, 0)).expect("the bridge has the address");
        let server = listener.local_addr().expect("it listens");
        let sizes = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the guest dials");
            let size = getsockopt(&stream, sockopt::TcpMaxSeg).expect("a size");
            stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
            let _ = stream.read(&mut [0; 16]);
            size
        });
        let (host, port) = (server.ip().to_string(), server.port().to_string());
        guest(&["sh", "-c", &format!("echo hello | nc -w 30 {host} {port}")]);
        sizes.join().expect("it does not panic")
    };
    let (wide, narrow) = (segment(HOST[0]), segment(HOST_BY_NARROW_ROUTE));
    assert!(wide > 8_000, "{wide}");
    assert!(narrow <= NARROW - 40, "{narrow}");
}

#[test]
fn sockets_of_the_namespace_itself_still_work() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_few();
    let pair = PAIR.sandbox();
    let _links = pair.undisturbed();
    let probe = probe::path();
    for server in pair.host().map(|server| server.to_string()) {
        pair.a.namespace.run(&[&probe, "talk", "tcp", &server, "60000"]).success();
        pair.a.namespace.run(&[&probe, "talk", "udp", &server, "512"]).success();
    }
}

#[test]
fn a_link_that_goes_down_and_comes_back_carries_on() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_few();
    let pair = PAIR.sandbox();
    let _links = pair.links.write().unwrap_or_else(PoisonError::into_inner);
    let port = &pair.b.bridge_port;
    ip(&format!("link set {port} down"));
    let ping = pair.b.container.exec(&["ping", "-c", "1", "-W", "2", HOST[0]]);
    assert_ne!(ping.code, 0, "{ping}");
    ip(&format!("link set {port} up"));
    leftovers::eventually(|| traffic::udp(pair.b.servers()[0], 100));
    pair.b.talks("tcp", pair.host()[1], 1_400, 1);
}

#[test]
fn an_interface_comes_and_goes_while_the_sandbox_runs() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_few();
    let pair = PAIR.sandbox();
    let _links = pair.undisturbed();
    let other = Bridge::new("lazaret-third", 1500, &["10.97.0.1/24"]);
    let namespace = &pair.a.namespace;
    namespace.join("eth7", other.name, 1500);
    namespace.ip("link set eth7 up");
    namespace.ip("addr add 10.97.0.2/24 dev eth7");
    let guest = |args: &[&str]| pair.a.container.exec(args);
    leftovers::eventually(|| traffic::udp("10.97.0.2:7000".parse().expect("an address"), 100));
    assert!(guest(&["ip", "addr", "show", "dev", "eth7"]).success().out().contains("10.97.0.2/24"));
    traffic::tcp(pair.a.servers()[0], 1_400).expect("the first interface is as it was");

    namespace.ip("link delete eth7");
    leftovers::eventually(|| {
        let interfaces = guest(&["ls", "/sys/class/net"]).success().out();
        if interfaces.contains("eth7") { Err(interfaces) } else { Ok(()) }
    });
    leftovers::eventually(|| {
        let links = namespace.ip("-br link");
        if links.contains("lazaret1") { Err(links) } else { Ok(()) }
    });
    traffic::tcp(pair.a.servers()[0], 1_400).expect("the first interface is as it was");
}
