//! The largest message that can be written can be read, whatever the server's `max_payload`.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use emberline_function::nats::connection::{Connection, subject};
use emberline_function::nats::jetstream;
use emberline_function::platform::Host;
use emberline_protocol::size::MAX_MESSAGE;
use emberline_protocol::subject::EVENTS_STREAM;
use watermelon_proto::MessageBase;
use watermelon_proto::headers::HeaderMap;

use crate::server::NatsServer;
use crate::tokio_platform::{TokioPlatform, run};

const LOG: &str = "emberline.events.largest";
const QUESTION: &str = "emberline.tokens.largest";
/// Nothing here takes this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Stores a message of `bytes` bytes, and reads it back as records and event logs are read.
async fn store_and_read(connection: &mut Connection, bytes: usize) -> Vec<Bytes> {
    let inbox = connection.new_inbox().unwrap();
    connection.request(subject(LOG.into()).unwrap(), Some(inbox.clone()), vec![b'x'; bytes]);
    let stored = std::future::poll_fn(|cx| connection.poll_message(cx)).await.unwrap();
    assert_eq!(stored.base.subject, inbox);
    jetstream::read_ack(&stored).unwrap();
    connection.direct_get(EVENTS_STREAM, jetstream::next_by_subject(LOG, 1)).await.unwrap().into_payloads()
}

/// Asks a worker that answers with `bytes` bytes; how many arrived.
async fn ask(connection: &mut Connection, worker: &mut Connection, bytes: usize) -> usize {
    worker.new_subscription(subject(QUESTION.into()).unwrap());
    // Whatever is answered after it says that the server has the subscription.
    let nothing = jetstream::next_by_subject("emberline.events.nothing", 1);
    worker.direct_get(EVENTS_STREAM, nothing).await.unwrap();
    let answering = async {
        let question = std::future::poll_fn(|cx| worker.poll_message(cx)).await.unwrap();
        worker.request(question.base.reply_subject.unwrap(), None, vec![b'x'; bytes]);
        worker.flush().await.unwrap();
    };
    let question = MessageBase {
        subject: subject(QUESTION.into()).unwrap(),
        reply_subject: None,
        headers: HeaderMap::new(),
        payload: Bytes::from_static(b"?"),
    };
    let asking = connection.ask(question, PATIENCE);
    let (answer, ()) = tokio::join!(asking, answering);
    answer.unwrap().base.payload.len()
}

fn largest(settings: &str, wanted: usize) {
    run(async {
        let host: Host = TokioPlatform::host(BTreeMap::new());
        let server = NatsServer::start_with(&host, settings).await;
        let mut connection = server.bus(&host).connect().await.unwrap();
        let mut worker = server.bus(&host).connect().await.unwrap();
        let bytes = connection.max_payload();
        assert_eq!(bytes, wanted);
        let stored = store_and_read(&mut connection, bytes).await;
        assert_eq!(stored.iter().map(Bytes::len).collect::<Vec<_>>(), [bytes]);
        assert_eq!(ask(&mut connection, &mut worker, bytes).await, bytes);
    });
}

#[test]
fn the_largest_message_that_the_server_takes_is_read() {
    largest("", 1 << 20);
}

#[test]
fn the_largest_message_of_our_configuration_is_read() {
    largest("max_payload: 8MB", MAX_MESSAGE);
}

#[test]
fn no_message_is_larger_than_ours_however_much_the_server_takes() {
    largest("max_payload: 64MB", MAX_MESSAGE);
}
