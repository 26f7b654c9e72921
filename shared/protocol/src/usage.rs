//! A job's usage, published once when the job ends, on its key's subject in the `USAGE` stream.

use serde::{Deserialize, Serialize};

use crate::error::ErrorCode;
use crate::event::{Timings, Usage};
use crate::key::KeyId;
use crate::subject::JobId;

/// One job's usage; the message's id is [`Account::settlement_id`](crate::job::Account::settlement_id).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsageEvent {
    /// [`crate::PROTOCOL_VERSION`] of the writer.
    pub v: u32,
    /// The job.
    pub job: JobId,
    /// The key to which the job is charged.
    pub key: KeyId,
    /// The model's own name, aliases resolved.
    pub model: String,
    /// Token counts.
    #[serde(flatten)]
    pub usage: Usage,
    /// Time spent in each phase; zeros for a job that did not complete.
    #[serde(flatten)]
    pub timings: Timings,
    /// When the function accepted the request, unix milliseconds.
    pub created: u64,
    /// When the job ended, unix milliseconds.
    pub finished: u64,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It completed.
    Done,
    /// It was cancelled.
    Cancelled,
    /// It failed with this error.
    #[serde(untagged)]
    Failed(ErrorCode),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_flat_and_its_outcome_one_word() {
        let event = UsageEvent {
            v: 2,
            job: JobId::from_random(1),
            key: KeyId::of_key(b"abc"),
            model: "m".into(),
            usage: Usage { prompt_tokens: 3, cached_tokens: 1, completion_tokens: 2 },
            timings: Timings { queue_ms: 1.5, ..Timings::default() },
            created: 10,
            finished: 20,
            outcome: Outcome::Failed(ErrorCode::Timeout),
        };
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(
            (&json["outcome"], &json["prompt_tokens"], &json["queue_ms"]),
            (&"timeout".into(), &3.into(), &1.5.into())
        );
        assert_eq!(serde_json::from_value::<UsageEvent>(json).unwrap(), event);
        assert_eq!(serde_json::to_value(Outcome::Done).unwrap(), "done");
        assert_eq!(serde_json::from_str::<Outcome>("\"cancelled\"").unwrap(), Outcome::Cancelled);
    }
}
