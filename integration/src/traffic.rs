//! Traffic between two ends of a network: a server that sends back what it receives, and a client that checks it. Tests use both
//! on the host, and by `lazaret-probe` in containers.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

/// How long either end waits for the other.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How often a datagram is sent before it counts as lost for good.
const SENDINGS: usize = 5;

/// Sends back what comes to a port, by TCP and UDP, by IPv4 and IPv6, for as long as the program runs. A TCP connection that its
/// client has half closed is closed when all of it has gone back.
///
/// # Errors
/// When the port is taken.
pub fn serve(port: u16) -> io::Result<u16> {
    let tcp = TcpListener::bind(("::", port))?;
    let port = tcp.local_addr()?.port();
    let udp = UdpSocket::bind(("::", port))?;
    thread::spawn(move || {
        let mut datagram = vec![0; 65_536];
        while let Ok((length, from)) = udp.recv_from(&mut datagram) {
            let _ = udp.send_to(&datagram[..length], from);
        }
    });
    thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            thread::spawn(move || {
                let _ = io::copy(&mut &stream, &mut &stream);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    Ok(port)
}

/// Sends `length` bytes over a TCP connection, closes that direction, and checks that they come back whole, and then the end.
///
/// # Errors
/// What went wrong.
pub fn tcp(server: SocketAddr, length: usize) -> Result<(), String> {
    let failed = |what: &str, error: io::Error| format!("{server}: {what}: {error}");
    let mut stream =
        TcpStream::connect_timeout(&server, TIMEOUT).map_err(|error| failed("connect", error))?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(|error| failed("a timeout", error))?;
    let mut writing = stream.try_clone().map_err(|error| failed("clone", error))?;
    let writer = thread::spawn(move || {
        for chunk in Pattern::of(length) {
            writing.write_all(&chunk)?;
        }
        writing.shutdown(Shutdown::Write)
    });
    let mut received = 0;
    for chunk in Pattern::of(length) {
        let mut back = vec![0; chunk.len()];
        stream.read_exact(&mut back).map_err(|error| failed(&format!("after {received} bytes"), error))?;
        if back != chunk {
            return Err(format!("{server}: other bytes came back than were sent, after {received}"));
        }
        received += chunk.len();
    }
    writer.join().expect("the writer does not panic").map_err(|error| failed("write", error))?;
    match stream.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(format!("{server}: more came back than was sent")),
        Err(error) => Err(failed("its end", error)),
    }
}

/// Sends a datagram of `length` bytes, and checks that it comes back.
///
/// # Errors
/// What went wrong.
pub fn udp(server: SocketAddr, length: usize) -> Result<(), String> {
    let failed = |error: io::Error| format!("{server}: UDP, {length} bytes: {error}");
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).map_err(failed)?;
    socket.set_read_timeout(Some(TIMEOUT / 20)).map_err(failed)?;
    socket.connect(server).map_err(failed)?;
    let sent: Vec<u8> = Pattern::of(length).flatten().collect();
    let mut back = vec![0; 65_536];
    // A network may lose a datagram.
    let mut last = Err(String::new());
    for _ in 0..SENDINGS {
        last = socket.send(&sent).and_then(|_| socket.recv(&mut back)).map_err(failed);
        match last {
            Ok(received) if back[..received] == sent => return Ok(()),
            Ok(received) => return Err(format!("{server}: {received} other bytes for {length}")),
            Err(_) => {}
        }
    }
    last.map(drop)
}

/// Bytes that do not repeat soon, in pieces of 64 KiB at most.
struct Pattern {
    left: usize,
    state: u32,
}

impl Pattern {
    fn of(length: usize) -> Self {
        Self { left: length, state: 1 }
    }
}

impl Iterator for Pattern {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let length = self.left.min(64 << 10);
        self.left -= length;
        // A linear congruential generator, with the constants of Numerical Recipes, a word at a time.
        let word = |state: &mut u32| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_le_bytes()
        };
        let mut chunk: Vec<u8> =
            std::iter::repeat_with(|| word(&mut self.state)).take(length.div_ceil(4)).flatten().collect();
        chunk.truncate(length);
        (length > 0).then_some(chunk)
    }
}
