//! API keys: the records in the `keys` bucket, and the hash that identifies a key.

use std::fmt;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The SHA-256 that identifies a key.
pub fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// A key's public name: the first 16 hexadecimal digits of its SHA-256. Safe in subjects.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId(String);

/// A string that is not a key's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a key's id is 16 lower-case hexadecimal digits")]
pub struct InvalidKeyId;

impl KeyId {
    /// The id of the key whose SHA-256 this is.
    pub fn of_hash(hash: &[u8; 32]) -> Self {
        let (first, _) = hash.split_at(8);
        Self(HEXLOWER.encode(first))
    }

    /// The id of a key.
    pub fn of_key(key: &[u8]) -> Self {
        Self::of_hash(&hash(key))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for KeyId {
    type Error = InvalidKeyId;

    fn try_from(id: String) -> Result<Self, InvalidKeyId> {
        let decoded = HEXLOWER.decode(id.as_bytes());
        if decoded.is_ok_and(|bytes| bytes.len() == 8) { Ok(Self(id)) } else { Err(InvalidKeyId) }
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key's entry in the `keys` bucket, under its full SHA-256. The key itself is not stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// [`crate::PROTOCOL_VERSION`] of the writer.
    pub v: u32,
    /// The key's id.
    pub id: KeyId,
    /// A name for people.
    pub name: String,
    /// When it was created, in Unix milliseconds.
    pub created: u64,
    /// The key's last four characters, by which its owner recognises it.
    pub last_four: String,
    /// The time from which the key is refused, in Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// When it was revoked, in Unix milliseconds. A revoked key is refused whatever the reader's clock says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<u64>,
    /// Models that it may use, by their own names or by aliases; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
    /// Its rate limits.
    #[serde(default)]
    pub limits: KeyLimits,
}

/// Whether a key is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// It is valid.
    Active,
    /// Its expiry time has passed.
    Expired,
    /// It was revoked.
    Revoked,
}

impl KeyRecord {
    /// The key's state at `now_ms`, in Unix milliseconds.
    pub fn state(&self, now_ms: u64) -> KeyState {
        if self.revoked.is_some() {
            KeyState::Revoked
        } else if self.expires.is_some_and(|expires| expires <= now_ms) {
            KeyState::Expired
        } else {
            KeyState::Active
        }
    }
}

/// A key's limits; `None` means unlimited, if nothing else is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyLimits {
    /// Requests in any 60 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u64>,
    /// Requests in any 60 minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_hour: Option<u64>,
    /// Requests in any 24 hours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_day: Option<u64>,
    /// Tokens of prompts and answers in any 60 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// Tokens of prompts and answers in any 24 hours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_day: Option<u64>,
    /// Jobs that may wait or run at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jobs_at_once: Option<u64>,
    /// Bytes of requests that are stored so that their answers can be asked for again; `None` means
    /// [`DEFAULT_STORED_BYTES`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,
}

/// Bytes of stored requests that a key may have: a sixteenth of the bucket that holds those of all keys.
pub const DEFAULT_STORED_BYTES: u64 = 16 << 20;

impl KeyLimits {
    /// Whether it sets no limit.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }

    /// Parses a list such as `requests_per_minute=60,jobs_at_once=4`; the empty list sets no limit.
    pub fn parse(list: &str) -> Result<Self, InvalidLimit> {
        let mut limits = Self::default();
        for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let invalid = || InvalidLimit(entry.to_owned());
            let (name, value) = entry.split_once('=').ok_or_else(invalid)?;
            let limit = match name.trim() {
                "requests_per_minute" => &mut limits.requests_per_minute,
                "requests_per_hour" => &mut limits.requests_per_hour,
                "requests_per_day" => &mut limits.requests_per_day,
                "tokens_per_minute" => &mut limits.tokens_per_minute,
                "tokens_per_day" => &mut limits.tokens_per_day,
                "jobs_at_once" => &mut limits.jobs_at_once,
                "stored_bytes" => &mut limits.stored_bytes,
                _ => return Err(invalid()),
            };
            let value = value.trim().parse().map_err(|_| invalid())?;
            *limit = Some(value).filter(|value| (1..=MAX_LIMIT).contains(value));
            if limit.is_none() {
                return Err(invalid());
            }
        }
        Ok(limits)
    }
}

/// The highest limit: more than any machine computes in a day, and too low for sums to overflow.
pub const MAX_LIMIT: u64 = 1_000_000_000_000;

/// A list entry that is not a limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not NAME=NUMBER with a number from 1 to {MAX_LIMIT} and one of the names requests_per_minute, requests_per_hour, requests_per_day, tokens_per_minute, tokens_per_day, jobs_at_once, stored_bytes"
)]
pub struct InvalidLimit(String);

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> KeyRecord {
        KeyRecord {
            v: 2,
            id: KeyId::of_key(b"abc"),
            name: "n".into(),
            created: 5,
            last_four: "wxyz".into(),
            expires: Some(100),
            revoked: None,
            models: None,
            limits: KeyLimits { jobs_at_once: Some(3), ..KeyLimits::default() },
        }
    }

    #[test]
    fn a_key_is_known_by_its_hash() {
        assert_eq!(record().id.as_str(), "ba7816bf8f01cfea");
        assert!(crate::subject::key(&hash(b"abc")).starts_with("$KV.keys.ba7816bf8f01cfea"));
        assert!(KeyId::try_from("BA7816BF8F01CFEA".to_owned()).is_err());
    }

    #[test]
    fn a_key_ends_at_its_time_or_when_it_is_taken_back() {
        let record = record();
        assert_eq!((record.state(99), record.state(100)), (KeyState::Active, KeyState::Expired));
        let revoked = KeyRecord { revoked: Some(u64::MAX), ..record };
        assert_eq!(revoked.state(0), KeyState::Revoked);
    }

    #[test]
    fn a_record_is_short_and_a_shorter_one_is_read() {
        let json = serde_json::to_string(&record()).unwrap();
        assert!(!json.contains("revoked") && json.ends_with(r#""limits":{"jobs_at_once":3}}"#), "{json}");
        assert_eq!(serde_json::from_str::<KeyRecord>(&json).unwrap(), record());
        let least = r#"{"v":1,"id":"ba7816bf8f01cfea","name":"","created":0,"last_four":""}"#;
        assert!(serde_json::from_str::<KeyRecord>(least).unwrap().limits.is_unlimited());
    }

    #[test]
    fn limits_are_read_and_a_wrong_one_is_named() {
        let limits = KeyLimits::parse(" requests_per_minute = 60, tokens_per_day=5,stored_bytes=9,").unwrap();
        assert_eq!((limits.requests_per_minute, limits.tokens_per_day), (Some(60), Some(5)));
        assert_eq!(limits.stored_bytes, Some(9));
        assert!(KeyLimits::parse("").unwrap().is_unlimited());
        for bad in ["requests=1", "jobs_at_once", "jobs_at_once=0", "jobs_at_once=-1", "tokens_per_day=1e3"] {
            assert!(KeyLimits::parse(bad).unwrap_err().to_string().contains(bad), "{bad}");
        }
    }
}
