use super::*;
use lazaret_agent_api::agent::stream_header::Kind;
use tokio::io::AsyncWriteExt;

const OWNER: Owner<'_> = Owner { id: "c1", namespace: "ns1" };

#[test]
fn a_terminal_has_no_stderr() {
    let stdio = Stdio { stdout: "/o".into(), stderr: "/e".into(), terminal: true, ..Default::default() };
    let agents = stdio.for_agent().unwrap();
    assert_eq!((agents.stdin, agents.stdout, agents.stderr), (false, true, false));
}

#[tokio::test]
async fn a_missing_pipe_is_told_with_its_path() {
    let stdio = Stdio { stdout: "/nonexistent/pipe".into(), ..Default::default() };
    let Err(Error::InvalidArgument(line)) = ProcessIo::open(&stdio, OWNER).await.map_err(Error::from) else {
        panic!("opened")
    };
    assert!(line.contains("/nonexistent/pipe"), "{line}");
}

#[test]
fn a_driver_takes_both_outputs_and_no_input() {
    let of = |stdin: &str, stdout: &str, stderr: &str| {
        let stdio =
            Stdio { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into(), terminal: false };
        stdio.for_agent().map_err(Error::from)
    };
    assert!(of("", "binary:///d", "binary:///d").unwrap().stderr);
    assert!(!of("", "binary:///d", "").unwrap().stderr);
    for (stdout, stderr) in [("binary:///d", "binary:///e"), ("binary:///d", "/e"), ("/o", "binary:///d")] {
        assert!(matches!(of("", stdout, stderr), Err(Error::InvalidArgument(_))), "{stdout} {stderr}");
    }
    for stdin in ["binary:///d", "file:///f"] {
        assert!(matches!(of(stdin, "", ""), Err(Error::Unimplemented(_))), "{stdin}");
    }
}

#[tokio::test]
async fn a_file_is_appended_to_by_both_outputs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, "before|").unwrap();
    let address = format!("file://{}", path.display());
    let stdio = Stdio { stdout: address.clone(), stderr: address, ..Default::default() };
    let mut io = ProcessIo::open(&stdio, OWNER).await.unwrap();
    let connect = async |kind: Kind| {
        let (ours, mut guests) = UnixStream::pair().unwrap();
        guests.write_all(format!("{kind:?}|").as_bytes()).await.unwrap();
        Ok(ours)
    };
    io.attach(connect).await.unwrap();
    io.outputs_open().wait_for(|open| *open == 0).await.unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text == "before|STDOUT|STDERR|" || text == "before|STDERR|STDOUT|", "{text}");
}
