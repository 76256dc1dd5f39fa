use super::*;
use tokio::sync::oneshot;

#[tokio::test]
async fn work_goes_on_when_its_client_goes_away() {
    let (go, gone) = oneshot::channel::<()>();
    let (done, finished) = oneshot::channel();
    let mut answer = Box::pin(run_to_completion(async move {
        gone.await.unwrap();
        done.send(()).unwrap();
        Ok(())
    }));
    assert!(futures::poll!(&mut answer).is_pending());
    drop(answer);
    go.send(()).unwrap();
    finished.await.unwrap();
}

#[tokio::test]
async fn an_error_is_a_status_with_its_code_and_line() {
    let answer =
        run_to_completion::<()>(async { Err(RpcError::AlreadyExists("c1 exists".to_owned())) }).await;
    let Err(ttrpc::Error::RpcStatus(status)) = answer else { panic!("{answer:?}") };
    assert_eq!((status.code(), status.message()), (ttrpc::Code::ALREADY_EXISTS, "c1 exists"));
}
