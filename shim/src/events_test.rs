use super::*;
use async_trait::async_trait;
use containerd_shim_protos::api::Empty;
use containerd_shim_protos::shim_async::{Events, create_events};
use protobuf::Message;
use std::sync::{Arc, Mutex};
use ttrpc::r#async::{Server, TtrpcContext};

/// A containerd that only takes events.
#[derive(Clone, Default)]
struct Containerd(Arc<Mutex<Vec<(String, String)>>>, Arc<tokio::sync::Notify>);

#[async_trait]
impl Events for Containerd {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.into_option().unwrap();
        let event = envelope.event.into_option().unwrap();
        let exit = event::TaskExit::parse_from_bytes(&event.value).unwrap();
        assert_eq!(
            (event.type_url.as_str(), envelope.namespace.as_str()),
            ("containerd.events.TaskExit", "default")
        );
        self.0.lock().unwrap().push((envelope.topic, exit.id));
        self.1.notify_one();
        Ok(Empty::default())
    }
}

impl Containerd {
    async fn serve(&self, address: &str) -> Server {
        let mut server =
            Server::new().bind(address).unwrap().register_service(create_events(Arc::new(self.clone())));
        server.start().await.unwrap();
        server
    }

    fn ids(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(_, id)| id.clone()).collect()
    }

    async fn seen(&self, count: usize) {
        let wait = async {
            while self.0.lock().unwrap().len() < count {
                self.1.notified().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("events arrive");
    }
}

fn exit(id: usize) -> Event {
    Event::Exit(event::TaskExit { container_id: "c".into(), id: id.to_string(), ..Default::default() })
}

fn address(dir: &tempfile::TempDir) -> String {
    format!("unix://{}", dir.path().join("c.ttrpc").display())
}

#[tokio::test]
async fn events_arrive_in_the_order_they_were_published() {
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::default();
    let _server = containerd.serve(&address(&dir)).await;
    let (publisher, sender) = start(dir.path().join("c.ttrpc").display().to_string(), "default".into());
    (0..200).for_each(|id| publisher.publish(&exit(id)));
    sender.finish(Duration::from_secs(20)).await;
    assert_eq!(containerd.ids(), (0..200).map(|id| id.to_string()).collect::<Vec<_>>());
    assert_eq!(containerd.0.lock().unwrap()[0].0, "/tasks/exit");
}

#[tokio::test]
async fn events_wait_for_a_containerd_that_is_down_and_survive_its_restart() {
    let dir = tempfile::tempdir().unwrap();
    let containerd = Containerd::default();
    let (publisher, sender) = start(address(&dir), "default".into());
    publisher.publish(&exit(0));
    publisher.publish(&exit(1));
    let mut server = containerd.serve(&address(&dir)).await;
    containerd.seen(2).await;
    server.shutdown().await.unwrap();
    drop(server);
    std::fs::remove_file(dir.path().join("c.ttrpc")).unwrap();
    publisher.publish(&exit(2));
    publisher.publish(&exit(3));
    let _server = containerd.serve(&address(&dir)).await;
    sender.finish(Duration::from_secs(30)).await;
    let mut ids = containerd.ids();
    ids.dedup();
    assert_eq!(ids, ["0", "1", "2", "3"]);
}

#[tokio::test]
async fn a_full_queue_drops_the_newest_and_never_waits() {
    let dir = tempfile::tempdir().unwrap();
    let (publisher, sender) = start(address(&dir), "default".into());
    (0..MAX_QUEUED_EVENTS * 2).for_each(|id| publisher.publish(&exit(id)));
    sender.finish(Duration::from_millis(50)).await;
}
