//! A dead letter: the message of a job that workers gave up, in the `DEAD` stream. Its headers are listed here.

use data_encoding::HEXLOWER;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::job::Job;

/// Why the job was given up, in words.
pub const REASON_HEADER: &str = "Emberline-Reason";
/// Number of attempts at the job.
pub const ATTEMPTS_HEADER: &str = "Emberline-Attempts";
/// Subject on which the job was queued.
pub const QUEUED_ON_HEADER: &str = "Emberline-Queued-On";
/// What was done to the job's prompts, as in [`Prompts::as_str`]; without it they are as they were queued.
pub const PROMPTS_HEADER: &str = "Emberline-Prompts";

/// What a worker does to the prompts of a job that it gives up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Prompts {
    /// Keeps them. Only so can the job be run again, which is what dead letters are for.
    #[default]
    Keep,
    /// Puts a SHA-256 in the place of each, which shows where they are the same.
    Hash,
    /// Removes them.
    Drop,
}

impl Prompts {
    /// Its name in options and in [`PROMPTS_HEADER`].
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Hash => "hash",
            Self::Drop => "drop",
        }
    }

    /// The payload of the dead letter of `job`. Of what was queued it leaves ids, times, and the request's
    /// numbers and switches; everything else in a request is the client's words or tokens.
    pub fn of_job(self, job: &Job) -> Vec<u8> {
        let mut letter = serde_json::to_value(job).unwrap_or_default();
        if let Some(Value::Object(request)) = letter.get_mut("request") {
            request.retain(|_, value| self.redact(value));
        }
        serde_json::to_vec(&letter).unwrap_or_default()
    }

    /// The payload of the dead letter of a message that is no job.
    pub fn of_bytes(self, payload: &[u8]) -> Vec<u8> {
        match self {
            Self::Keep => payload.to_vec(),
            Self::Hash => serde_json::to_vec(&hashed(payload)).unwrap_or_default(),
            Self::Drop => Vec::new(),
        }
    }

    /// Redacts a field of a request; whether it stays.
    fn redact(self, value: &mut Value) -> bool {
        match (self, value) {
            (Self::Keep, _) | (_, Value::Null | Value::Bool(_) | Value::Number(_)) => true,
            (Self::Drop, _) => false,
            (Self::Hash, Value::Array(values)) => {
                values.iter_mut().for_each(|value| *value = hashed(value.to_string().as_bytes()));
                true
            }
            (Self::Hash, value) => {
                *value = hashed(value.to_string().as_bytes());
                true
            }
        }
    }
}

fn hashed(bytes: &[u8]) -> Value {
    format!("sha256:{}", HEXLOWER.encode(&Sha256::digest(bytes))).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{GenerationRequest, Message, Role, SamplingOptions};
    use crate::subject::JobId;

    fn job() -> Job {
        let sampling = SamplingOptions { bad_words: vec!["secret".into()], ..SamplingOptions::default() };
        Job {
            v: 4,
            id: JobId::from_random(7),
            model: "m".into(),
            created: 1,
            deadline: 2,
            request: GenerationRequest {
                messages: ["secret", "other", "secret"].map(|text| Message::new(Role::User, text)).to_vec(),
                stop: vec!["secret".into()],
                cache_salt: Some("secret".into()),
                max_tokens: Some(9),
                sampling,
                ..GenerationRequest::default()
            },
            seed: 5,
            background: None,
            account: None,
        }
    }

    fn letter(prompts: Prompts) -> Value {
        serde_json::from_slice(&prompts.of_job(&job())).unwrap()
    }

    #[test]
    fn kept_prompts_are_the_job() {
        assert_eq!(serde_json::from_value::<Job>(letter(Prompts::Keep)).unwrap(), job());
        assert_eq!(Prompts::Keep.of_bytes(b"no job"), b"no job");
    }

    #[test]
    fn hashed_prompts_show_only_which_are_the_same() {
        let letter = letter(Prompts::Hash);
        assert!(!letter.to_string().contains("secret"), "{letter}");
        let request = &letter["request"];
        assert!(request["messages"][0].as_str().unwrap().starts_with("sha256:"));
        assert_eq!(request["messages"][0], request["messages"][2]);
        assert_ne!(request["messages"][0], request["messages"][1]);
        assert_eq!((&letter["id"], &request["max_tokens"]), (&job().id.as_str().into(), &9.into()));
        let bytes = String::from_utf8(Prompts::Hash.of_bytes(b"secret")).unwrap();
        assert!(bytes.starts_with("\"sha256:") && !bytes.contains("secret"), "{bytes}");
    }

    #[test]
    fn dropped_prompts_leave_numbers_and_switches() {
        let letter = letter(Prompts::Drop);
        assert!(!letter.to_string().contains("secret"), "{letter}");
        let request = letter["request"].as_object().unwrap();
        assert!(request.values().all(|value| value.is_number() || value.is_boolean() || value.is_null()));
        assert_eq!((&letter["seed"], &request["max_tokens"]), (&5.into(), &9.into()));
        assert_eq!(Prompts::Drop.of_bytes(b"secret"), b"");
    }
}
