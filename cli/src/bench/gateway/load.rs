//! The clients: each asks again as soon as it has its answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::events::{EventCounter, StreamError, completion_tokens};
use super::http::{Connection, HttpError};

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Most threads of the load generator.
const MAX_THREADS: usize = 4;
/// How much of a response that is no answer is shown.
const SHOWN_BYTES: usize = 500;

/// A server of chat completions.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) api_key: Option<String>,
    pub(crate) model: String,
}

/// Why a load is no measurement.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    TimedOut,
    #[error("status {status}: {body}")]
    Status { status: u16, body: String },
    #[error("{expected} tokens were asked for, and the answer is {body}")]
    Answer { expected: u64, body: String },
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("a client of the load generator ended: {0}")]
    Client(#[from] tokio::task::JoinError),
}

/// Whole answers that clients have received.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// From sending each request to the end of its answer.
    pub(crate) latencies: Vec<Duration>,
    /// From the first request to the last answer.
    pub(crate) total: Duration,
}

/// Streams that clients have received.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub(crate) first_bytes: Vec<Duration>,
    pub(crate) first_texts: Vec<Duration>,
    pub(crate) events: u64,
    /// From the first request to the end of the last stream.
    pub(crate) total: Duration,
}

impl Streams {
    pub(crate) fn count(&self) -> usize {
        self.first_bytes.len()
    }
}

/// One stream that is received while something happens to what sends it.
#[derive(Debug, Clone, Default)]
pub(crate) struct WatchedStream(Arc<Mutex<Watched>>);

#[derive(Debug, Default)]
struct Watched {
    /// When events came, those that came together once.
    times: Vec<Instant>,
    /// Why it ended, if it did.
    end: Option<String>,
}

/// Runs clients on threads of its own.
#[derive(Debug)]
pub(crate) struct Generator {
    runtime: Runtime,
}

impl Target {
    /// A request for `tokens` tokens.
    pub(crate) fn request(&self, tokens: u64, stream: bool) -> Arc<[u8]> {
        let mut body = json!({
            "model": self.model,
            "messages": [{"role": "user", "content": "Say something."}],
            "max_tokens": tokens,
            "temperature": 0,
        });
        if stream {
            body["stream"] = true.into();
            body["stream_options"] = json!({"include_usage": true});
        }
        let body = body.to_string();
        let key =
            self.api_key.as_ref().map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {}\r\n{key}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .into_bytes()
        .into()
    }

    /// Gets a path without a key; the status and the body.
    pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<(u16, Vec<u8>), LoadError> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
        let mut body = Vec::new();
        let mut connection = Connection::new(address);
        let exchange = connection.exchange(request.as_bytes(), |part| body.extend_from_slice(part));
        let status = tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| LoadError::TimedOut)??;
        Ok((status, body))
    }

    /// Asks for one whole answer, once.
    pub(crate) async fn probe(&self) -> Result<(), LoadError> {
        answer(&mut Connection::new(self.address), &self.request(1, false), 1).await.map(drop)
    }
}

impl Generator {
    /// A generator with a quarter of the machine's threads, and one at least.
    pub(crate) fn new() -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism()?.get();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads((cores / 4).clamp(1, MAX_THREADS))
            .thread_name("load")
            .enable_all()
            .build()?;
        Ok(Self { runtime })
    }

    /// Whole answers of one token to `clients` clients, none of which asks again after `time`.
    pub(crate) async fn answers(
        &self,
        target: &Target,
        clients: usize,
        time: Duration,
    ) -> Result<Answers, LoadError> {
        let request = target.request(1, false);
        let began = Instant::now();
        let mut running = JoinSet::new();
        for _ in 0..clients {
            let (mut connection, request) = (Connection::new(target.address), Arc::clone(&request));
            let client = async move {
                let mut latencies = Vec::new();
                connection.open().await?;
                while latencies.is_empty() || began.elapsed() < time {
                    latencies.push(answer(&mut connection, &request, 1).await?);
                }
                Ok::<_, LoadError>(latencies)
            };
            running.spawn_on(client, self.runtime.handle());
        }
        let mut answers = Answers::default();
        while let Some(client) = running.join_next().await {
            answers.latencies.extend(client??);
        }
        answers.total = began.elapsed();
        Ok(answers)
    }

    /// Streams of `tokens` tokens to `clients` clients, none of which asks again after `time`.
    pub(crate) async fn streams(
        &self,
        target: &Target,
        clients: usize,
        tokens: u64,
        time: Duration,
    ) -> Result<Streams, LoadError> {
        let request = target.request(tokens, true);
        let began = Instant::now();
        let mut running = JoinSet::new();
        for _ in 0..clients {
            let (mut connection, request) = (Connection::new(target.address), Arc::clone(&request));
            let client = async move {
                let mut streams = Streams::default();
                connection.open().await?;
                while streams.count() == 0 || began.elapsed() < time {
                    let counter = stream(&mut connection, &request, |_| ()).await?;
                    counter.check(tokens)?;
                    streams.first_bytes.extend(counter.first_byte);
                    streams.first_texts.extend(counter.first_text);
                    streams.events += counter.events;
                }
                Ok::<_, LoadError>(streams)
            };
            running.spawn_on(client, self.runtime.handle());
        }
        let mut all = Streams::default();
        while let Some(client) = running.join_next().await {
            let streams = client??;
            all.first_bytes.extend(streams.first_bytes);
            all.first_texts.extend(streams.first_texts);
            all.events += streams.events;
        }
        all.total = began.elapsed();
        Ok(all)
    }

    /// Begins `count` streams of `tokens` tokens. They end when the set is dropped.
    pub(crate) fn watch(
        &self,
        target: &Target,
        count: usize,
        tokens: u64,
    ) -> (Vec<WatchedStream>, JoinSet<()>) {
        let request = target.request(tokens, true);
        let mut running = JoinSet::new();
        let begin = |_| {
            let (mut connection, request) = (Connection::new(target.address), Arc::clone(&request));
            let watched = WatchedStream::default();
            let seen = watched.clone();
            let client = async move {
                let received = stream(&mut connection, &request, |events| {
                    if events > 0 {
                        seen.lock().times.push(Instant::now());
                    }
                });
                let outcome = received.await.and_then(|counter| Ok(counter.check(tokens)?));
                seen.lock().end =
                    Some(outcome.map_or_else(|error| error.to_string(), |()| "complete".to_owned()));
            };
            running.spawn_on(client, self.runtime.handle());
            watched
        };
        ((0..count).map(begin).collect(), running)
    }
}

