//! Messages that say of which protocol version they are.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::PROTOCOL_VERSION;
use crate::malformed::Malformed;

/// A message that is not what was expected, in this version.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It has another version.
    #[error("the message has protocol version {0}, this program has {PROTOCOL_VERSION}")]
    Version(u32),
    /// It is something else.
    #[error("the message can't be read: {0}")]
    Malformed(Malformed),
}

/// Reads a message of this version; `version` is the field that says of which it is.
pub(crate) fn read<T: DeserializeOwned>(
    payload: &[u8],
    version: impl FnOnce(&T) -> u32,
) -> Result<T, Unreadable> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    match serde_json::from_slice::<T>(payload) {
        Ok(message) => match version(&message) {
            PROTOCOL_VERSION => Ok(message),
            other => Err(Unreadable::Version(other)),
        },
        // A message of another version may look different.
        Err(error) => match serde_json::from_slice(payload) {
            Ok(Version { v }) if v != PROTOCOL_VERSION => Err(Unreadable::Version(v)),
            _ => Err(Unreadable::Malformed(error.into())),
        },
    }
}
