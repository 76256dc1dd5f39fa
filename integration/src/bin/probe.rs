//! What tests want to try inside a container and busybox has no command for.
//!
//! `lazaret-probe vsock CID FIRST LAST` tries each of these ports and prints those that let it in and do not hang up.
//! `lazaret-probe serve PORT` sends back what it receives by TCP and UDP, until it is killed.
//! `lazaret-probe talk tcp|udp ADDRESS:PORT BYTES [CONNECTIONS]` sends so many bytes to such a server, and checks what comes back.
//! `lazaret-probe tcp ADDRESS:PORT` prints what a server says, `lazaret-probe udp ADDRESS:PORT` what it answers to `hello`; or
//! `nothing`, and why.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use lazaret_integration::traffic;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::read;

/// How long a server may take: on an emulated host it takes a second, and what is dropped never answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<u32> = args.iter().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    match (args.first().map(String::as_str), numbers.as_slice()) {
        (Some("vsock"), &[cid, first, last]) => vsock(cid, first, last),
        (Some("serve"), &[port]) => serve(port),
        (Some("talk"), _) => talk(&args[1..]),
        (Some("tcp"), _) => ask(&args[1..], tcp),
        (Some("udp"), _) => ask(&args[1..], udp),
        _ => usage(),
    }
}

fn ask(args: &[String], by: fn(SocketAddr) -> io::Result<String>) -> ExitCode {
    let Some(Ok(to)) = args.first().map(|to| to.parse()) else { return usage() };
    match by(to) {
        Ok(answer) => println!("{answer}"),
        Err(error) => println!("nothing: {error}"),
    }
    ExitCode::SUCCESS
}

fn tcp(to: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, ANSWER_TIMEOUT)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn udp(to: SocketAddr) -> io::Result<String> {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    socket.connect(to)?;
    socket.send(b"hello")?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

fn usage() -> ExitCode {
    eprintln!(
        "usage: lazaret-probe vsock CID FIRST LAST | serve PORT | talk tcp|udp ADDRESS:PORT BYTES [CONNECTIONS] \
         | tcp|udp ADDRESS:PORT"
    );
    ExitCode::from(2)
}

fn serve(port: u32) -> ExitCode {
    let served = u16::try_from(port).map_err(std::io::Error::other).and_then(traffic::serve);
    match served {
        Ok(port) => {
            println!("serving on {port}");
            loop {
                std::thread::park();
            }
        }
        Err(error) => {
            eprintln!("serve: {error}");
            ExitCode::FAILURE
        }
    }
}

fn talk(args: &[String]) -> ExitCode {
    let (Some(protocol), Some(Ok(server)), Some(Ok(bytes))) = (
        args.first(),
        args.get(1).map(|arg| arg.parse::<SocketAddr>()),
        args.get(2).map(|arg| arg.parse::<usize>()),
    ) else {
        return usage();
    };
    let connections = args.get(3).and_then(|arg| arg.parse().ok()).unwrap_or(1);
    let exchange = if protocol == "udp" { traffic::udp } else { traffic::tcp };
    let threads: Vec<_> =
        (0..connections).map(|_| std::thread::spawn(move || exchange(server, bytes))).collect();
    let results = threads.into_iter().map(|thread| thread.join().expect("an exchange does not panic"));
    let errors: Vec<String> = results.filter_map(Result::err).collect();
    errors.iter().for_each(|error| eprintln!("{error}"));
    if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn vsock(cid: u32, first: u32, last: u32) -> ExitCode {
    for port in first..=last {
        let stream = match socket(AddressFamily::Vsock, SockType::Stream, SockFlag::empty(), None) {
            Ok(stream) => stream,
            Err(error) => {
                println!("no vsock: {error}");
                return ExitCode::SUCCESS;
            }
        };
        // Linux bounds connect(2) by the time to send (vsock(7)); reads by the time to receive.
        let limit = TimeVal::seconds(2);
        let limited = setsockopt(&stream, sockopt::SendTimeout, &limit)
            .and_then(|()| setsockopt(&stream, sockopt::ReceiveTimeout, &limit));
        if let Err(error) = limited {
            eprintln!("a time limit for the socket: {error}");
            return ExitCode::FAILURE;
        }
        if connect(stream.as_raw_fd(), &VsockAddr::new(cid, port)).is_ok() && stays(&stream) {
            println!("connected to {cid}:{port}");
        }
    }
    println!("tried {first} to {last}");
    ExitCode::SUCCESS
}

/// Whether the other side keeps the connection, or at least says something.
fn stays(stream: &OwnedFd) -> bool {
    match read(stream, &mut [0; 1]) {
        Ok(count) => count > 0,
        Err(error) => error == Errno::EAGAIN,
    }
}
