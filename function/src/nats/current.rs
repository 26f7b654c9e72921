//! Reads records as their stream's leader knows them, though any replica may answer.
//!
//! A direct get and the question for the read index ([`emberline_protocol::read_index`]) go out together. A replica
//! whose record is older than the leader's is asked again a little later; if it does not catch up, that is an error:
//! what is known to be outdated is never believed.

use std::time::Duration;

use bytes::Bytes;
use emberline_protocol::read_index::{
    self, EXPECTED_SEQUENCE_HEADER, EXPECTED_SUBJECT_HEADER, NO_SEQUENCE, NoReadIndex, RecordBucket,
};
use watermelon_proto::headers::{HeaderMap, HeaderName, HeaderValue};
use watermelon_proto::{ServerMessage, StatusCode};

use super::bus::Bus;
use super::connection::{BusError, REPLY_TIMEOUT, subject};
use super::jetstream;
use super::round_trip::{Answer, Reply, Request};
use crate::platform::Host;

/// Pauses before a replica that lags behind is asked again: the first one, and the longest. Each is twice the one
/// before.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_millis(200);

/// A message of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its sequence in the bucket's stream.
    pub sequence: u64,
    /// What its writer said beside the payload.
    pub headers: HeaderMap,
    /// Empty for a deletion.
    pub payload: Bytes,
}

/// Reads the last message on `subject`, and makes `others` in the same round trip; their answers come after it.
pub async fn read(
    bus: &Bus,
    bucket: RecordBucket,
    subject: &str,
    others: &[Request],
) -> Result<(Option<Record>, Vec<Answer>), BusError> {
    let mut requests = Vec::from(questions(bucket, subject)?);
    requests.extend_from_slice(others);
    let mut patience = Patience::new(bus.host());
    loop {
        let mut answers = bus.round_trip(&requests).await?.into_iter();
        if let (Some(Answer::Message(stored)), Some(Answer::Message(index))) =
            (answers.next(), answers.next())
            && let Some(record) = judge(*stored, &index, bucket)?
        {
            return Ok((record, answers.collect()));
        }
        patience.pause(bus.host()).await?;
    }
}

/// The direct get, and the question for the read index.
fn questions(bucket: RecordBucket, of: &str) -> Result<[Request; 2], BusError> {
    let value =
        |text: &str| HeaderValue::try_from(text.to_owned()).map_err(|_| BusError::Subject(text.to_owned()));
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static(EXPECTED_SEQUENCE_HEADER), value(NO_SEQUENCE)?);
    headers.insert(HeaderName::from_static(EXPECTED_SUBJECT_HEADER), value(of)?);
    let question =
        |subject, headers| Request { subject, headers, payload: Bytes::new(), reply: Reply::Message };
    Ok([
        question(subject(bucket.get_subject(of))?, HeaderMap::new()),
        question(subject(bucket.index_subject().to_owned())?, headers),
    ])
}

/// The last message, if the leader knows no later one; `None` if the replica has to be asked again.
fn judge(
    stored: ServerMessage,
    index: &ServerMessage,
    bucket: RecordBucket,
) -> Result<Option<Option<Record>>, BusError> {
    if index.status_code == Some(StatusCode::NO_RESPONDERS) {
        return Err(BusError::NoResponders(subject(bucket.index_subject().to_owned())?));
    }
    let index = match read_index::parse(&index.base.payload) {
        Ok(index) => index,
        Err(NoReadIndex::WriteInProgress) => return Ok(None),
        Err(NoReadIndex::Refused(reason)) => return Err(BusError::Record(reason)),
    };
    let record = jetstream::read_message(stored)?;
    let sequence = record.as_ref().map_or(0, |record| record.sequence);
    Ok((sequence >= index).then_some(record))
}

/// How long a replica may take to catch up.
struct Patience {
    until_ns: u64,
    pause: Duration,
}

impl Patience {
    fn new(host: &Host) -> Self {
        Self { until_ns: host.after(REPLY_TIMEOUT), pause: FIRST_PAUSE }
    }

    async fn pause(&mut self, host: &Host) -> Result<(), BusError> {
        if host.left_until(self.until_ns) < self.pause {
            return Err(BusError::Outdated);
        }
        host.sleep(self.pause).await;
        self.pause = self.pause.saturating_mul(2).min(LAST_PAUSE);
        Ok(())
    }
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

    fn index(sequence: u64) -> ServerMessage {
        message(
            "",
            &format!(r#"{{"error":{{"err_code":10071,"description":"wrong last sequence: {sequence}"}}}}"#),
        )
    }

    #[test]
    fn a_record_is_believed_if_the_leader_knows_no_later_one() {
        let stored = message("NATS/1.0\r\nNats-Sequence: 7\r\n\r\n", "x");
        let missing = message("NATS/1.0 404 Message Not Found\r\n\r\n", "");
        let sequence = |stored: &ServerMessage, index: &ServerMessage| {
            judge(stored.clone(), index, RecordBucket::Keys)
                .unwrap()
                .map(|record| record.map(|record| record.sequence))
        };
        // The leader may have removed it a moment ago.
        for known in [0, 6, 7] {
            assert_eq!(sequence(&stored, &index(known)), Some(Some(7)), "{known}");
        }
        assert_eq!(sequence(&stored, &index(8)), None);
        assert_eq!(sequence(&missing, &index(0)), Some(None));
        assert_eq!(sequence(&missing, &index(1)), None);
        let busy = message("", r#"{"error":{"err_code":10164,"description":"wrong last sequence"}}"#);
        assert_eq!(sequence(&stored, &busy), None);
        let nobody = message("NATS/1.0 503\r\n\r\n", "");
        assert!(matches!(judge(stored.clone(), &nobody, RecordBucket::Keys), Err(BusError::NoResponders(_))));
        assert!(judge(nobody, &index(0), RecordBucket::Keys).is_err());
        assert!(judge(stored, &message("", "{}"), RecordBucket::Keys).is_err());
    }
}
