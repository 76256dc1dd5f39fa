use super::*;
use std::sync::Arc;

/// A disk without a file, and where its capacity is.
fn empty() -> (tempfile::TempDir, Arc<DataDisk>) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("size"), "0\n").unwrap();
    let disk = Arc::new(DataDisk::with_size_at(dir.path().join("size")));
    (dir, disk)
}

fn asks(disk: &Arc<DataDisk>) -> tokio::task::JoinHandle<Result<(), DiskError>> {
    let disk = disk.clone();
    tokio::spawn(async move { disk.ready().await })
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_has_its_file_is_not_asked_for() {
    let (dir, disk) = empty();
    fs::write(dir.path().join("size"), "41943040\n").unwrap();
    disk.ready().await.unwrap();
    assert!(timeout(Duration::from_secs(1), disk.wanted()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_first_start_asks_and_waits_for_the_capacity() {
    let (dir, disk) = empty();
    assert!(timeout(Duration::from_secs(1), disk.wanted()).await.is_err(), "before that nobody asks");
    let ready = asks(&disk);
    disk.wanted().await;
    disk.wanted().await;
    disk.answer(String::new()).unwrap();
    sleep(Duration::from_secs(1)).await;
    assert!(!ready.is_finished(), "the kernel has not read the capacity");
    fs::write(dir.path().join("size"), "8\n").unwrap();
    ready.await.unwrap().unwrap();
    assert!(timeout(Duration::from_secs(1), disk.wanted()).await.is_err(), "it is asked for once");
    disk.ready().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_the_reason_and_the_next_start_asks_again() {
    let (dir, disk) = empty();
    for why in ["the budget", "the disk is full"] {
        let ready = asks(&disk);
        disk.wanted().await;
        disk.answer(why.to_owned()).unwrap();
        assert_eq!(ready.await.unwrap().unwrap_err().to_string(), why);
        assert!(timeout(Duration::from_secs(1), disk.wanted()).await.is_err(), "nobody waits now");
    }
    let ready = asks(&disk);
    disk.wanted().await;
    fs::write(dir.path().join("size"), "8\n").unwrap();
    disk.answer(String::new()).unwrap();
    ready.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_silent_or_lies_is_not_waited_for_for_ever() {
    let (_dir, disk) = empty();
    assert_eq!(disk.ready().await.unwrap_err().to_string(), "the host does not answer within 30 s");
    let ready = asks(&disk);
    disk.wanted().await;
    disk.answer(String::new()).unwrap();
    let error = ready.await.unwrap().unwrap_err().to_string();
    assert_eq!(error, "the host has made it, but its capacity is still 0 after 10 s");
}

#[tokio::test]
async fn an_answer_that_nobody_waits_for_is_refused() {
    let (_dir, disk) = empty();
    assert!(matches!(disk.answer(String::new()), Err(RpcError::FailedPrecondition(_))));
    let ready = asks(&disk);
    disk.wanted().await;
    disk.answer("no".to_owned()).unwrap();
    assert!(
        matches!(disk.answer(String::new()), Err(RpcError::FailedPrecondition(_))),
        "the first one counts"
    );
    assert_eq!(ready.await.unwrap().unwrap_err().to_string(), "no");
}

#[tokio::test]
async fn a_guest_without_the_disk_says_so() {
    let disk = DataDisk::with_size_at("/nonexistent/size".into());
    let error = disk.ready().await.unwrap_err().to_string();
    assert!(error.starts_with("cannot read /nonexistent/size: "), "{error}");
}
