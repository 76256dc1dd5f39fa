use super::*;

#[test]
fn a_daemon_that_answers_is_told_from_one_that_does_not() {
    assert_eq!(judge("HTTP/1.0 200 OK\r\nApi-Version: 1.45\r\n\r\nOK"), Ok(()));
    assert_eq!(judge(&refusal(Status::Unavailable, "gone")), Err("the sandbox's Docker daemon: gone".into()));
    assert_eq!(judge("HTTP/1.0 500 Oops\r\n\r\nno json"), Err("HTTP/1.0 500 Oops".into()));
    assert_eq!(judge(""), Err("the sandbox's Docker daemon hangs up".into()));
}

#[tokio::test]
async fn a_client_reads_why_it_is_refused() {
    let (ours, mut client) = UnixStream::pair().unwrap();
    let refused = tokio::spawn(async move { refuse(ours, Status::Unavailable, "it is \"gone\"").await });
    // More than a socket holds, all of which is sent before the answer is looked at.
    client.write_all(b"POST /images/load HTTP/1.1\r\n\r\n").await.unwrap();
    client.write_all(&vec![0; 4 << 20]).await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    refused.await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains(&format!("Content-Length: {}", body.len())));
    assert_eq!(body, r#"{"message":"the sandbox's Docker daemon: it is \"gone\""}"#);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_let_go() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    assert_eq!(refuse(ours, Status::Unavailable, "gone").await.unwrap_err().kind(), ErrorKind::TimedOut);
}
