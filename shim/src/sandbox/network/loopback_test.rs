use super::*;
use crate::sandbox::test_support::descriptor_of;
use crate::sandbox::vm::Place;
use lazaret_agent_api::{Frame, LoopbackPort, MAX_QUERY, Transport};
use lazaret_vmm_wire::{Channel, Name, Request};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use tokio::net::{TcpStream, UdpSocket};

const LIMIT: Duration = Duration::from_secs(60);

/// A VM in `namespace` whose agent answers a connection to localhost with the port it is for. It asks for one name, and hands out
/// what it is answered.
fn scripted(dir: &Path, namespace: OwnedFd) -> (Vm, mpsc::Receiver<Vec<u8>>) {
    let binary = dir.join("vmm");
    fs::write(&binary, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&binary, Permissions::from_mode(0o755)).unwrap();
    let (vm, _) = Vm::spawn(Place { binary, network: Some(namespace), cgroup: None }).unwrap();
    let channel = Channel::from(descriptor_of(vm.pid(), 3));
    let pid = Pid::from_raw(vm.pid().try_into().unwrap());
    let (answers, answered) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((request, descriptors)) = channel.receive::<Request>() {
            match request {
                Request::Connect { port } => {
                    let stream = UnixStream::from(descriptors.only(Name::Stream).unwrap());
                    let answers = answers.clone();
                    std::thread::spawn(move || serve(port, stream, &answers));
                }
                _ => return kill(pid, Signal::SIGKILL).unwrap(),
            }
        }
    });
    (vm, answered)
}

/// The agent's end of a stream.
fn serve(port: u32, mut stream: UnixStream, answers: &mpsc::Sender<Vec<u8>>) {
    if port == FORWARD_PORT {
        let mut header = [0; LoopbackPort::LENGTH];
        stream.read_exact(&mut header).unwrap();
        let to = LoopbackPort::decode(header).unwrap().address();
        stream.write_all(&[&[Ack::Attached as u8], to.to_string().as_bytes()].concat()).unwrap();
        return;
    }
    assert_eq!(port, NAMES_PORT);
    stream.write_all(&[Ack::Attached as u8]).unwrap();
    let query = Frame { id: 5, transport: Transport::Udp, message: b"query".into() };
    let bytes = query.encode().unwrap();
    stream.write_all(&bytes).unwrap();
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer).unwrap();
    answers.send(answer).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    answers.send(rest).unwrap();
}

/// In a network namespace of its own whose ports are reserved, as wiring does it.
#[test]
fn localhost_and_names_are_carried_until_they_are_closed() {
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "61440 61951").unwrap();
        let namespace = File::open("/proc/thread-self/ns/net").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let resolv_conf = dir.path().join("resolv.conf");
        fs::write(&resolv_conf, "nameserver 127.0.0.11\n").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let test = async {
            let resolver = UdpSocket::bind(RESOLVER).await.unwrap();
            let (vm, answered) = scripted(dir.path(), namespace.into());
            let loopback = Loopback::default();
            loopback.open(&vm, Some(&resolv_conf)).await;
            loopback.open(&vm, Some(&resolv_conf)).await;

            for to in ["127.0.0.1:80", "[::1]:443"] {
                let mut heard = String::new();
                TcpStream::connect(to).await.unwrap().read_to_string(&mut heard).await.unwrap();
                assert_eq!(heard, to);
            }
            let mut query = [0; MAX_QUERY];
            let (length, relay) = resolver.recv_from(&mut query).await.unwrap();
            assert_eq!(&query[..length], b"query");
            resolver.send_to(b"reply", relay).await.unwrap();
            let expected = Frame { id: 5, transport: Transport::Udp, message: b"reply".into() };
            assert_eq!(answered.recv_timeout(LIMIT).unwrap(), expected.encode().unwrap());

            loopback.close().await;
            assert_eq!(answered.recv_timeout(LIMIT).unwrap(), b"", "the stream has ended");
            TcpStream::connect("127.0.0.1:80").await.unwrap_err();
            vm.stop().await;
            loopback.open(&vm, None).await;
            TcpStream::connect("127.0.0.1:80").await.expect_err("the VM has ended");
        };
        runtime.block_on(async { tokio::time::timeout(LIMIT, test).await.unwrap() });
    };
    std::thread::spawn(run).join().unwrap();
}

fn names(resolv_conf: Option<PathBuf>) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(LIMIT, names_docker(resolv_conf)).await })
        .expect("nothing is waited for")
}

#[test]
fn the_containers_resolv_conf_says_whether_dockerd_resolves_its_names() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("resolv.conf");
    for (text, expected) in [
        ("# Generated by Docker Engine.\n\nnameserver 127.0.0.11\noptions edns0 trust-ad ndots:0\n", true),
        ("search example\nnameserver\t127.0.0.11 \n", true),
        ("nameserver 127.0.0.1\nnameserver 127.0.0.110\n", false),
        ("# ExtServers: [host(127.0.0.11)]\n;nameserver 127.0.0.11\nnameserver 10.0.0.1\n", false),
        ("", false),
    ] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(names(Some(path.clone())), expected, "{text}");
    }
}

#[test]
fn a_resolv_conf_that_is_not_there_or_no_file_names_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
    for resolv_conf in [None, Some(directory.path().join("none")), Some(pipe)] {
        assert!(!names(resolv_conf));
    }
}
