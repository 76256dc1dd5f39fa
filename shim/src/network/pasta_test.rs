//! The tests that run pasta need root, and a pasta that is young enough in `PATH`; else they say that they are skipped.

use super::*;
use nix::sched::{CloneFlags, setns, unshare};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

fn words(published: &str) -> Vec<String> {
    let published = if published.is_empty() { Vec::new() } else { Published::parse_list(published).unwrap() };
    arguments(true, &published).into_iter().map(|word| word.into_string().unwrap()).collect()
}

/// The values of an option.
fn values(words: &[String], option: &str) -> Vec<String> {
    words.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].clone()).collect()
}

#[test]
fn nothing_is_forwarded_that_was_not_asked_for() {
    let words = words("");
    for option in ["--tcp-ports", "--udp-ports", "--tcp-ns", "--udp-ns"] {
        assert_eq!(values(&words, option), ["none"], "{option}");
    }
    assert!(words.contains(&"--no-map-gw".to_owned()));
}

#[test]
fn each_published_port_is_an_option_of_its_own() {
    let words = words("8080:80,127.0.0.1:53:5353/udp,[::1]:8081:80");
    assert_eq!(values(&words, "--tcp-ports"), ["0.0.0.0/8080:80", "::/8080:80", "::1/8081:80"]);
    assert_eq!(values(&words, "--udp-ports"), ["127.0.0.1/53:5353"]);
}

/// One test at a time runs pasta, since one counts the children of this process. `None` when none can.
pub(in crate::network) fn usable() -> Option<MutexGuard<'static, ()>> {
    static ONE: Mutex<()> = Mutex::new(());
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let usable = find_pasta().is_some_and(|pasta| is_young_enough(&pasta).unwrap());
    if !usable {
        eprintln!("no pasta that is young enough is in PATH: skipped");
    }
    usable.then_some(one)
}

fn in_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn new_namespace() -> Arc<OwnedFd> {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        File::open("/proc/thread-self/ns/net").unwrap().into()
    };
    Arc::new(std::thread::spawn(make).join().unwrap())
}

/// Runs `work` in a thread that has entered the namespace.
fn inside<T: Send + 'static>(
    namespace: &Arc<OwnedFd>,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    let namespace = namespace.clone();
    std::thread::spawn(move || {
        setns(&*namespace, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
}

fn interfaces(namespace: &Arc<OwnedFd>) -> String {
    let read = || fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let table = inside(namespace, read).join().unwrap();
    table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect::<Vec<_>>().join(" ")
}

/// The children of this process that run pasta in this namespace.
fn pids() -> Vec<i32> {
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let (name, fields) = stat.split_once('(')?.1.rsplit_once(')')?;
            let mut fields = fields.split_whitespace();
            let runs = fields.next()? != "Z" && fields.next()? == own && name.starts_with(PASTA);
            runs.then(|| entry.file_name().to_str()?.parse().ok())?
        })
        .collect()
}

/// An address of the host's that is none of its loopback interface.
fn host_address() -> Option<std::net::IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("198.51.100.1:9").ok()?;
    Some(socket.local_addr().unwrap().ip())
}

const TIMEOUT: Duration = Duration::from_secs(5);

#[test]
fn a_namespace_has_an_interface_for_as_long_as_pasta_runs() {
    let Some(_one) = usable() else { return };
    in_runtime(async {
        let namespace = new_namespace();
        let published = Published::parse_list("127.0.0.1:47080:80").unwrap();
        let pasta = Pasta::start(namespace.clone(), &published).await.unwrap();
        assert_eq!(interfaces(&namespace), "lo eth0");
        let [pid] = pids()[..] else { panic!("{:?}", pids()) };
        has_few_rights(pid);
        // The kernel binds a published port once.
        let again = Pasta::start(new_namespace(), &published).await.unwrap_err();
        let line = again.to_string();
        assert!(line.contains("Failed to bind port 47080") && !line.contains('\n'), "{line}");
        // Without an address it is a port of both families, and taken when one of them has it.
        let _taken = TcpListener::bind("0.0.0.0:47082").unwrap();
        for (list, told) in [("47081:80", None), ("47082:80", Some("Failed to bind port 47082"))] {
            let started = Pasta::start(new_namespace(), &Published::parse_list(list).unwrap()).await;
            match (started, told) {
                (Ok(started), None) => started.end().await,
                (Err(error), Some(told)) => assert!(error.to_string().contains(told), "{error}"),
                (other, _) => panic!("{list}: {other:?}"),
            }
        }
        assert_eq!(pids(), [pid]);

        let talk = tokio::task::spawn_blocking({
            let namespace = namespace.clone();
            move || {
                a_published_port_is_reached(&namespace);
                the_host_is_reached_but_not_its_loopback_interface(&namespace);
            }
        });
        talk.await.unwrap();
        pasta.end().await;
        assert_eq!(pids(), [0; 0]);
        assert_eq!(interfaces(&namespace), "lo");

        let pasta = Pasta::start(namespace.clone(), &[]).await.unwrap();
        let [pid] = pids()[..] else { panic!("{:?}", pids()) };
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        let mut ended = pasta.ended.clone();
        tokio::time::timeout(TIMEOUT, ended.wait_for(|ended| *ended)).await.unwrap().unwrap();
        assert_eq!(interfaces(&namespace), "lo");
        pasta.end().await;
    });
}

