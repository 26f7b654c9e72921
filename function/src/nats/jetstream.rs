//! What JetStream answers: acknowledgements of a publish, and the messages of a direct get.
//!
//! A batched direct get (nats-server 2.11) answers with one message for each that is stored,
//! and ends with status 204; see ADR-31 of nats-architecture-and-design.

use bytes::Bytes;
use emberline_protocol::error::{ApiError, ErrorCode};
use serde::Deserialize;
use serde_json::Value;
use watermelon_proto::headers::HeaderName;
use watermelon_proto::{ServerMessage, StatusCode};

use super::current::Record;

/// JetStream's code for "this can't be stored", whatever the reason.
const STORE_FAILED: u32 = 10_077;
/// JetStream's codes for "the subject's last message is another": the second while a write to it is in progress.
const WRONG_LAST_SEQUENCE: [u32; 2] = [10_071, 10_164];
/// JetStream's code for "a message with this id is being stored": another server of the cluster has yet to confirm it.
const DUPLICATE_IN_PROCESS: u32 = 10_158;
/// Most bytes that one batch may bring: a long job's event log is far below.
const MAX_BATCH: usize = 32 * 1024 * 1024;
/// Messages asked for at once.
const BATCH: u32 = 1000;
const END_OF_BATCH: u16 = 204;

/// Why a message is not in its stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Nothing listens on the subject.
    #[error(
        "no stream takes it: it has no leader at the moment, or was not made yet by `emberline nats setup`"
    )]
    NoStream,
    /// The stream is at one of its limits.
    #[error("the queue is full: {0}")]
    Full(String),
    /// Another message was stored on its subject since that was read.
    #[error("another message was stored first")]
    Changed,
    /// JetStream refused for another reason.
    #[error("JetStream refused the message ({code}): {description}")]
    Refused {
        /// JetStream's own error code.
        code: u32,
        /// JetStream's description.
        description: String,
    },
    /// The reply is no acknowledgement.
    #[error("JetStream's acknowledgement can't be read")]
    Malformed,
}

impl From<&PublishError> for ApiError {
    fn from(error: &PublishError) -> Self {
        match error {
            PublishError::NoStream => {
                let message = "There is no queue yet. `emberline nats setup` creates it.";
                Self::new(ErrorCode::NoWorker, message)
            }
            PublishError::Full(_) => {
                Self::new(ErrorCode::Overloaded, "The queue for this model is full. Try again shortly.")
            }
            PublishError::Changed | PublishError::Refused { .. } | PublishError::Malformed => {
                bus_unavailable()
            }
        }
    }
}

/// The failure of NATS, as the client will see it; the reason belongs in the log.
pub fn bus_unavailable() -> ApiError {
    ApiError::new(
        ErrorCode::BusUnavailable,
        "The message bus is not available at the moment. Try again shortly.",
    )
}

#[derive(Default, Deserialize)]
struct PublishReply {
    error: Option<ReplyError>,
    seq: Option<u64>,
    /// The sum of a counter.
    val: Option<String>,
    #[serde(default)]
    duplicate: bool,
}

/// The acknowledgement of a message that is in its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// It was stored, with this sequence.
    New(u64),
    /// One with the same id was stored before.
    Before,
}

#[derive(Deserialize)]
struct ReplyError {
    err_code: u32,
    #[serde(default)]
    description: String,
}

/// Reads the reply to a publish.
pub fn read_ack(message: &ServerMessage) -> Result<Ack, PublishError> {
    let reply = read_reply(message)?;
    if reply.duplicate {
        return Ok(Ack::Before);
    }
    reply.seq.map(Ack::New).ok_or(PublishError::Malformed)
}

/// Reads the reply to an increment: the counter's sum; `None` if an increment with the same id was counted before,
/// for then nats-server does not tell it.
pub fn read_sum(message: &ServerMessage) -> Result<Option<i64>, PublishError> {
    let reply = read_reply(message)?;
    if reply.duplicate {
        return Ok(None);
    }
    let sum = reply.val.and_then(|sum| sum.parse().ok());
    sum.map(Some).ok_or(PublishError::Malformed)
}

/// The sum in a counter's stored message.
pub fn stored_sum(payload: &[u8]) -> Option<i64> {
    #[derive(Deserialize)]
    struct Stored {
        val: String,
    }
    serde_json::from_slice::<Stored>(payload).ok()?.val.parse().ok()
}

