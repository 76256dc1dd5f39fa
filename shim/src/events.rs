//! Events for containerd: one ordered queue, one sender.
//!
//! ```text
//!   RPC handlers ──publish (never waits)──► queue (bounded) ──► sender task ──ttrpc──► containerd
//! ```
//!
//! The sender has a connection of its own, makes it when the first event is there, and makes it anew, with a growing
//! pause, for as long as containerd is away: an event may arrive twice, but never out of order.

use containerd_shim_protos::events::task as event;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use protobuf::well_known_types::{any::Any, timestamp::Timestamp};
use protobuf::{MessageField, MessageFull};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::task::JoinHandle;

/// Events kept while containerd is away, as many as Go's shims keep.
const MAX_QUEUED_EVENTS: usize = 2048;
/// How long containerd may take for one event.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The pauses between attempts grow from the first to the second.
const RETRY_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// An event of a task.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    Create(event::TaskCreate),
    Start(event::TaskStart),
    ExecAdded(event::TaskExecAdded),
    ExecStarted(event::TaskExecStarted),
    Oom(event::TaskOOM),
    Paused(event::TaskPaused),
    Resumed(event::TaskResumed),
    Exit(event::TaskExit),
    Delete(event::TaskDelete),
}

/// Where events are published.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    namespace: String,
    queue: mpsc::Sender<Envelope>,
}

/// The task that sends them.
#[derive(Debug)]
pub(crate) struct Sender {
    task: JoinHandle<()>,
    last: Arc<Notify>,
}

/// Starts the sender of events to `address`, containerd's ttrpc socket. An empty address means that nobody listens.
#[must_use]
pub(crate) fn start(address: String, namespace: String) -> (Publisher, Sender) {
    let (queue, events) = mpsc::channel(MAX_QUEUED_EVENTS);
    let last = Arc::new(Notify::new());
    let task = tokio::spawn(send_all(address, events, last.clone()));
    (Publisher { namespace, queue }, Sender { task, last })
}

#[cfg(test)]
impl Publisher {
    /// A publisher whose events come out here.
    pub(crate) fn capture() -> (Self, mpsc::Receiver<Envelope>) {
        let (queue, events) = mpsc::channel(MAX_QUEUED_EVENTS);
        (Self { namespace: "default".into(), queue }, events)
    }
}

impl Publisher {
    /// containerd's namespace.
    #[must_use]
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Queues an event; the order of the calls is the order of arrival. Never waits: when the queue is full, the event
    /// is dropped with a line in the log.
    pub(crate) fn publish(&self, event: &Event) {
        let (topic, body) = encode(event);
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp(SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: topic.into(),
            event: MessageField::some(body),
            ..Default::default()
        };
        match self.queue.try_send(envelope) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                log::error!("event {topic} dropped: containerd has not taken {MAX_QUEUED_EVENTS} events")
            }
            Err(TrySendError::Closed(_)) => {
                log::error!("event {topic} dropped: the sender of events has ended")
            }
        }
    }
}

impl Sender {
    /// Takes no more events and waits until those that are queued are sent. What is not taken within `limit` is lost.
    pub(crate) async fn finish(mut self, limit: Duration) {
        self.last.notify_one();
        if tokio::time::timeout(limit, &mut self.task).await.is_err() {
            self.task.abort();
            log::warn!("containerd did not take all events within {limit:?}; the rest is dropped");
        }
    }
}

async fn send_all(address: String, mut events: mpsc::Receiver<Envelope>, last: Arc<Notify>) {
    let address = if address.starts_with("unix://") { address } else { format!("unix://{address}") };
    let mut connection: Option<EventsClient> = None;
    loop {
        let next = tokio::select! {
            biased;
            event = events.recv() => event,
            () = last.notified() => {
                events.close();
                continue;
            }
        };
        let Some(envelope) = next else { return };
        let request = ForwardRequest { envelope: MessageField::some(envelope), ..Default::default() };
        if address == "unix://" {
            continue;
        }
        let mut pause = RETRY_BACKOFF.0;
        loop {
            let error = match attempt(&address, &mut connection, &request).await {
                Ok(()) => break,
                // containerd has it and does not want it: the same event again would fare no better.
                Err(ttrpc::Error::RpcStatus(status)) if status.code() != ttrpc::Code::DEADLINE_EXCEEDED => {
                    log::warn!("containerd refused event {}: {}", request.envelope.topic, status.message);
                    break;
                }
                Err(error) => error,
            };
            log::debug!("event {} is not delivered yet: {error}", request.envelope.topic);
            connection = None;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_BACKOFF.1);
        }
    }
}

async fn attempt(
    address: &str,
    connection: &mut Option<EventsClient>,
    request: &ForwardRequest,
) -> ttrpc::Result<()> {
    let client = match connection {
        Some(client) => client,
        None => connection.insert(EventsClient::new(Client::connect(address).await?)),
    };
    let call = client.forward(ttrpc::context::with_duration(CALL_TIMEOUT), request);
    // The outer bound also covers a connection that takes no bytes.
    match tokio::time::timeout(CALL_TIMEOUT * 2, call).await {
        Ok(result) => result.map(drop),
        Err(_) => Err(ttrpc::Error::Others("no answer".into())),
    }
}

fn encode(event: &Event) -> (&'static str, Any) {
    match event {
        Event::Create(body) => (topics::TASK_CREATE_EVENT_TOPIC, any(body)),
        Event::Start(body) => (topics::TASK_START_EVENT_TOPIC, any(body)),
        Event::ExecAdded(body) => (topics::TASK_EXEC_ADDED_EVENT_TOPIC, any(body)),
        Event::ExecStarted(body) => (topics::TASK_EXEC_STARTED_EVENT_TOPIC, any(body)),
        Event::Oom(body) => (topics::TASK_OOM_EVENT_TOPIC, any(body)),
        Event::Paused(body) => (topics::TASK_PAUSED_EVENT_TOPIC, any(body)),
        Event::Resumed(body) => (topics::TASK_RESUMED_EVENT_TOPIC, any(body)),
        Event::Exit(body) => (topics::TASK_EXIT_EVENT_TOPIC, any(body)),
        Event::Delete(body) => (topics::TASK_DELETE_EVENT_TOPIC, any(body)),
    }
}

/// containerd's type URLs are bare names, without the host that protobuf's own packing puts before them.
fn any<M: MessageFull>(body: &M) -> Any {
    Any {
        type_url: M::descriptor().full_name().into(),
        value: body.write_to_bytes().unwrap_or_default(),
        ..Default::default()
    }
}

/// A time as protobuf has it.
#[must_use]
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
        ..Default::default()
    }
}

#[cfg(test)]
#[path = "events_test.rs"]
mod tests;
