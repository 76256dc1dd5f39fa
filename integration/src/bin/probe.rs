//! What tests want to try inside a container and busybox has no command for.
//!
//! `lazaret-probe vsock CID FIRST LAST` tries each of these ports and prints those that let it in and do not hang up.

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::read;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<u32> = args.iter().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    match (args.first().map(String::as_str), numbers.as_slice()) {
        (Some("vsock"), &[cid, first, last]) => vsock(cid, first, last),
        _ => {
            eprintln!("usage: lazaret-probe vsock CID FIRST LAST");
            ExitCode::from(2)
        }
    }
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
