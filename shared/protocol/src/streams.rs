//! The streams, buckets and consumers that Emberline lives in, as data: what JetStream's API takes.
//!
//! [`streams`] makes all of them for a [`Layout`]. Workers create what is missing, with the layout
//! of a single machine, and otherwise check only what the protocol rests on ([`Stream::unfit`]);
//! `emberline nats setup` also changes what is there.

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

/// What a deployment chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Servers that hold each message: 1, 3 or 5.
    pub replicas: u8,
    /// Where that lies which need not outlive a restart of nats-server.
    pub volatile: Storage,
    /// Jobs of one model and lane that may wait or run.
    pub queue_jobs: i64,
    /// Bytes of all of them.
    pub queue_bytes: i64,
    /// Bytes of event logs of running jobs.
    pub events_bytes: i64,
    /// Bytes of event logs that outlast their clients.
    pub kept_bytes: i64,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            replicas: 1,
            volatile: Storage::Memory,
            queue_jobs: 1000,
            queue_bytes: 512 * MIB,
            events_bytes: 256 * MIB,
            kept_bytes: 512 * MIB,
        }
    }
}

/// Where messages lie.
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
    /// When they are too old or too many.
    Limits,
    /// When they have been acknowledged, too.
    WorkQueue,
}

/// What becomes of a message for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Discard {
    /// The oldest makes room.
    Old,
    /// It is refused.
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
    pub allow_msg_ttl: bool,
    pub allow_msg_counter: bool,
    pub num_replicas: u8,
    /// Whether its storage is the layout's choice.
    #[serde(skip)]
    pub volatile: bool,
}

fn nanoseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

impl Stream {
    /// Where `found`, a stream's configuration, is not what the protocol rests on. Limits, storage and
    /// replicas are the operator's.
    pub fn unfit(&self, found: &Value) -> Vec<Difference> {
        let mut fields = vec![
            "subjects",
            "retention",
            "discard",
            "discard_new_per_subject",
            "allow_direct",
            "allow_msg_counter",
        ];
        if self.allow_msg_ttl {
            fields.push("allow_msg_ttl");
        }
        if self.max_msgs_per_subject == 1 {
            fields.push("max_msgs_per_subject");
        }
        let mut unfit = self.differences(found, &fields);
        let age = self.differences(found, &["max_age"]);
        unfit.extend(age.into_iter().filter(|age| self.rests_on(age)));
        if self.discard_new_per_subject {
            // Without a bound there is nothing that it could refuse by.
            let bound = self.differences(found, &["max_msgs_per_subject"]);
            unfit.extend(
                bound.into_iter().filter(|bound| bound.found.as_i64().is_none_or(|bound| bound <= 0)),
            );
        }
        unfit
    }

    /// Whether messages must not have another age: heartbeats are gone in time, and nothing that is
    /// needed goes before its time.
    fn rests_on(&self, age: &Difference) -> bool {
        let shorter = match (age.found.as_u64(), age.wanted.as_u64()) {
            (Some(0), _) => false,
            (_, Some(0)) => true,
            (found, wanted) => found < wanted,
        };
        match self.name {
            subject::WORKERS_STREAM => true,
            // How long people want to look back is their choice.
            subject::USAGE_STREAM | subject::DEAD_STREAM => false,
            _ => shorter,
        }
    }

    /// Which of these fields are different in `found`, a stream's configuration.
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
