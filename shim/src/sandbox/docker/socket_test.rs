use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// Runs `test` on a socket; it gets the guest's end of every connection. Returns what is left of the test.
fn on_socket<T>(test: impl AsyncFnOnce(PathBuf, mpsc::UnboundedReceiver<UnixStream>) -> T) -> T {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("docker.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let run = async {
        let (to_guest, guest) = mpsc::unbounded_channel();
        let connect = move || {
            let to_guest = to_guest.clone();
            async move {
                let (ours, theirs) = UnixStream::pair().unwrap();
                to_guest.send(theirs).map_err(|_| Error::Internal("the VM has ended".into()))?;
                Ok(ours)
            }
        };
        let listener = listen_at(&path).unwrap();
        tokio::select! {
            () = serve(listener, connect) => unreachable!(),
            result = test(path, guest) => result,
        }
    };
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), run).await.unwrap() })
}

async fn read_all(stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut all).await;
    all
}

#[test]
fn the_socket_is_roots_alone() {
    on_socket(async |path: PathBuf, _| {
        assert_eq!(fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    });
}

#[test]
fn the_answer_comes_after_the_client_has_said_all() {
    on_socket(async |path: PathBuf, mut connections: mpsc::UnboundedReceiver<UnixStream>| {
        let mut client = UnixStream::connect(&path).await.unwrap();
        let mut guest = connections.recv().await.unwrap();
        let question = vec![7; 1 << 20];
        let (asked, heard) = tokio::join!(
            async {
                client.write_all(&question).await.unwrap();
                client.shutdown().await.unwrap();
            },
            read_all(&mut guest)
        );
        let () = asked;
        assert_eq!(heard, question);
        guest.write_all(b"answer").await.unwrap();
        drop(guest);
        assert_eq!(read_all(&mut client).await, b"answer");
    });
}

#[test]
fn the_guests_last_word_is_not_the_clients() {
    on_socket(async |path: PathBuf, mut connections: mpsc::UnboundedReceiver<UnixStream>| {
        let mut client = UnixStream::connect(&path).await.unwrap();
        let mut guest = connections.recv().await.unwrap();
        guest.shutdown().await.unwrap();
        assert_eq!(read_all(&mut client).await, b"");
        client.write_all(b"more").await.unwrap();
        drop(client);
        assert_eq!(read_all(&mut guest).await, b"more");
    });
}

#[test]
fn a_guest_that_refuses_or_is_gone_is_an_end_of_file() {
    on_socket(async |path: PathBuf, mut connections: mpsc::UnboundedReceiver<UnixStream>| {
        let mut client = UnixStream::connect(&path).await.unwrap();
        drop(connections.recv().await.unwrap());
        assert_eq!(read_all(&mut client).await, b"");
        drop(connections);
        let mut client = UnixStream::connect(&path).await.unwrap();
        assert_eq!(read_all(&mut client).await, b"");
    });
}

#[test]
fn with_the_sandbox_goes_every_connection() {
    let (path, mut client, _guest) =
        on_socket(async |path: PathBuf, mut connections: mpsc::UnboundedReceiver<UnixStream>| {
            let client = UnixStream::connect(&path).await.unwrap().into_std().unwrap();
            let guest = connections.recv().await.unwrap().into_std().unwrap();
            (path, client, guest)
        });
    client.set_nonblocking(false).unwrap();
    assert_eq!(io::Read::read(&mut client, &mut [0]).unwrap(), 0);
    assert!(std::os::unix::net::UnixStream::connect(path).is_err());
}

#[test]
fn more_clients_than_it_serves_are_let_go() {
    on_socket(async |path: PathBuf, mut connections: mpsc::UnboundedReceiver<UnixStream>| {
        let mut clients = Vec::new();
        let mut guests = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            clients.push(UnixStream::connect(&path).await.unwrap());
            guests.push(connections.recv().await.unwrap());
        }
        let mut further = UnixStream::connect(&path).await.unwrap();
        assert_eq!(read_all(&mut further).await, b"");
        drop((clients.remove(0), guests.remove(0)));
        // The relay's end is seen a moment after the connection's.
        let served = async {
            loop {
                let client = UnixStream::connect(&path).await.unwrap();
                if let Ok(guest) = tokio::time::timeout(Duration::from_millis(50), connections.recv()).await {
                    return (client, guest.unwrap());
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), served).await.unwrap();
    });
}

#[test]
fn a_path_that_no_socket_can_have_is_refused_with_its_limit() {
    check("export", Path::new(&"/".repeat(MAX_PATH))).unwrap();
    let refused = check("export", Path::new(&"/".repeat(MAX_PATH + 1))).unwrap_err();
    let Error::InvalidArgument(line) = refused else { panic!("{refused}") };
    assert!(line.starts_with("annotation export: ") && line.contains("at most 107"), "{line}");
    let directory = tempfile::tempdir().unwrap();
    assert!(UnixAddr::new(&directory.path().join("x".repeat(MAX_PATH))).is_err());
}
