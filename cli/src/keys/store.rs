//! The `keys` bucket in NATS.

use async_nats::jetstream::message::PublishMessage;
use emberline_protocol::key::{self, KeyRecord, KeyState};
use emberline_protocol::read_index::RecordBucket;
use emberline_protocol::streams::{self, Layout};
use emberline_protocol::subject::{self, KEYS_STREAM, KEYS_SUBJECTS};

use crate::nats::access::{AccessError, NatsAccess, NatsConnection};
use crate::nats::jetstream_api::{self, JetStreamError};
use crate::nats::stored::{Start, StoredMessage, each_stored};

/// The bucket of all keys.
pub(crate) struct KeyStore {
    client: NatsConnection,
}

/// A key's record and its place in the bucket.
#[derive(Debug, Clone)]
pub(crate) struct KeyEntry {
    subject: String,
    /// The sequence number of the write that stored this record; 0 before the first.
    revision: u64,
    pub(crate) record: KeyRecord,
}

/// Why a key can't be found or stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyStoreError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("can't create the bucket of keys: {0}")]
    Create(JetStreamError),
    #[error("the record at {subject} can't be read: {reason}; upgrade emberline")]
    Unreadable { subject: String, reason: String },
    #[error("no key has the name or id '{0}'; `emberline keys list` shows them")]
    Unknown(String),
    #[error("several keys have the name '{name}': {}; give an id", ids.join(", "))]
    Ambiguous { name: String, ids: Vec<String> },
    #[error("the key was not stored: {0}")]
    NotStored(String),
}

impl KeyStore {
    /// Connects, and creates the bucket if it does not exist.
    pub(crate) async fn open(access: &NatsAccess) -> Result<Self, KeyStoreError> {
        let client = access.connect().await?;
        jetstream_api::ensure(&client, &streams::keys(&Layout::default()))
            .await
            .map_err(KeyStoreError::Create)?;
        Ok(Self { client })
    }

    /// All keys, the oldest first.
    pub(crate) async fn list(&self) -> Result<Vec<KeyEntry>, KeyStoreError> {
        let mut stored = Vec::new();
        each_stored(&self.client, KEYS_STREAM, KEYS_SUBJECTS, Start::FIRST, |entry| stored.push(entry))
            .await?;
        // No key's: whoever may ask there could have stored something.
        stored.retain(|entry| entry.subject != RecordBucket::Keys.index_subject());
        let mut entries = stored.into_iter().map(KeyEntry::try_from).collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(|entry| entry.record.created);
        Ok(entries)
    }

    /// The key with this name or id; of several with the name, the active one.
    pub(crate) async fn find(&self, wanted: &str, now_ms: u64) -> Result<KeyEntry, KeyStoreError> {
        let named = |entry: &KeyEntry| entry.record.id.as_str() == wanted || entry.record.name == wanted;
        let mut found = self.list().await?;
        found.retain(named);
        let active = |entry: &KeyEntry| entry.record.state(now_ms) == KeyState::Active;
        if found.iter().any(active) {
            found.retain(active);
        }
        match (found.pop(), found.is_empty()) {
            (None, _) => Err(KeyStoreError::Unknown(wanted.to_owned())),
            (Some(entry), true) => Ok(entry),
            (Some(last), false) => {
                let ids = found.iter().chain([&last]).map(|entry| entry.record.id.to_string()).collect();
                Err(KeyStoreError::Ambiguous { name: wanted.to_owned(), ids })
            }
        }
    }

    /// Stores a new key.
    pub(crate) async fn add(&self, secret: &str, record: &KeyRecord) -> Result<(), KeyStoreError> {
        let subject = subject::key(&key::hash(secret.as_bytes()));
        self.put(&KeyEntry { subject, revision: 0, record: record.clone() }).await
    }

    /// Replaces a key's record; an error if another writer has replaced it since it was read.
    pub(crate) async fn replace(&self, entry: &KeyEntry) -> Result<(), KeyStoreError> {
        self.put(entry).await
    }

    async fn put(&self, entry: &KeyEntry) -> Result<(), KeyStoreError> {
        let failed = |reason: String| KeyStoreError::NotStored(reason);
        let payload = serde_json::to_vec(&entry.record).map_err(|error| failed(error.to_string()))?;
        let message =
            PublishMessage::build().payload(payload.into()).expected_last_subject_sequence(entry.revision);
        let subject = self.client.subject_in_domain(&entry.subject);
        let stored = self.client.jetstream().send_publish(subject, message).await;
        let stored = stored.map_err(|error| failed(error.to_string()))?;
        stored.await.map(drop).map_err(|error| failed(error.to_string()))
    }
}

impl TryFrom<StoredMessage> for KeyEntry {
    type Error = KeyStoreError;

    fn try_from(stored: StoredMessage) -> Result<Self, KeyStoreError> {
        let StoredMessage { subject, sequence, payload, .. } = stored;
        match serde_json::from_slice(&payload) {
            Ok(record) => Ok(Self { subject, revision: sequence, record }),
            Err(error) => Err(KeyStoreError::Unreadable { subject, reason: error.to_string() }),
        }
    }
}
