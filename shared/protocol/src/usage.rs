//! What a job has used, told once at its end on its key's subject of the `USAGE` stream.

use serde::{Deserialize, Serialize};

use crate::error::ErrorCode;
use crate::event::{Timings, Usage};
use crate::key::KeyId;
use crate::subject::JobId;

/// One job's usage; its message id is the job's id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsageEvent {
    /// [`crate::PROTOCOL_VERSION`] of the writer.
    pub v: u32,
    /// The job.
    pub job: JobId,
    /// The key that it is charged to.
    pub key: KeyId,
    /// The model's own name.
    pub model: String,
    /// Tokens.
    #[serde(flatten)]
    pub usage: Usage,
    /// Where the time went; zeros for a job that has not come to its end.
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
    /// Complete.
    Done,
    /// Nobody wanted the rest.
    Cancelled,
    /// With this error.
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