#[test]
fn a_namespace_without_ipv6_has_ipv4() {
    let Some(_one) = usable() else { return };
    in_runtime(async {
        let namespace = new_namespace();
        let turn_off = || fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        inside(&namespace, turn_off).join().unwrap();
        let pasta = Pasta::start(namespace.clone(), &[]).await.unwrap();
        assert_eq!(interfaces(&namespace), "lo eth0");
        pasta.end().await;
    });
}

#[test]
fn the_end_of_the_thread_that_started_pasta_is_pastas_too() {
    let Some(_one) = usable() else { return };
    let start = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let pasta = runtime.block_on(Pasta::start(new_namespace(), &[])).unwrap();
        // As when the shim is killed: nobody undoes anything.
        std::mem::forget((pasta, runtime));
        pids()
    };
    let [pid] = std::thread::spawn(start).join().unwrap()[..] else { panic!("one pasta") };
    let begun = std::time::Instant::now();
    while pids().contains(&pid) {
        assert!(begun.elapsed() < TIMEOUT, "pasta still runs");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_pasta_that_fails_is_told_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let mode = |mode| fs::Permissions::from_mode(mode);
    fs::set_permissions(dir.path(), mode(0o755)).unwrap();
    let told = |script: &str| {
        let binary = dir.path().join("failing");
        fs::write(&binary, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&binary, mode(0o755)).unwrap();
        in_runtime(async { Pasta::run(&binary, new_namespace(), &[]).await.unwrap_err().to_string() })
    };
    assert_eq!(
        told("echo first >&2; echo 'No such thing' >&2; exit 1"),
        "pasta does not give the sandbox a user-mode network: No such thing"
    );
    assert_eq!(
        told("exit 3"),
        "pasta does not give the sandbox a user-mode network: pasta ended with status 3"
    );
    assert_eq!(
        told("echo \"pasta: unrecognized option '--no-splice'\" >&2; echo usage >&2; exit 1"),
        "pasta is too old: lazaret needs the package passt of Debian 13 or newer \
         (pasta: unrecognized option '--no-splice')"
    );
    // It has said nothing that is a whole line.
    assert!(told("printf 12; exit 0").ends_with("pasta ended with status 0"));
    let absent = Path::new("/nonexistent/pasta");
    let error = in_runtime(async { Pasta::run(absent, new_namespace(), &[]).await.unwrap_err() });
    assert!(error.to_string().starts_with("cannot run /nonexistent/pasta: "), "{error}");
}

fn has_few_rights(pid: i32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    let nobody = NOBODY.to_string();
    assert!(field("Uid:").iter().chain(&field("Gid:")).all(|id| *id == nobody), "{status}");
    assert!(field("Groups:").is_empty(), "{status}");
    let all = CAPABILITIES.iter().fold(0_u64, |mask, number| mask | 1 << number);
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:"] {
        let held = u64::from_str_radix(&field(set)[0], 16).unwrap();
        assert_eq!(held & !all, 0, "{set} {status}");
    }
}

fn a_published_port_is_reached(namespace: &Arc<OwnedFd>) {
    let server = inside(namespace, || TcpListener::bind("0.0.0.0:80").unwrap()).join().unwrap();
    let greeter = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        stream.write_all(b"greetings").unwrap();
    });
    let mut stream = TcpStream::connect("127.0.0.1:47080").unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "greetings");
    greeter.join().unwrap();
}

fn the_host_is_reached_but_not_its_loopback_interface(namespace: &Arc<OwnedFd>) {
    let Some(address) = host_address() else {
        eprintln!("the host has no address beside its loopback interface: skipped");
        return;
    };
    let outside = TcpListener::bind((address, 0)).unwrap();
    let udp_outside = UdpSocket::bind((address, 0)).unwrap();
    let (to, udp_to) = (outside.local_addr().unwrap(), udp_outside.local_addr().unwrap());
    let connect = move |to: SocketAddr| TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok();
    assert!(inside(namespace, move || connect(to)).join().unwrap());
    outside.accept().unwrap();
    let send = move || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"hello", udp_to).unwrap();
    inside(namespace, send).join().unwrap();
    udp_outside.set_read_timeout(Some(TIMEOUT)).unwrap();
    assert_eq!(udp_outside.recv(&mut [0; 16]).unwrap(), 5);

    let loopback = TcpListener::bind("127.0.0.1:0").unwrap();
    let loopback6 = TcpListener::bind(("::1", loopback.local_addr().unwrap().port()));
    loopback.set_nonblocking(true).unwrap();
    let port = loopback.local_addr().unwrap().port();
    for to in [GATEWAY, ADDRESS, NAMESERVER, ADDRESS6, &address.to_string()] {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        inside(namespace, move || connect(to)).join().unwrap();
        assert!(loopback.accept().is_err(), "{to}");
        if let Ok(loopback6) = &loopback6 {
            loopback6.set_nonblocking(true).unwrap();
            assert!(loopback6.accept().is_err(), "{to}");
        }
    }
}
