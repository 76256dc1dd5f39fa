use super::*;
use crate::error::Error;

#[test]
fn an_address_is_a_path_a_fifo_or_refused() {
    assert_eq!(fifo::path("").unwrap(), None);
    assert_eq!(fifo::path("/run/f").unwrap(), Some("/run/f".into()));
    assert_eq!(fifo::path("fifo:///run/f").unwrap(), Some("/run/f".into()));
    for other in ["binary:///bin/log?a=b", "file:///log", "ttrpc+unix:///s?streaming_id=1"] {
        assert!(matches!(fifo::path(other).map_err(Error::from), Err(Error::Unimplemented(_))), "{other}");
    }
}

#[test]
fn a_terminal_has_no_stderr() {
    let stdio = Stdio { stdout: "/o".into(), stderr: "/e".into(), terminal: true, ..Default::default() };
    let agents = stdio.for_agent().unwrap();
    assert_eq!((agents.stdin, agents.stdout, agents.stderr), (false, true, false));
}

#[tokio::test]
async fn a_missing_pipe_is_told_with_its_path() {
    let stdio = Stdio { stdout: "/nonexistent/pipe".into(), ..Default::default() };
    let Err(Error::InvalidArgument(line)) = ProcessIo::open(&stdio).map_err(Error::from) else {
        panic!("opened")
    };
    assert!(line.contains("/nonexistent/pipe"), "{line}");
}
