//! The part of a stored request that a worker reads, and what a worker does when one is deleted. The function stores a
//! request in the `requests` bucket if its answer can be fetched again; all other fields are private to the function.

use serde::{Deserialize, Serialize};

use crate::subject::JobId;

/// Whether the job is still wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelState {
    /// A worker that takes the job ends it at once.
    #[serde(default)]
    pub cancelled: bool,
}

/// Asks a worker to remove the event log of a job whose stored request is deleted. The worker looks whether it is:
/// whoever may ask can't erase anything else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EraseRequest {
    /// The job.
    pub job: JobId,
}

/// The answer to an [`EraseRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EraseReply {
    /// The log is gone.
    Erased,
    /// It is not, for this reason.
    Failed(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_to_erase_is_answered() {
        let request = EraseRequest { job: JobId::from_random(1) };
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<EraseRequest>(&json).unwrap(), request);
        for reply in [EraseReply::Erased, EraseReply::Failed("it is not deleted".into())] {
            let json = serde_json::to_string(&reply).unwrap();
            assert_eq!(serde_json::from_str::<EraseReply>(&json).unwrap(), reply);
        }
    }

    #[test]
    fn a_worker_reads_its_part_of_a_stored_request() {
        let state: CancelState =
            serde_json::from_str(r#"{"v":9,"job":{"new":"form"},"cancelled":true}"#).unwrap();
        assert!(state.cancelled);
        assert!(!serde_json::from_str::<CancelState>("{}").unwrap().cancelled);
    }
}
