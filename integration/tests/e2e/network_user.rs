//! A user-mode network: a sandbox reaches what the host reaches, but not the host's loopback interface, and the host reaches
//! of the sandbox what is published.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Once;
use std::thread;
use std::time::Duration;

use lazaret_integration::command;
use lazaret_integration::container::Container;
use lazaret_integration::containerd::Containerd;
use lazaret_integration::leftovers::{Snapshot, eventually};
use lazaret_integration::{alone, beside_others, is_lazaret, probe};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const USER: [&str; 2] = ["--annotation", "io.lazaret.net=user"];
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// An address of the loopback interface at which no host has a nameserver.
const RESOLVER: &str = "127.0.0.9";
const PASTA: &str = "/usr/bin/pasta";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The host's address on the way to others.
fn host_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect("198.51.100.1:9").expect("the host has a default route");
    socket.local_addr().expect("it is connected").ip()
}

/// Greets all who come, for as long as the test program runs.
fn greet(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            // Who has left is not greeted.
            let _ = stream.and_then(|mut stream| stream.write_all(b"greetings"));
        }
    });
}

fn answer(socket: UdpSocket, with: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) {
    thread::spawn(move || {
        let mut heard = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut heard) {
            let _ = socket.send_to(&with(&heard[..length]), from);
        }
    });
}

/// A DNS answer (RFC 1035, 4.1): 192.0.2.7 for each question about an IPv4 address, nothing for others.
fn dns_answer(query: &[u8]) -> Vec<u8> {
    let header = 12;
    let name = query[header..].iter().position(|byte| *byte == 0).expect("the name ends");
    // The name's end, type and class.
    let question = &query[header..header + name + 5];
    let of_ipv4 = question[name + 1..name + 3] == [0, 1];
    let mut answer = [&query[..2], &[0x81, 0x80, 0, 1, 0, u8::from(of_ipv4), 0, 0, 0, 0], question].concat();
    if of_ipv4 {
        // The name as a pointer to the question, A, IN, for a minute.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
    }
    answer
}

/// The host's nameserver is one of its loopback interface, until this goes.
struct Nameserver(Vec<u8>);

impl Nameserver {
    fn start() -> Self {
        let before = fs::read(RESOLV_CONF).unwrap_or_default();
        fs::write(RESOLV_CONF, format!("nameserver {RESOLVER}\nsearch lazaret.example\n")).expect("root may");
        // The socket stays: it is for all tests.
        static STARTED: Once = Once::new();
        STARTED.call_once(|| {
            answer(UdpSocket::bind((RESOLVER, 53)).expect("nobody has the address"), dns_answer);
        });
        Self(before)
    }
}

impl Drop for Nameserver {
    fn drop(&mut self) {
        let _ = fs::write(RESOLV_CONF, &self.0);
    }
}

/// A file that is away until this goes.
struct Away(PathBuf);

impl Away {
    fn take(path: &str) -> Self {
        let path = PathBuf::from(path);
        fs::rename(&path, path.with_extension("away")).expect("it is there");
        Self(path)
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        let _ = fs::rename(self.0.with_extension("away"), &self.0);
    }
}

/// Every pasta of the host; a test that asks is alone.
fn pastas() -> Vec<i32> {
    let processes = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let pid = |entry: fs::DirEntry| {
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        // `pasta.avx2` on most processors.
        name.starts_with("pasta").then(|| entry.file_name().to_str()?.parse().ok())?
    };
    processes.filter_map(pid).collect()
}

fn wait_until_no_pasta_runs() {
    eventually(|| match pastas()[..] {
        [] => Ok(()),
        ref left => Err(format!("pasta still runs: {left:?}")),
    });
}

fn probe_mount() -> String {
    format!("type=bind,src={},dst=/probe,options=bind:ro", probe::path())
}

/// The report of `lazaret doctor`, whatever its verdict.
fn doctor() -> String {
    let mut doctor = Command::new("lazaret");
    doctor.arg("doctor");
    command::run(doctor).out()
}

