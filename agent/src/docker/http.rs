//! The two words of HTTP that are spoken about the daemon: whether it answers, and why it does not.

use lazaret_agent_api::DOCKER_SOCKET;
use std::io::{self, ErrorKind};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// How long a client may take to say what it wants before it is told that there is no daemon.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most of an answer that is read.
const MAX_ANSWER: u64 = 16 << 10;

/// Waits for an answer of the daemon, which starts it.
///
/// # Errors
/// One line: why there is no daemon.
pub(crate) async fn ping() -> Result<(), String> {
    let ask = async {
        let mut stream = UnixStream::connect(DOCKER_SOCKET).await?;
        // With 1.0 the answer ends with the connection.
        stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    match ask.await {
        Ok(answer) => judge(&String::from_utf8_lossy(&answer)),
        Err(error) => Err(format!("the sandbox's Docker daemon does not answer: {error}")),
    }
}

fn judge(answer: &str) -> Result<(), String> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    if head.split(' ').nth(1) == Some("200") {
        return Ok(());
    }
    let message = serde_json::from_str::<serde_json::Value>(body).ok();
    let message = message.as_ref().and_then(|body| body.get("message")?.as_str());
    let line = message.unwrap_or(head).lines().next().unwrap_or_default();
    Err(if line.is_empty() { "the sandbox's Docker daemon hangs up".to_owned() } else { line.to_owned() })
}

/// Answers a client as the Docker API answers when something is wrong with the daemon. The status is 503: one that is 500
/// the Docker CLI takes for the last word on its `HEAD /_ping`, whose answer has no room for a reason. Waits for the client's question,
/// so that it reads the answer.
///
/// # Errors
/// The kernel's; [`ErrorKind::TimedOut`] when the client asks nothing.
pub(super) async fn refuse(stream: std::os::unix::net::UnixStream, why: &str) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    let mut question = [0; 4096];
    let question = stream.read(&mut question);
    match tokio::time::timeout(PATIENCE, question).await {
        Ok(Err(error)) => return Err(error),
        Ok(Ok(_)) => {}
        Err(_) => return Err(ErrorKind::TimedOut.into()),
    }
    stream.write_all(refusal(why).as_bytes()).await?;
    stream.shutdown().await?;
    // A client that is still speaking, as with an image to be loaded, reads no answer from a socket that is closed under it.
    let rest = async { tokio::io::copy(&mut stream, &mut tokio::io::sink()).await };
    tokio::time::timeout(PATIENCE, rest).await.map_err(|_| ErrorKind::TimedOut)?.map(drop)
}

fn refusal(why: &str) -> String {
    let message = serde_json::json!({ "message": format!("the sandbox's Docker daemon: {why}") }).to_string();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{message}",
        message.len()
    )
}

#[cfg(test)]
#[path = "http_test.rs"]
mod tests;
