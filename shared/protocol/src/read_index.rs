//! The sequence that a read must have reached to be current: what Raft calls a read index.
//!
//! Any replica of a stream answers a direct get, also one that lags behind. Only the stream's leader judges a
//! publication, so one that it has to refuse asks it for the last sequence on a subject: the message expects a
//! sequence that none can have, and the refusal names the true one. Nothing is stored, and no replica is asked. A
//! direct get that brings this sequence or a later one is as current as the leader was.
//!
//! The question goes to a subject of its own in the stream ([`RecordBucket::index_subject`]), so that whoever may ask
//! need not have the right to write records.

use serde::Deserialize;

use crate::subject::{KEYS_STREAM, REQUESTS_STREAM};

/// The sequence that the subject's last message must have.
pub const EXPECTED_SEQUENCE_HEADER: &str = "Nats-Expected-Last-Subject-Sequence";
/// The subject whose last message it is, if that is not the message's own.
pub const EXPECTED_SUBJECT_HEADER: &str = "Nats-Expected-Last-Subject-Sequence-Subject";
/// A sequence that no message has.
pub const NO_SEQUENCE: &str = "9223372036854775807";

/// JetStream's code for "the subject's last message is another"; its description names the sequence.
const WRONG_LAST_SEQUENCE: u32 = 10_071;
/// The same while a write to that subject is under way.
const WRITE_IN_PROGRESS: u32 = 10_164;

/// A bucket whose records are read as its leader knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordBucket {
    /// API keys.
    Keys,
    /// Stored requests.
    Requests,
}

impl RecordBucket {
    /// The stream behind it.
    pub fn stream(self) -> &'static str {
        match self {
            Self::Keys => KEYS_STREAM,
            Self::Requests => REQUESTS_STREAM,
        }
    }

    /// Where the stream's leader is asked. No record has this subject.
    pub fn index_subject(self) -> &'static str {
        match self {
            Self::Keys => "$KV.keys.read_index",
            Self::Requests => "$KV.requests.read_index",
        }
    }

    /// Where any replica of the stream answers with the last message on `subject`.
    pub fn get_subject(self, subject: &str) -> String {
        format!("$JS.API.DIRECT.GET.{}.{subject}", self.stream())
    }
}

/// Why the leader's answer has no sequence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoReadIndex {
    /// The next one will be another: ask again.
    #[error("a write to the subject is in progress")]
    WriteInProgress,
    /// JetStream can't say.
    #[error("JetStream does not tell the subject's last sequence: {0}")]
    Refused(String),
}

/// Reads the leader's answer: the sequence of the subject's last message, 0 if there is none.
pub fn parse(answer: &[u8]) -> Result<u64, NoReadIndex> {
    #[derive(Deserialize)]
    struct Answer {
        error: Error,
    }
    #[derive(Deserialize)]
    struct Error {
        err_code: u32,
        #[serde(default)]
        description: String,
    }
    let refused = || NoReadIndex::Refused(String::from_utf8_lossy(answer).chars().take(200).collect());
    let Answer { error } = serde_json::from_slice(answer).map_err(|_| refused())?;
    match error.err_code {
        WRITE_IN_PROGRESS => Err(NoReadIndex::WriteInProgress),
        WRONG_LAST_SEQUENCE => {
            let sequence = error.description.rsplit(' ').next().and_then(|number| number.parse().ok());
            sequence.ok_or_else(refused)
        }
        _ => Err(refused()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers as nats-server 2.15.1 gave them; the second as its source has it.
    #[test]
    fn a_refusal_tells_the_sequence() {
        let answer = |code, words| {
            parse(format!(r#"{{"error":{{"code":400,"err_code":{code},"description":"{words}"}},"stream":"KV_keys","seq":0}}"#).as_bytes())
        };
        assert_eq!(answer(10_071, "wrong last sequence: 17"), Ok(17));
        assert_eq!(answer(10_071, "wrong last sequence: 0"), Ok(0));
        assert_eq!(answer(10_164, "wrong last sequence"), Err(NoReadIndex::WriteInProgress));
        for (code, words) in [(10_071, "wrong last sequence"), (10_077, "maximum bytes exceeded")] {
            assert!(matches!(answer(code, words), Err(NoReadIndex::Refused(_))), "{words}");
        }
        for other in ["", "{}", r#"{"stream":"KV_keys","seq":5}"#] {
            assert!(matches!(parse(other.as_bytes()), Err(NoReadIndex::Refused(_))), "{other}");
        }
    }

    #[test]
    fn the_question_is_no_records_subject() {
        assert!(!RecordBucket::Keys.index_subject().contains(&crate::subject::key(&[0; 32])));
        let job = RecordBucket::Requests.index_subject().strip_prefix("$KV.requests.").unwrap();
        assert!(crate::subject::JobId::try_from(job.to_owned()).is_err());
        let get = RecordBucket::Requests.get_subject("$KV.requests.a");
        assert_eq!(get, "$JS.API.DIRECT.GET.KV_requests.$KV.requests.a");
    }
}
