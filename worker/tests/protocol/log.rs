//! What is in a job's event log when things are lost on the way.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::stream::DirectGetErrorKind;
use emberline_protocol::control::Control;
use emberline_protocol::event::EventKind;
use emberline_protocol::subject::{self, JobId};
use emberline_test_kit::events::{Event, events_of};
use emberline_test_kit::nats::NatsServer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::support::{Relay, Worker, job, text_of, wait_for_empty_queue, within};

/// A bad line between a worker and nats-server.
struct Line {
    address: SocketAddr,
    state: Arc<State>,
    _connections: JoinSet<()>,
}

#[derive(Default)]
struct State {
    /// While there is one, what the worker sends ends here.
    swallowed: Mutex<Option<Vec<u8>>>,
    cut: Notify,
}

impl Line {
    async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let mut connections = JoinSet::new();
        let context = Arc::clone(&state);
        connections.spawn(async move {
            let mut lines = JoinSet::new();
            while let Ok((worker, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.unwrap();
                lines.spawn(forward(worker, server, Arc::clone(&context)));
            }
        });
        Self { address, state, _connections: connections }
    }

    /// Swallows some events and then cuts the connection; the last position that was lost.
    async fn lose_events(&self) -> u32 {
        *self.state.swallowed.lock().unwrap() = Some(Vec::new());
        let lost = within("events to lose", async {
            loop {
                let positions = positions(self.state.swallowed.lock().unwrap().as_deref().unwrap());
                if positions.len() >= 5 {
                    break positions[positions.len() - 1];
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        self.state.cut.notify_waiters();
        *self.state.swallowed.lock().unwrap() = None;
        lost
    }
}

async fn forward(mut worker: TcpStream, mut server: TcpStream, state: Arc<State>) {
    let (mut from_worker, mut to_worker) = worker.split();
    let (mut from_server, mut to_server) = server.split();
    let up = async {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = from_worker.read(&mut buffer).await?;
            let heard = match state.swallowed.lock().unwrap().as_mut() {
                Some(swallowed) => {
                    swallowed.extend_from_slice(&buffer[..read]);
                    0
                }
                None => read,
            };
            if read == 0 {
                return std::io::Result::Ok(());
            }
            to_server.write_all(&buffer[..heard]).await?;
        }
    };
    tokio::select! {
        biased;
        () = state.cut.notified() => {}
        _ = up => {}
        _ = tokio::io::copy(&mut from_server, &mut to_worker) => {}
    }
}

/// The positions of whole token events in what a worker has sent.
fn positions(sent: &[u8]) -> Vec<u32> {
    let sent = String::from_utf8_lossy(sent);
    let after = sent.split(r#""position":"#).skip(1);
    after.filter_map(|rest| rest.split_once(',')?.0.parse().ok()).collect()
}

async fn stored_events(nats: &NatsServer, job: &JobId) -> Vec<Event> {
    let jetstream = async_nats::jetstream::new(nats.worker_client().await.unwrap());
    let log = jetstream.get_stream(subject::EVENTS_STREAM).await.unwrap();
    let mut events = Vec::new();
    let mut from = 1;
    loop {
        match log.direct_get_next_for_subject(subject::events(job), Some(from)).await {
            Ok(message) => {
                events.extend(events_of(serde_json::from_slice(&message.payload).unwrap()));
                from = message.sequence + 1;
            }
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => return events,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn what_a_broken_connection_lost_is_in_the_log_all_the_same() {
    let nats = NatsServer::start().await.unwrap();
    let line = Line::to(nats.address()).await;
    let address = line.address.to_string();
    let _worker = Worker::start_with(
        &["--nats", &address, "--engine", "simulated"],
        emberline_test_kit::nats::WORKER_SEED,
    );
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let job = job(1, 30_000);
    let mut events = relay.send(&job).await;
    events.next_tokens(1).await;

    for _ in 0..2 {
        let lost = line.lose_events().await;
        events.tokens_at(lost + 1).await;
    }
    relay.control(&job.id, Control::Cancel).await;
    let last = events.rest().await.pop().unwrap();
    assert!(matches!(last.kind, EventKind::Done { .. }));
    wait_for_empty_queue(&nats).await;
    let stored = stored_events(&nats, &job.id).await;
    text_of(&stored, 1);
    assert_eq!(stored.last().map(|event| &event.kind), Some(&last.kind));
}

#[tokio::test]
async fn a_log_is_stored_however_fast_it_grows() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &["--simulated-tokens-per-s", "0"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    // More than a client of NATS has on its way by itself, and several of them.
    let mut logs = Vec::new();
    for id in 1..=3 {
        logs.push(relay.send(&job(id, 12_000)).await);
    }
    for mut log in logs {
        let events = log.rest().await;
        assert!(matches!(events.last().unwrap().kind, EventKind::Done { .. }), "{:?}", events.last());
        let tokens = events.iter().map(|event| match &event.kind {
            EventKind::Tokens { ids, .. } => ids.len(),
            _ => 0,
        });
        assert_eq!(tokens.sum::<usize>(), 12_000);
    }
    wait_for_empty_queue(&nats).await;
}