impl WatchedStream {
    /// How many events, or groups of events, came after `time`.
    pub(crate) fn events_since(&self, time: Instant) -> usize {
        self.lock().times.iter().filter(|at| **at > time).count()
    }

    /// Why the stream has ended.
    pub(crate) fn end(&self) -> Option<String> {
        self.lock().end.clone()
    }

    /// The longest time between two events of which the second came after `time`.
    pub(crate) fn longest_gap_since(&self, time: Instant) -> Option<Duration> {
        longest_gap(&self.lock().times, time)
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn longest_gap(times: &[Instant], since: Instant) -> Option<Duration> {
    let pairs = times.iter().zip(times.iter().skip(1));
    pairs.filter(|(_, second)| **second > since).map(|(first, second)| second.duration_since(*first)).max()
}

/// Sends a request for a whole answer of `tokens` tokens and checks the answer; how long it took.
async fn answer(connection: &mut Connection, request: &[u8], tokens: u64) -> Result<Duration, LoadError> {
    let mut body = Vec::new();
    let sent = Instant::now();
    let exchange = connection.exchange(request, |part| body.extend_from_slice(part));
    let status = tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| LoadError::TimedOut)??;
    let took = sent.elapsed();
    if status != 200 {
        return Err(LoadError::Status { status, body: shown(&body) });
    }
    match completion_tokens(&body) {
        Some(found) if found == tokens => Ok(took),
        _ => Err(LoadError::Answer { expected: tokens, body: shown(&body) }),
    }
}

/// Sends a request for a stream and reads it to its end. `on_events` is told how many events came together.
async fn stream(
    connection: &mut Connection,
    request: &[u8],
    mut on_events: impl FnMut(u64) + Send,
) -> Result<EventCounter, LoadError> {
    let mut counter = EventCounter::new(Instant::now());
    let mut beginning = Vec::new();
    let exchange = connection.exchange(request, |part| {
        if beginning.len() < SHOWN_BYTES {
            beginning.extend_from_slice(part);
        }
        on_events(counter.read(part));
    });
    let status = tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| LoadError::TimedOut)??;
    if status == 200 { Ok(counter) } else { Err(LoadError::Status { status, body: shown(&beginning) }) }
}

fn shown(body: &[u8]) -> String {
    String::from_utf8_lossy(body.get(..SHOWN_BYTES).unwrap_or(body)).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_complete_and_names_its_key() {
        let address = "127.0.0.1:80".parse().unwrap();
        let target = Target { address, api_key: Some("k".into()), model: "m".into() };
        let request = String::from_utf8(target.request(7, true).to_vec()).unwrap();
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("\r\nauthorization: Bearer k\r\n"), "{head}");
        assert!(head.contains(&format!("\r\ncontent-length: {}", body.len())), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((body["max_tokens"].as_u64(), body["stream"].as_bool()), (Some(7), Some(true)));
        let whole = target.request(1, false);
        assert!(!String::from_utf8_lossy(&whole).contains("stream"));
    }

    #[test]
    fn a_gap_counts_if_it_ends_after_the_break() {
        let start = Instant::now();
        let times = [0, 500, 510, 540, 560].map(|ms| start + Duration::from_millis(ms));
        let gap =
            |since| longest_gap(&times, start + Duration::from_millis(since)).map(|gap| gap.as_millis());
        assert_eq!(gap(100), Some(500), "the break lies within it");
        assert_eq!(gap(505), Some(30));
        assert_eq!(gap(560), None);
    }
}
