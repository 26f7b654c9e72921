//! The part of a stored request that a worker reads. The function stores a request in the `requests` bucket
//! if its answer can be fetched again; all other fields are private to the function.

use serde::{Deserialize, Serialize};

/// Whether the job is still wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelState {
    /// A worker that takes the job ends it at once.
    #[serde(default)]
    pub cancelled: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_reads_its_part_of_a_stored_request() {
        let state: CancelState =
            serde_json::from_str(r#"{"v":9,"job":{"new":"form"},"cancelled":true}"#).unwrap();
        assert!(state.cancelled);
        assert!(!serde_json::from_str::<CancelState>("{}").unwrap().cancelled);
    }
}
