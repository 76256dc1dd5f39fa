//! Localhost of a sandbox's network namespace: servers of the guest are reached there, and the guest asks there for names.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lazaret_integration::container::Container;
use lazaret_integration::leftovers::{Snapshot, eventually};
use lazaret_integration::{alone, is_lazaret};
use nix::sched::{CloneFlags, setns};

use super::network::{Network, in_namespace};

/// An emulated host is slow; what is to end at once does so within this.
const AT_ONCE: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// What the resolver of the test says of every name.
const ADDRESS: [u8; 4] = [10, 1, 2, 3];

/// Runs `work` in a thread in the network namespace of a process.
fn within<T: Send + 'static>(pid: u32, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    thread::spawn(move || {
        let namespace = File::open(format!("/proc/{pid}/ns/net")).expect("the task runs");
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may");
        work()
    })
}

/// What the server at `to` answers, seen from the namespace of a process.
pub(super) fn request(pid: u32, to: &'static str) -> String {
    let ask = move || {
        let mut stream = TcpStream::connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
        stream.set_read_timeout(Some(READ_TIMEOUT)).expect("a timeout");
        stream.write_all(b"GET /hello HTTP/1.0\r\n\r\n").unwrap_or_else(|error| panic!("{to}: {error}"));
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap_or_else(|error| panic!("{to}: {error}"));
        answer
    };
    within(pid, ask).join().expect("a server answers")
}

/// A DNS answer to `query`: [`ADDRESS`] for one that asks for an IPv4 address, else that there is none.
fn dns_answer(query: &[u8]) -> Vec<u8> {
    // After the header of 12 bytes come the labels of the name, an empty one at their end, then type and class.
    let mut end = 12;
    while query[end] != 0 {
        end += usize::from(query[end]) + 1;
    }
    let question = &query[12..end + 5];
    let is_ipv4 = query[end + 1..end + 3] == [0, 1];
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0]);
    answer.extend(question);
    if is_ipv4 {
        // The name of the question, type and class, a time to live of a minute, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(ADDRESS);
    }
    answer
}

#[test]
fn servers_of_the_guest_are_reached_at_localhost_of_the_namespace_those_of_loopback_too() {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    let before = Snapshot::take();
    let network = Network::set_up();
    {
        let container = Container::new("localhost").flags(&["--cni"]);
        let serve = "echo hello >/hello; \
                     httpd -p 0.0.0.0:80 -h /; httpd -p 127.0.0.1:81 -h /; httpd -p '[::1]:82' -h /; \
                     exec sleep 1000";
        container.detach(&["sh", "-c", serve]);
        let (pid, _) = container.status().expect("there is a task");
        container.exec(&["sh", "-c", "until netstat -ltn | grep -q ::1:82; do :; done"]).success();
        // The last two: programs that try both families stop at the first that accepts, and the shim does in both.
        for to in ["127.0.0.1:80", "127.0.0.1:81", "[::1]:82", "[::1]:81", "127.0.0.1:82"] {
            assert!(request(pid, to).ends_with("hello\n"), "{to}");
        }

        // As with a server of the host: what is said first, and a client that ends its own direction first.
        let talk = "printf '#!/bin/sh\\necho welcome\\ncat\\necho bye\\n' >/talk; chmod +x /talk; \
                    nc -l -p 83 -e /talk >/dev/null 2>&1 </dev/null &";
        container.exec(&["sh", "-c", talk]).success();
        container.exec(&["sh", "-c", "until netstat -ltn | grep -q ':83 '; do :; done"]).success();
        let talk = || {
            let mut stream = TcpStream::connect("127.0.0.1:83").expect("there is a server");
            stream.set_read_timeout(Some(READ_TIMEOUT)).expect("a timeout");
            let mut welcome = [0; 8];
            stream.read_exact(&mut welcome).expect("the server speaks first");
            stream.write_all(b"something\n").expect("the server reads");
            stream.shutdown(std::net::Shutdown::Write).expect("it is open");
            let mut rest = String::new();
            stream.read_to_string(&mut rest).expect("text");
            (String::from_utf8_lossy(&welcome).into_owned(), rest)
        };
        let heard = within(pid, talk).join().expect("the server talks");
        assert_eq!(heard, ("welcome\n".to_owned(), "something\nbye\n".to_owned()));

        let begun = Instant::now();
        let closed = within(pid, || {
            ["127.0.0.1:9", "[::1]:9"].map(|to| {
                let mut stream = TcpStream::connect(to).expect("the shim listens");
                stream.set_read_timeout(Some(READ_TIMEOUT)).expect("a timeout");
                stream.read(&mut [0]).expect_err("nobody listens in the guest").kind()
            })
        });
        assert_eq!(closed.join().expect("a reset each"), [ErrorKind::ConnectionReset; 2]);
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());

        // Of another address of loopback nothing is taken.
        let other =
            within(pid, || TcpStream::connect("127.0.0.2:80").map(drop).map_err(|error| error.kind()));
        assert_eq!(other.join().expect("an answer"), Err(ErrorKind::ConnectionRefused));
        // The host's own localhost is its own.
        assert!(TcpStream::connect("127.0.0.1:81").is_err());

        // A namespace that outlives its task: localhost is its own again.
        let held = File::open(format!("/proc/{pid}/ns/net")).expect("the task runs");
        container.remove();
        let after = thread::spawn(move || {
            setns(held, CloneFlags::CLONE_NEWNET).expect("root may");
            // The task is removed a moment before its VM has ended.
            eventually(|| {
                let connected = ["127.0.0.1:80", "[::1]:82"].map(|to| TcpStream::connect(to).map(drop));
                let sockets = fs::read_to_string("/proc/thread-self/net/tcp").expect("a table");
                match connected.each_ref().map(|connected| connected.as_ref().map_err(std::io::Error::kind)) {
                    [Err(ErrorKind::ConnectionRefused), Err(ErrorKind::ConnectionRefused)]
                        if !sockets.contains(" 0A ") =>
                    {
                        Ok(())
                    }
                    other => Err(format!("localhost is taken still: {other:?}\n{sockets}")),
                }
            });
        });
        after.join().expect("localhost is the namespace's");
    }
    drop(network);
    before.assert_nothing_new();
}

