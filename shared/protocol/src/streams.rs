//! The configurations of Emberline's streams, buckets and consumers, in the form that JetStream's API
//! accepts.
//!
//! [`streams`] makes the streams and buckets for a [`Layout`]. `emberline nats setup` creates and changes them;
//! workers only check them for what the protocol requires ([`Stream::incompatible_fields`]).

mod consumer;
mod definitions;
mod difference;

use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::Value;

pub use consumer::{ACK_WAIT, Consumer, consumers};
pub use definitions::{keys, streams};
pub use difference::{Difference, readable};

use crate::subject;
use difference::{differences, to_value};

const MIB: i64 = 1 << 20;

/// The settings that a deployment chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Number of servers that store each message: 1, 3 or 5.
    pub replicas: u8,
    /// Storage of the streams whose messages need not survive a restart of nats-server. In memory on a single
    /// server, the streams themselves don't survive it either, and have to be set up again.
    pub volatile: Storage,
    /// Largest number of jobs of one model and lane that may wait or run.
    pub queue_jobs: i64,
    /// Largest size of all queued jobs, in bytes.
    pub queue_bytes: i64,
    /// Largest size of the event logs of running jobs, in bytes.
    pub events_bytes: i64,
    /// Largest size of the event logs that outlast their clients, in bytes.
    pub kept_bytes: i64,
    /// Largest size of the usage events, in bytes. When they fill it, no job's charge is stored and none ends.
    pub usage_bytes: i64,
    /// Age at which usage events are removed.
    pub usage_age: Duration,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            replicas: 1,
            volatile: Storage::File,
            queue_jobs: 1000,
            queue_bytes: 512 * MIB,
            events_bytes: 256 * MIB,
            kept_bytes: 512 * MIB,
            usage_bytes: 1024 * MIB,
            usage_age: definitions::USAGE_AGE,
        }
    }
}

/// Where messages are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the names are JetStream's
pub enum Storage {
    File,
    Memory,
}

/// When messages are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Retention {
    /// When the stream exceeds a limit on age, number or size.
    Limits,
    /// When they are acknowledged, and when the stream exceeds a limit.
    WorkQueue,
}

/// What a full stream does with a new message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Discard {
    /// Accepts it and removes the oldest.
    Old,
    /// Refuses it.
    New,
}

/// A stream's configuration, in the names of JetStream's API. A bucket is a stream, too (NATS ADR-8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // the names are JetStream's
pub struct Stream {
    pub name: &'static str,
    pub description: &'static str,
    pub subjects: &'static [&'static str],
    pub retention: Retention,
    pub storage: Storage,
    pub discard: Discard,
    pub discard_new_per_subject: bool,
    pub max_consumers: i64,
    pub max_msgs: i64,
    pub max_msgs_per_subject: i64,
    pub max_bytes: i64,
    #[serde(serialize_with = "nanoseconds")]
    pub max_age: Duration,
    #[serde(serialize_with = "nanoseconds")]
    pub duplicate_window: Duration,
    pub allow_direct: bool,
    pub allow_rollup_hdrs: bool,
    pub deny_delete: bool,
    pub deny_purge: bool,
    pub allow_msg_ttl: bool,
    pub allow_msg_counter: bool,
    pub num_replicas: u8,
    /// Whether [`Layout::volatile`] decides its storage.
    #[serde(skip)]
    pub volatile: bool,
}

fn nanoseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

impl Stream {
    /// The fields in which `found`, the configuration of an existing stream, violates what the protocol
    /// requires. The operator may choose limits, storage and replicas.
    pub fn incompatible_fields(&self, found: &Value) -> Vec<Difference> {
        let mut fields = vec![
            "subjects",
            "retention",
            "discard",
            "discard_new_per_subject",
            "allow_direct",
            "allow_msg_counter",
            // Where one is allowed, whoever may publish can remove messages.
            "allow_rollup_hdrs",
        ];
        // JetStream can't take these back, so what an operator denies beyond them stays denied.
        if self.deny_delete {
            fields.push("deny_delete");
        }
        if self.deny_purge {
            fields.push("deny_purge");
        }
        if self.allow_msg_ttl {
            fields.push("allow_msg_ttl");
        }
        if self.max_msgs_per_subject == 1 {
            fields.push("max_msgs_per_subject");
        }
        let mut unfit = self.differences(found, &fields);
        let age = self.differences(found, &["max_age"]);
        unfit.extend(age.into_iter().filter(|age| self.requires_age(age)));
        if self.discard_new_per_subject {
            // Without a bound on each subject, the stream never refuses a message.
            let bound = self.differences(found, &["max_msgs_per_subject"]);
            unfit.extend(
                bound.into_iter().filter(|bound| bound.found.as_i64().is_none_or(|bound| bound <= 0)),
            );
        }
        unfit
    }

    /// Whether this difference of `max_age` violates the protocol: heartbeats must expire on time, and no
    /// other message may expire before it is last needed.
    fn requires_age(&self, age: &Difference) -> bool {
        let shorter = match (age.found.as_u64(), age.wanted.as_u64()) {
            (Some(0), _) => false,
            (_, Some(0)) => true,
            (found, wanted) => found < wanted,
        };
        match self.name {
            subject::WORKERS_STREAM => true,
            // The operator chooses how long these are kept.
            subject::USAGE_STREAM | subject::DEAD_STREAM => false,
            _ => shorter,
        }
    }

    /// The fields, out of `fields`, that differ in `found`, the configuration of an existing stream.
    pub fn differences(&self, found: &Value, fields: &[&'static str]) -> Vec<Difference> {
        differences(found, &to_value(self), fields)
    }

    /// The configuration in JSON.
    pub fn to_json(&self) -> Value {
        to_value(self)
    }
}

#[cfg(test)]
#[path = "streams_tests.rs"]
mod tests;