fn read_reply(message: &ServerMessage) -> Result<PublishReply, PublishError> {
    if message.status_code == Some(StatusCode::NO_RESPONDERS) {
        return Err(PublishError::NoStream);
    }
    let reply: PublishReply =
        serde_json::from_slice(&message.base.payload).map_err(|_| PublishError::Malformed)?;
    match reply.error {
        Some(error) if error.err_code == STORE_FAILED && error.description.starts_with("maximum") => {
            Err(PublishError::Full(error.description))
        }
        Some(error) if WRONG_LAST_SEQUENCE.contains(&error.err_code) => Err(PublishError::Changed),
        Some(error) if error.err_code == DUPLICATE_IN_PROCESS => {
            Ok(PublishReply { duplicate: true, ..PublishReply::default() })
        }
        Some(error) => Err(PublishError::Refused { code: error.err_code, description: error.description }),
        None if reply.seq.is_some() => Ok(reply),
        None => Err(PublishError::Malformed),
    }
}

/// Reads the reply to a direct get of one message.
pub fn read_message(message: ServerMessage) -> Result<Option<Record>, BatchError> {
    match message.status_code {
        None => {
            let sequence = number(&message, &HeaderName::from_static("Nats-Sequence")).unwrap_or(0);
            Ok(Some(Record { sequence, headers: message.base.headers, payload: message.base.payload }))
        }
        Some(StatusCode::NOT_FOUND) => Ok(None),
        Some(status) => Err(refused(status, &message)),
    }
}

fn refused(status: StatusCode, message: &ServerMessage) -> BatchError {
    if status == StatusCode::NO_RESPONDERS {
        return BatchError::NoStream;
    }
    let words = message.status_description.as_ref().map(|words| words.to_string()).unwrap_or_default();
    BatchError::Status(status.into(), words)
}

/// Asks for the last message on each subject that one of `filters` covers.
pub fn last_by_subject<S: AsRef<str>>(filters: impl IntoIterator<Item = S>) -> Bytes {
    let filters: Vec<Value> = filters.into_iter().map(|filter| filter.as_ref().into()).collect();
    serde_json::json!({ "multi_last": filters }).to_string().into()
}

/// Asks for the messages on `subject` from stream sequence `from` on.
pub fn next_by_subject(subject: &str, from: u64) -> Bytes {
    serde_json::json!({ "next_by_subj": subject, "seq": from, "batch": BATCH }).to_string().into()
}

/// Why a direct get brought nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages are the documentation
pub enum BatchError {
    #[error(
        "no server answers for the stream: it is offline, takes no direct gets, or was not made yet by a worker's \
         start or `emberline nats setup`"
    )]
    NoStream,
    #[error("direct get refused with status {0}: {1}")]
    Status(u16, String),
    #[error("direct get brought more than {MAX_BATCH} bytes")]
    TooLarge,
}

/// The messages of a direct get, while they come in.
#[derive(Debug, Default)]
pub struct Batch {
    stored: Vec<(Option<String>, Bytes)>,
    bytes: usize,
    more: Option<u64>,
}

/// How far a [`Batch`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Replies are still to come.
    Pending,
    /// The stream holds more: ask again from this sequence on.
    More(u64),
    /// That was all.
    Complete,
}

impl Batch {
    /// Takes the next reply.
    pub fn push(&mut self, message: ServerMessage) -> Result<Progress, BatchError> {
        match message.status_code {
            None => self.store(message),
            Some(StatusCode::NOT_FOUND) => Ok(Progress::Complete),
            Some(status) if u16::from(status) == END_OF_BATCH => {
                let number = |name| number(&message, &name);
                let pending = number(HeaderName::from_static("Nats-Num-Pending")).unwrap_or(0);
                self.more = number(HeaderName::LAST_SEQUENCE)
                    .filter(|_| pending > 0)
                    .map(|last| last.saturating_add(1));
                Ok(self.more.map_or(Progress::Complete, Progress::More))
            }
            Some(status) => Err(refused(status, &message)),
        }
    }

