//! What is kept of a request whose answer can be asked for again: by the id of a background
//! response, or by a repeat with the same `Idempotency-Key`.

use data_encoding::HEXLOWER;
use emberline_api::responses::Outline;
use emberline_protocol::job::Job;
use emberline_protocol::key::KeyId;
use emberline_protocol::stored_request::CancelState;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A request, under its first job's id in the `requests` bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`emberline_protocol::PROTOCOL_VERSION`] of the writer.
    pub v: u32,
    /// Only with this key is the answer to be had.
    pub key: KeyId,
    /// SHA-256 of the request's body, in hexadecimal.
    pub body_sha256: String,
    /// The model as the client wrote it.
    pub model: String,
    /// What was queued.
    pub job: Job,
    /// The same of each further prompt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Job>,
    /// Most tokens of a choice.
    pub max_tokens: u32,
    /// What a response says besides its output; `None` for other answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outline: Option<Outline>,
    /// The job is wanted or not.
    #[serde(flatten)]
    pub standing: CancelState,
}

/// The SHA-256 of a request's body, in hexadecimal.
pub fn body_sha256(body: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(body))
}

/// The bits of the job's id that a request with an `Idempotency-Key` has, whenever it comes.
pub fn idempotent_id(key: &KeyId, path: &str, idempotency_key: &str) -> u128 {
    // None of the first two has a line end.
    let digest = Sha256::digest(format!("{key}\n{path}\n{idempotency_key}"));
    digest.iter().take(16).fold(0, |bits, byte| (bits << 8) | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_depends_on_key_endpoint_and_idempotency_key() {
        let (one, two) = (KeyId::of_key(b"1"), KeyId::of_key(b"2"));
        let id = idempotent_id(&one, "/v1/responses", "a");
        assert_eq!(id, idempotent_id(&one, "/v1/responses", "a"));
        for other in [
            idempotent_id(&two, "/v1/responses", "a"),
            idempotent_id(&one, "/v1/completions", "a"),
            idempotent_id(&one, "/v1/responses", "b"),
        ] {
            assert_ne!(id, other);
        }
    }
}
