//! The little HTTP that the agent speaks: it asks the daemon whether it answers, and tells a client why there is no daemon, or
//! none for it.

use crate::paths::DOCKERD_SOCKET;
use std::io::{self, ErrorKind};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// How long a client may take to send its request, and again to read the answer that it is refused.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(2);
/// The most of an answer that is read.
const MAX_ANSWER: u64 = 16 << 10;

/// Waits for an answer of the daemon, which starts it.
///
/// # Errors
/// One line: why there is no daemon.
pub(crate) async fn ping() -> Result<(), String> {
    let ask = async {
        let mut stream = UnixStream::connect(DOCKERD_SOCKET).await?;
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

/// Of an answer of the agent's. The Docker CLI takes 500 for the last word on its `HEAD /_ping`, whose answer has no room for a
/// reason; after another it asks on, and prints the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Forbidden,
    Unavailable,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Self::Forbidden => "403 Forbidden",
            Self::Unavailable => "503 Service Unavailable",
        }
    }
}

/// Answers a client as the Docker API answers when it cannot do something. Waits for the client's question, so that it reads the
/// answer.
///
/// # Errors
/// The kernel's; [`ErrorKind::TimedOut`] when the client asks nothing.
pub(super) async fn refuse(mut stream: UnixStream, status: Status, why: &str) -> io::Result<()> {
    let mut question = [0; 4096];
    let question = stream.read(&mut question);
    match tokio::time::timeout(CLIENT_TIMEOUT, question).await {
        Ok(Err(error)) => return Err(error),
        Ok(Ok(_)) => {}
        Err(_) => return Err(ErrorKind::TimedOut.into()),
    }
    stream.write_all(refusal(status, why).as_bytes()).await?;
    stream.shutdown().await?;
    // A client that is still speaking, as with an image to be loaded, reads no answer from a socket that is closed under it.
    let rest = async { tokio::io::copy(&mut stream, &mut tokio::io::sink()).await };
    tokio::time::timeout(CLIENT_TIMEOUT, rest).await.map_err(|_| ErrorKind::TimedOut)?.map(drop)
}

fn refusal(status: Status, why: &str) -> String {
    let message = serde_json::json!({ "message": format!("the sandbox's Docker daemon: {why}") }).to_string();
    format!(
        "HTTP/1.1 {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{message}",
        status.line(),
        message.len()
    )
}

#[cfg(test)]
#[path = "http_test.rs"]
mod tests;