/// What the server at `to` says to the host.
fn ask(to: impl ToSocketAddrs) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(b"GET /hello HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_sandbox_reaches_others_but_not_the_hosts_loopback_interface_and_shows_what_is_published() {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    let before = Snapshot::take();
    {
        let _nameserver = Nameserver::start();
        let address = host_address();
        let outside = TcpListener::bind((address, 0)).expect("the host has the address");
        let udp_outside = UdpSocket::bind((address, 0)).expect("the host has the address");
        let (to, udp_to) = (outside.local_addr().expect("bound"), udp_outside.local_addr().expect("bound"));
        greet(outside);
        answer(udp_outside, |_| b"greetings".into());
        // Both say it when they are reached; nobody is to hear it.
        let inside = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = inside.local_addr().expect("bound").port();
        let hidden = [
            TcpListener::bind(("::1", port)).expect("the same port"),
            TcpListener::bind(("127.0.0.2", port)).expect("the same port"),
            inside,
        ];
        hidden.into_iter().for_each(greet);
        answer(UdpSocket::bind(("127.0.0.1", port)).expect("the same port"), |_| b"greetings".into());

        let container = Container::new("user-network")
            .flags(&USER)
            .flags(&["--annotation", "io.lazaret.net.publish=127.0.0.1:18080:80,18053:53/udp"])
            .flags(&["--mount", &probe_mount()]);
        container.detach(&["sh", "-c", "echo hello >/hello; /probe serve 53 & exec httpd -f -p 80 -h /"]);
        let guest = |args: &[&str]| container.exec(args).success().out();
        assert_eq!(guest(&["ls", "/sys/class/net"]).split_whitespace().collect::<Vec<_>>(), ["eth0", "lo"]);
        assert_eq!(guest(&["/probe", "tcp", &to.to_string()]), "greetings\n");
        assert_eq!(guest(&["/probe", "udp", &udp_to.to_string()]), "greetings\n");
        let resolv_conf = guest(&["cat", RESOLV_CONF]);
        assert_eq!(resolv_conf, "nameserver 169.254.1.1\nsearch lazaret.example\n");
        let found = guest(&["nslookup", "-type=a", "name.example"]);
        assert!(found.contains("192.0.2.7"), "{found}");

        let routes = guest(&["ip", "route"]);
        let gateway = routes.lines().find_map(|line| line.strip_prefix("default via ")).expect("a gateway");
        let gateway = gateway.split(' ').next().expect("an address");
        let host = address.to_string();
        let own = ["127.0.0.1", "127.0.0.2", "[::1]"];
        for address in
            [gateway, "10.0.2.100", "169.254.1.1", "[fd6c:617a:6172::53]", &host].iter().chain(&own)
        {
            for protocol in ["tcp", "udp"] {
                let heard = guest(&["/probe", protocol, &format!("{address}:{port}")]);
                assert!(!heard.contains("greetings"), "{protocol} {address}: {heard}");
            }
        }

        assert!(ask("127.0.0.1:18080").expect("it is published").ends_with("hello\n"));
        ask(SocketAddr::new(address, 18080)).expect_err("it is published at another address");
        ask("127.0.0.1:80").expect_err("it is not published");
        let socket = UdpSocket::bind((address, 0)).expect("the host has the address");
        socket.set_read_timeout(Some(ANSWER_TIMEOUT)).expect("a timeout");
        socket.send_to(b"echo", (address, 18053)).expect("it is published");
        let mut echo = [0; 16];
        let length = socket.recv(&mut echo).expect("the guest answers");
        assert_eq!(&echo[..length], b"echo");
        assert_eq!(pastas().len(), 1);
    }
    wait_until_no_pasta_runs();
    before.assert_nothing_new();
}

#[test]
fn a_pasta_that_is_killed_is_told_and_its_sandbox_lives_on() {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    let containerd = Containerd::start("kill-pasta");
    let container = Container::new("kill-pasta").flags(&USER).on(&containerd.socket());
    container.detach(&["sleep", "1000"]);
    let [pasta] = pastas()[..] else { panic!("one pasta: {:?}", pastas()) };
    kill(Pid::from_raw(pasta), Signal::SIGKILL).expect("it runs");
    eventually(|| {
        let log = containerd.log();
        let line = log.lines().find(|line| line.contains("no user-mode network any more"));
        match line {
            Some(line) if line.contains("ended by signal 9") && line.contains("level=error") => Ok(()),
            other => Err(format!("{other:?} in {log}")),
        }
    });
    assert_eq!(container.exec(&["echo", "still", "well"]).success().out(), "still well\n");
}

