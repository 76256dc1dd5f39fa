use super::*;
use crate::container::test_support::{no_containers, processes};
use lazaret_agent_api::agent::StreamHeader;
use lazaret_agent_api::encode_header;
use tokio::io::duplex;

#[tokio::test]
async fn a_stream_for_nobody_is_told_so_and_closed() {
    let _alone = processes().await;
    let containers = no_containers();
    let (mut host, guest) = duplex(4096);
    let header = StreamHeader { container_id: "c1".into(), ..Default::default() };
    host.write_all(&encode_header(&header).unwrap()).await.unwrap();
    serve(guest, &containers).await.unwrap();
    let mut answer = Vec::new();
    host.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, [Ack::NotFound as u8]);
}

#[tokio::test]
async fn what_is_no_header_is_cut_off_without_an_answer() {
    let _alone = processes().await;
    let containers = no_containers();
    let too_long = u16::try_from(MAX_HEADER + 1).unwrap().to_be_bytes();
    for bytes in [&too_long[..], &[0, 3, 0xff, 0xff, 0xff], &[0, 9, 1]] {
        let (mut host, guest) = duplex(4096);
        host.write_all(bytes).await.unwrap();
        host.shutdown().await.unwrap();
        assert!(serve(guest, &containers).await.is_err(), "{bytes:?}");
        let mut answer = Vec::new();
        host.read_to_end(&mut answer).await.unwrap();
        assert!(answer.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_sends_no_header_is_not_waited_for() {
    let _alone = processes().await;
    let containers = no_containers();
    let (_host, guest) = duplex(4096);
    let error = serve(guest, &containers).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}