#[test]
fn a_guest_asks_the_resolver_of_its_network_namespace_for_names() {
    if !is_lazaret() {
        return;
    }
    let _host = alone();
    let before = Snapshot::take();
    let network = Network::set_up();
    let resolv_conf = std::env::temp_dir().join(format!("lazaret-e2e-resolv-{}", std::process::id()));
    fs::write(&resolv_conf, "nameserver 127.0.0.11\noptions ndots:0\n").expect("root may");
    {
        let mount =
            format!("--mount=type=bind,src={},dst=/etc/resolv.conf,options=bind:ro", resolv_conf.display());
        let container = Container::new("names").flags(&["--cni", &mount]);
        container.detach(&["sleep", "1000"]);
        let (pid, _) = container.status().expect("there is a task");
        let bind = || {
            let udp = UdpSocket::bind("127.0.0.11:53").expect("the address is the namespace's");
            (udp, TcpListener::bind("127.0.0.11:53").expect("the address is the namespace's"))
        };
        let (udp, tcp) = within(pid, bind).join().expect("a resolver");
        // Their sockets keep the namespace, so they end with the test.
        udp.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        let done = Arc::new(AtomicBool::new(false));
        let is_done = done.clone();
        let by_udp = thread::spawn(move || {
            let mut buffer = [0; 512];
            while !is_done.load(Ordering::Relaxed) {
                if let Ok((length, client)) = udp.recv_from(&mut buffer) {
                    udp.send_to(&dns_answer(&buffer[..length]), client).expect("the relay waits");
                }
            }
        });
        let by_tcp = thread::spawn(move || {
            let (mut client, _) = tcp.accept().expect("the relay asks");
            let mut query = [0; 7];
            client.read_exact(&mut query).expect("a query");
            client.write_all(&query).expect("the relay reads");
        });
        let found = container.exec(&["nslookup", "greetings.example"]).success().out();
        assert!(found.contains("10.1.2.3"), "{found}");
        let echo = "printf '\\000\\005hello' | nc -w 30 127.0.0.11 53 | head -c 7 | tail -c 5";
        assert_eq!(container.exec(&["sh", "-c", echo]).success().out(), "hello");
        done.store(true, Ordering::Relaxed);
        by_udp.join().expect("it answers");
        by_tcp.join().expect("it answers");
        let range = in_namespace(pid, &["cat", "/proc/sys/net/ipv4/ip_local_port_range"]);
        assert!(range.starts_with("61440"), "the relay's own ports: {range}");
    }
    fs::remove_file(&resolv_conf).expect("it is there");
    drop(network);
    before.assert_nothing_new();
}