    fn store(&mut self, message: ServerMessage) -> Result<Progress, BatchError> {
        self.bytes = self.bytes.saturating_add(message.base.payload.len());
        if self.bytes > MAX_BATCH {
            return Err(BatchError::TooLarge);
        }
        // A deleted or expired key leaves a marker, without a value.
        if !message.base.payload.is_empty() {
            let subject = message.base.headers.get(&HeaderName::from_static("Nats-Subject"));
            let subject = subject.and_then(|subject| subject.to_str().ok()).map(str::to_owned);
            self.stored.push((subject, message.base.payload));
        }
        Ok(Progress::Pending)
    }

    /// Where to ask on from, if the stream holds more.
    pub fn more(&self) -> Option<u64> {
        self.more
    }

    /// What the messages hold, in the stream's order; deleted ones left out.
    pub fn into_payloads(self) -> Vec<Bytes> {
        self.stored.into_iter().map(|(_, payload)| payload).collect()
    }

    /// The same with the subjects of those that have one.
    pub fn into_entries(self) -> impl Iterator<Item = (String, Bytes)> {
        self.stored.into_iter().filter_map(|(subject, payload)| Some((subject?, payload)))
    }
}

fn number(message: &ServerMessage, name: &HeaderName) -> Option<u64> {
    message.base.headers.get(name)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::codec::Decoder;
    use watermelon_proto::proto::ServerOp;

    fn message(headers: &str, payload: &str) -> ServerMessage {
        let (h, total) = (headers.len(), headers.len() + payload.len());
        let line = if h == 0 { format!("MSG i 1 {total}") } else { format!("HMSG i 1 {h} {total}") };
        let mut decoder = Decoder::default();
        decoder.feed(format!("{line}\r\n{headers}{payload}\r\n").as_bytes());
        let Ok(Some(ServerOp::Message { message })) = decoder.decode() else { panic!("no message") };
        message
    }

    /// Replies as nats-server 2.15.1 gave them.
    #[test]
    fn acknowledgements_are_read() {
        let ack = |payload| read_ack(&message("", payload));
        assert_eq!(ack(r#"{"stream":"JOBS","seq":1}"#), Ok(Ack::New(1)));
        assert_eq!(ack(r#"{"stream":"JOBS","seq":1,"duplicate": true}"#), Ok(Ack::Before));
        let in_process = r#"{"error":{"code":409,"err_code":10158,"description":"duplicate message id is in process"},"stream":"JOBS","seq":0}"#;
        assert_eq!(ack(in_process), Ok(Ack::Before));
        let no_stream = message("NATS/1.0 503\r\nNats-Subject: emberline.jobs.a.0\r\n\r\n", "");
        assert_eq!(read_ack(&no_stream), Err(PublishError::NoStream));
        for garbage in ["", "{}", "null", r#"{"error":{}}"#] {
            assert_eq!(ack(garbage), Err(PublishError::Malformed), "{garbage}");
        }
    }

    #[test]
    fn a_full_queue_is_told_from_a_refusal() {
        for limit in
            ["maximum messages exceeded", "maximum messages per subject exceeded", "maximum bytes exceeded"]
        {
            let reply = format!(
                r#"{{"error":{{"code":503,"err_code":10077,"description":"{limit}"}},"stream":"JOBS","seq":0}}"#
            );
            let error = read_ack(&message("", &reply)).unwrap_err();
            assert_eq!(ApiError::from(&error).code, ErrorCode::Overloaded, "{limit}");
        }
        // The server's own store is full, and two that no limit is to blame for.
        for (code, words) in [
            (10_023, "insufficient resources"),
            (10_008, "JetStream system temporarily unavailable"),
            (10_060, "expected stream does not match"),
        ] {
            let refused = format!(
                r#"{{"error":{{"code":503,"err_code":{code},"description":"{words}"}},"stream":"JOBS","seq":0}}"#
            );
            let error = read_ack(&message("", &refused)).unwrap_err();
            assert_eq!(ApiError::from(&error).code, ErrorCode::BusUnavailable, "{words}");
        }
    }

    #[test]
    fn a_counters_sum_is_read_from_its_acknowledgement_and_from_what_is_stored() {
        let sum = |payload| read_sum(&message("", payload));
        assert_eq!(sum(r#"{"stream":"LIMITS","seq":3,"val":"-16"}"#), Ok(Some(-16)));
        assert_eq!(sum(r#"{"stream":"LIMITS","seq":3,"duplicate": true}"#), Ok(None));
        assert_eq!(sum(r#"{"stream":"LIMITS","seq":3}"#), Err(PublishError::Malformed));
        assert_eq!(sum(r#"{"stream":"LIMITS","seq":3,"val":"1e9"}"#), Err(PublishError::Malformed));
        assert_eq!((stored_sum(br#"{"val":"7"}"#), stored_sum(b"{}")), (Some(7), None));
        let stored = message("NATS/1.0\r\nNats-Subject: a.b\r\n\r\n", r#"{"val":"7"}"#);
        let mut batch = Batch::default();
        batch.push(stored.clone()).unwrap();
        let entries: Vec<_> = batch.into_entries().collect();
        assert_eq!(entries, [("a.b".to_owned(), Bytes::from_static(br#"{"val":"7"}"#))]);
        assert!(read_message(stored).unwrap().is_some());
        assert_eq!(read_message(message("NATS/1.0 404 Message Not Found\r\n\r\n", "")), Ok(None));
        let deleted = read_message(message("NATS/1.0\r\nNats-Sequence: 3\r\nKV-Operation: DEL\r\n\r\n", ""));
        let deleted = deleted.unwrap().unwrap();
        assert_eq!((deleted.sequence, deleted.payload.len()), (3, 0));
        assert!(read_message(message("NATS/1.0 503\r\n\r\n", "")).is_err());
    }

    #[test]
    fn a_message_that_is_not_the_first_is_told_from_a_refusal() {
        for (code, words) in [(10_071, "wrong last sequence: 1"), (10_164, "wrong last sequence")] {
            let reply = format!(
                r#"{{"error":{{"code":400,"err_code":{code},"description":"{words}"}},"stream":"KV_requests","seq":0}}"#
            );
            assert_eq!(read_ack(&message("", &reply)), Err(PublishError::Changed));
        }
    }

    #[test]
    fn a_batch_ends_with_its_end() {
        let mut batch = Batch::default();
        let stored = "NATS/1.0\r\nNats-Stream: EVENTS\r\nNats-Sequence: 1\r\nNats-Num-Pending: 1\r\n\r\n";
        assert_eq!(batch.push(message(stored, "one")), Ok(Progress::Pending));
        let deleted = "NATS/1.0\r\nKV-Operation: DEL\r\nNats-Num-Pending: 0\r\n\r\n";
        assert_eq!(batch.push(message(deleted, "")), Ok(Progress::Pending));
        let end = "NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\nNats-Last-Sequence: 7\r\n\r\n";
        assert_eq!(batch.push(message(end, "")), Ok(Progress::Complete));
        let more = "NATS/1.0 204 EOB\r\nNats-Num-Pending: 3\r\nNats-Last-Sequence: 7\r\n\r\n";
        assert_eq!(batch.more(), None);
        assert_eq!(batch.push(message(more, "")), Ok(Progress::More(8)));
        assert_eq!(batch.more(), Some(8));
        assert_eq!(batch.into_payloads(), ["one"]);
    }

    #[test]
    fn nothing_stored_is_an_empty_batch() {
        for status in ["404 No Results", "404 Message Not Found"] {
            let reply = message(&format!("NATS/1.0 {status}\r\n\r\n"), "");
            assert_eq!(Batch::default().push(reply), Ok(Progress::Complete), "{status}");
        }
        let offline = message("NATS/1.0 503\r\n\r\n", "");
        assert_eq!(Batch::default().push(offline.clone()), Err(BatchError::NoStream));
        assert_eq!(read_message(offline), Err(BatchError::NoStream));
        let too_many = message("NATS/1.0 413 Too Many Results\r\n\r\n", "");
        assert_eq!(Batch::default().push(too_many), Err(BatchError::Status(413, "Too Many Results".into())));
    }

    #[test]
    fn requests_are_as_the_server_wants_them() {
        assert_eq!(last_by_subject(["a.>"]), r#"{"multi_last":["a.>"]}"#);
        let next: serde_json::Value = serde_json::from_slice(&next_by_subject("a.b", 8)).unwrap();
        assert_eq!(next, serde_json::json!({"next_by_subj": "a.b", "seq": 8, "batch": 1000}));
    }
}
