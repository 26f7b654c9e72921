//! The `keys` bucket.

use async_nats::Client;
use async_nats::jetstream::{self, message::PublishMessage};
use emberline_protocol::key::{self, KeyRecord, KeyState};
use emberline_protocol::streams::{self, Layout};
use emberline_protocol::subject::{self, KEYS_STREAM, KEYS_SUBJECTS};

use crate::nats::access::{AccessError, NatsAccess};
use crate::nats::jetstream_api::{self, JetStreamError};
use crate::nats::stored::{Start, Stored, each_stored};

/// All keys that there are.
pub(crate) struct Keys {
    client: Client,
}

/// A key's place in the bucket.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    subject: String,
    /// Which write made it as it is.
    revision: u64,
    pub(crate) record: KeyRecord,
}

/// A key can't be found or kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("can't make the bucket of keys: {0}")]
    Create(JetStreamError),
    #[error("the record at {subject} can't be read: {reason}; upgrade emberline")]
    Unreadable { subject: String, reason: String },
    #[error("no key has the name or id '{0}'; `emberline keys list` shows them")]
    Unknown(String),
    #[error("several keys are called '{name}': {}; give an id", ids.join(", "))]
    Ambiguous { name: String, ids: Vec<String> },
    #[error("the key was not stored: {0}")]
    NotStored(String),
}

impl Keys {
    /// Connects, and makes the bucket if it is not there.
    pub(crate) async fn open(access: &NatsAccess) -> Result<Self, KeysError> {
        let client = access.connect().await?;
        jetstream_api::ensure(&client, &streams::keys(&Layout::default()))
            .await
            .map_err(KeysError::Create)?;
        Ok(Self { client })
    }

    /// Every key, the oldest first.
    pub(crate) async fn list(&self) -> Result<Vec<Entry>, KeysError> {
        let mut stored = Vec::new();
        each_stored(&self.client, KEYS_STREAM, KEYS_SUBJECTS, Start::FIRST, |entry| stored.push(entry))
            .await?;
        let mut entries = stored.into_iter().map(Entry::try_from).collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(|entry| entry.record.created);
        Ok(entries)
    }

    /// The key with this name or id; of several with the name, the one that may be used.
    pub(crate) async fn find(&self, wanted: &str, now_ms: u64) -> Result<Entry, KeysError> {
        let named = |entry: &Entry| entry.record.id.as_str() == wanted || entry.record.name == wanted;
        let mut found = self.list().await?;
        found.retain(named);
        let active = |entry: &Entry| entry.record.state(now_ms) == KeyState::Active;
        if found.iter().any(active) {
            found.retain(active);
        }
        match (found.pop(), found.is_empty()) {
            (None, _) => Err(KeysError::Unknown(wanted.to_owned())),
            (Some(entry), true) => Ok(entry),
            (Some(last), false) => {
                let ids = found.iter().chain([&last]).map(|entry| entry.record.id.to_string()).collect();
                Err(KeysError::Ambiguous { name: wanted.to_owned(), ids })
            }
        }
    }

    /// Adds a key that was just made.
    pub(crate) async fn add(&self, secret: &str, record: &KeyRecord) -> Result<(), KeysError> {
        let subject = subject::key(&key::hash(secret.as_bytes()));
        self.put(&Entry { subject, revision: 0, record: record.clone() }).await
    }

    /// Replaces a key's record, unless somebody else has done so since it was read.
    pub(crate) async fn replace(&self, entry: &Entry) -> Result<(), KeysError> {
        self.put(entry).await
    }

    async fn put(&self, entry: &Entry) -> Result<(), KeysError> {
        let failed = |reason: String| KeysError::NotStored(reason);
        let payload = serde_json::to_vec(&entry.record).map_err(|error| failed(error.to_string()))?;
        let message =
            PublishMessage::build().payload(payload.into()).expected_last_subject_sequence(entry.revision);
        let jetstream = jetstream::new(self.client.clone());
        let stored = jetstream.send_publish(entry.subject.clone(), message).await;
        let stored = stored.map_err(|error| failed(error.to_string()))?;
        stored.await.map(drop).map_err(|error| failed(error.to_string()))
    }
}

impl TryFrom<Stored> for Entry {
    type Error = KeysError;

    fn try_from(stored: Stored) -> Result<Self, KeysError> {
        let Stored { subject, sequence, payload, .. } = stored;
        match serde_json::from_slice(&payload) {
            Ok(record) => Ok(Self { subject, revision: sequence, record }),
            Err(error) => Err(KeysError::Unreadable { subject, reason: error.to_string() }),
        }
    }
}
