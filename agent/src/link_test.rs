use super::*;
use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

fn link() -> (Link<tokio::io::DuplexStream>, tokio::io::DuplexStream, Arc<Power>) {
    let (ours, theirs) = duplex(64);
    let power = Arc::new(Power::default());
    (Link::new(ours, power.clone()), theirs, power)
}

#[tokio::test]
async fn the_hosts_hanging_up_is_the_end() {
    let (mut link, host, power) = link();
    assert!(power.ended().now_or_never().is_none());
    drop(host);
    assert_eq!(link.read(&mut [0; 8]).await.unwrap(), 0);
    power.ended().await;
}

#[tokio::test]
async fn answers_go_out_before_the_end_that_shutdown_asked_for() {
    let (mut link, _host, power) = link();
    link.write_all(b"an answer").await.unwrap();
    link.flush().await.unwrap();
    assert!(power.ended().now_or_never().is_none());
    power.shut_down_after_answer();
    link.write_all(b"the last").await.unwrap();
    assert!(power.ended().now_or_never().is_none());
    link.flush().await.unwrap();
    power.ended().await;
}