#[test]
fn a_killed_shim_leaves_no_pasta() {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    let container = Container::new("pasta-shim").flags(&USER);
    let run = container.attach(&["sh", "-c", "echo ready; exec sleep 1000"]);
    run.wait_for("ready");
    let [pasta] = pastas()[..] else { panic!("one pasta: {:?}", pastas()) };
    let status = fs::read_to_string(format!("/proc/{pasta}/status")).expect("it runs");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect("every process has it");
        line.split_whitespace().nth(1).expect("it has a value").to_owned()
    };
    assert_ne!(field("Uid:"), "0", "{status}");
    assert_eq!(field("Seccomp:"), "2", "{status}");
    let shim = field("PPid:").parse().expect("a pid");
    kill(Pid::from_raw(shim), Signal::SIGKILL).expect("it runs");
    assert_ne!(run.finish().code, 0);
    wait_until_no_pasta_runs();
}

#[test]
fn without_pasta_one_line_says_so_and_so_does_the_doctor() {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    {
        let _away = Away::take(PASTA);
        let container = Container::new("no-pasta").flags(&USER);
        // ctr leaves a task whose start failed to its caller.
        let run = command::run(container.run_command(&["--detach"], &["true"]));
        assert_ne!(run.code, 0, "{run}");
        assert!(run.err().contains("install the package passt"), "{run}");
        let report = doctor();
        let line = report.lines().find(|line| line.contains(" pasta ")).expect("a line of pasta");
        assert!(line.starts_with("WARN ") && line.ends_with("not in PATH"), "{report}");
    }
    let report = doctor();
    for check in ["network", "pasta"] {
        let good = format!("good  {check} ");
        assert!(report.lines().any(|line| line.starts_with(&good)), "{report}");
    }
}

#[test]
fn a_spec_that_asks_for_the_hosts_network_has_one_where_the_configuration_says_so() {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    let _nameserver = Nameserver::start();
    let config = std::env::temp_dir().join(format!("lazaret-host-network-{}.toml", std::process::id()));
    fs::write(&config, "host_network = \"user\"\n").expect("root may");
    let config_path = config.display().to_string();
    {
        let container =
            Container::new("host-network").flags(&["--net-host", "--runtime-config-path", &config_path]);
        let run = container.run(&["sh", "-c", "ls /sys/class/net; nslookup -type=a name.example"]);
        assert!(run.out().starts_with("eth0\nlo\n") && run.out().contains("192.0.2.7"), "{run}");
    }
    fs::remove_file(&config).expect("it is there");
}

#[test]
fn an_annotation_that_means_nothing_or_contradicts_is_told_in_one_line() {
    if !is_lazaret() {
        return;
    }
    let _host = beside_others();
    for (annotations, told) in [
        (&["io.lazaret.net=host"][..], "annotation io.lazaret.net=\"host\": expected user or none"),
        (&["io.lazaret.net.publish=80:80"], "it is for a user-mode network"),
        (&["io.lazaret.net=user", "io.lazaret.net.publish=80"], "\"80\": expected HOST-PORT:PORT"),
    ] {
        let mut container = Container::new("bad-network");
        for annotation in annotations {
            container = container.flags(&["--annotation", annotation]);
        }
        let run = container.run(&["true"]);
        assert_ne!(run.code, 0, "{run}");
        assert!(run.err().contains(told), "{told}: {run}");
    }
    let taken = TcpListener::bind("0.0.0.0:18081").expect("a free port");
    let container =
        Container::new("taken-port").flags(&USER).flags(&["--annotation", "io.lazaret.net.publish=18081:80"]);
    let run = command::run(container.run_command(&["--detach"], &["true"]));
    assert_ne!(run.code, 0, "{run}");
    assert!(run.err().contains("pasta does not give") && run.err().contains("18081:80"), "{run}");
    drop(taken);
    let container = Container::new("no-network").flags(&["--annotation", "io.lazaret.net=none"]);
    assert_eq!(container.run(&["ls", "/sys/class/net"]).success().out(), "lo\n");
}
