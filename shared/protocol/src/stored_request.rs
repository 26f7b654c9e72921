//! What a worker reads of a request that is stored because its answer can be asked for again. The rest
//! of it is the function's own.

use serde::{Deserialize, Serialize};

/// Whether the job is still wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// A worker that takes the job ends it at once.
    #[serde(default)]
    pub cancelled: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_reads_its_part_of_a_stored_request() {
        let standing: Standing =
            serde_json::from_str(r#"{"v":9,"job":{"new":"form"},"cancelled":true}"#).unwrap();
        assert!(standing.cancelled);
        assert!(!serde_json::from_str::<Standing>("{}").unwrap().cancelled);
    }
}
