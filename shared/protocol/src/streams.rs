//! The streams, buckets and consumers that Emberline lives in, as data: what JetStream's API takes.
//!
//! [`streams`] makes all of them for a [`Layout`]. Workers create what is missing, with the layout
//! of a single machine, and otherwise check only what the protocol rests on ([`Stream::unfit`]);
//! `emberline nats setup` also changes what is there.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::counter;
use crate::heartbeat::HEARTBEAT_TTL_S;
use crate::lane::Lane;
use crate::subject;

/// A job whose worker says nothing for this long is given to another.
pub const ACK_WAIT: Duration = Duration::from_millis(2500);

const MIB: i64 = 1 << 20;
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Above the longest deadline of a job, which is a day.
const JOB_AGE: Duration = Duration::from_secs(25 * 60 * 60);
/// Above the longest deadline and the longest time that an answer is kept after it, another day.
const KEPT_AGE: Duration = Duration::from_secs(49 * 60 * 60);

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

/// All streams and buckets.
pub fn streams(layout: &Layout) -> [Stream; 10] {
    [
        jobs(layout),
        events(layout),
        kept(layout),
        dead(layout),
        requests(layout),
        workers(layout),
        keys(layout),
        limits(layout),
        long_limits(layout),
        usage(layout),
    ]
}

/// A log on disk that forgets its oldest messages.
fn log(layout: &Layout) -> Stream {
    Stream {
        name: "",
        description: "",
        subjects: &[],
        retention: Retention::Limits,
        storage: Storage::File,
        discard: Discard::Old,
        discard_new_per_subject: false,
        max_consumers: -1,
        max_msgs: -1,
        max_msgs_per_subject: -1,
        max_bytes: -1,
        max_age: Duration::ZERO,
        duplicate_window: 2 * MINUTE,
        allow_direct: true,
        allow_rollup_hdrs: false,
        deny_delete: false,
        allow_msg_ttl: false,
        allow_msg_counter: false,
        num_replicas: layout.replicas,
        volatile: false,
    }
}

/// The same for what need not outlive a restart.
fn volatile(layout: &Layout) -> Stream {
    Stream { storage: layout.volatile, volatile: true, ..log(layout) }
}

/// A key-value bucket without history.
fn bucket(stream: Stream) -> Stream {
    Stream {
        discard: Discard::New,
        max_msgs_per_subject: 1,
        allow_rollup_hdrs: true,
        deny_delete: true,
        ..stream
    }
}

/// A message with an increment becomes the sum.
fn counters(stream: Stream) -> Stream {
    Stream { allow_msg_counter: true, max_msgs_per_subject: 1, ..stream }
}

/// Refuses what there is no room for, so that no job that was acknowledged is forgotten.
fn jobs(layout: &Layout) -> Stream {
    Stream {
        name: subject::JOBS_STREAM,
        description: "Emberline: jobs that wait or run",
        subjects: &[subject::JOBS_SUBJECTS],
        retention: Retention::WorkQueue,
        discard: Discard::New,
        discard_new_per_subject: true,
        max_msgs: layout.queue_jobs.saturating_mul(10),
        max_msgs_per_subject: layout.queue_jobs,
        max_bytes: layout.queue_bytes,
        max_age: JOB_AGE,
        allow_direct: false,
        ..log(layout)
    }
}

/// Each event says how long it is kept: as long as its job may run.
fn events(layout: &Layout) -> Stream {
    Stream {
        name: subject::EVENTS_STREAM,
        description: "Emberline: event logs of jobs",
        subjects: &[subject::EVENTS_SUBJECTS],
        max_bytes: layout.events_bytes,
        max_age: JOB_AGE,
        allow_msg_ttl: true,
        ..volatile(layout)
    }
}

/// On disk, so that a restart of nats-server loses no answer that was promised.
fn kept(layout: &Layout) -> Stream {
    Stream {
        name: subject::KEPT_STREAM,
        description: "Emberline: event logs that outlast their clients",
        subjects: &[subject::KEPT_SUBJECTS],
        max_bytes: layout.kept_bytes,
        max_age: KEPT_AGE,
        allow_msg_ttl: true,
        ..log(layout)
    }
}

fn dead(layout: &Layout) -> Stream {
    Stream {
        name: subject::DEAD_STREAM,
        description: "Emberline: jobs that were given up",
        subjects: &[subject::DEAD_SUBJECTS],
        max_bytes: 256 * MIB,
        max_age: 7 * DAY,
        duplicate_window: HOUR,
        ..log(layout)
    }
}

fn requests(layout: &Layout) -> Stream {
    bucket(Stream {
        name: subject::REQUESTS_STREAM,
        description: "Emberline: requests whose answers can be asked for again",
        subjects: &[subject::REQUESTS_SUBJECTS],
        max_bytes: 256 * MIB,
        max_age: KEPT_AGE,
        allow_msg_ttl: true,
        ..log(layout)
    })
}

fn workers(layout: &Layout) -> Stream {
    let ttl = Duration::from_secs(HEARTBEAT_TTL_S);
    bucket(Stream {
        name: subject::WORKERS_STREAM,
        description: "Emberline: heartbeats of workers",
        subjects: &[subject::WORKERS_SUBJECTS],
        max_bytes: 16 * MIB,
        max_age: ttl,
        duplicate_window: ttl,
        ..volatile(layout)
    })
}

/// The bucket of API keys, which `emberline keys` creates, too.
pub fn keys(layout: &Layout) -> Stream {
    bucket(Stream {
        name: subject::KEYS_STREAM,
        description: "Emberline: API keys",
        subjects: &[subject::KEYS_SUBJECTS],
        max_bytes: 64 * MIB,
        ..log(layout)
    })
}

/// Counters of minutes, which may be lost: they live for as long as a correction may come late.
fn limits(layout: &Layout) -> Stream {
    counters(Stream {
        name: counter::LIMITS_STREAM,
        description: "Emberline: counters of minutes",
        subjects: &counter::LIMITS_SUBJECTS,
        max_bytes: 64 * MIB,
        max_age: 5 * MINUTE,
        duplicate_window: 5 * MINUTE,
        ..volatile(layout)
    })
}

/// Counters of hours, of days and of running jobs: two days, the current one and the one before.
fn long_limits(layout: &Layout) -> Stream {
    counters(Stream {
        name: counter::LONG_LIMITS_STREAM,
        description: "Emberline: counters of hours, days and running jobs",
        subjects: &counter::LONG_LIMITS_SUBJECTS,
        max_bytes: 256 * MIB,
        max_age: 49 * HOUR,
        duplicate_window: HOUR,
        ..log(layout)
    })
}

/// Thirteen months of jobs, so that a month can be compared with that of the year before.
fn usage(layout: &Layout) -> Stream {
    Stream {
        name: subject::USAGE_STREAM,
        description: "Emberline: what jobs have used",
        subjects: &[subject::USAGE_SUBJECTS],
        max_bytes: 1024 * MIB,
        max_age: 400 * DAY,
        // A job that is delivered again ends within its own time.
        duplicate_window: HOUR,
        ..log(layout)
    }
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

/// A durable pull consumer's configuration, in the names of JetStream's API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // the names are JetStream's
pub struct Consumer {
    pub durable_name: String,
    pub filter_subject: String,
    pub deliver_policy: &'static str,
    pub ack_policy: &'static str,
    pub replay_policy: &'static str,
    #[serde(serialize_with = "nanoseconds")]
    pub ack_wait: Duration,
    pub max_deliver: i64,
    pub max_ack_pending: i64,
    /// 0: as many as the stream has, also when that changes.
    pub num_replicas: u8,
}

/// The consumers of JOBS from which all workers that serve `model` take its jobs, lane by lane.
pub fn consumers(model: &str) -> [Consumer; 4] {
    Lane::ALL.map(|lane| Consumer::of_jobs(model, lane))
}

impl Consumer {
    /// What makes it what it is.
    pub const FIELDS: [&str; 5] =
        ["filter_subject", "ack_policy", "ack_wait", "max_deliver", "max_ack_pending"];

    /// The consumer of JOBS from which all workers of `model` take the jobs in one lane.
    pub fn of_jobs(model: &str, lane: Lane) -> Self {
        Self {
            durable_name: subject::jobs_consumer(model, lane),
            filter_subject: subject::jobs(model, lane),
            deliver_policy: "all",
            ack_policy: "explicit",
            replay_policy: "instant",
            ack_wait: ACK_WAIT,
            // A job that kills its workers is ended by one that sees it in the log, so that its client
            // is told.
            max_deliver: -1,
            max_ack_pending: 100_000,
            num_replicas: 0,
        }
    }

    /// As [`Stream::unfit`].
    pub fn unfit(&self, found: &Value) -> Vec<Difference> {
        self.differences(found, &["filter_subject", "ack_policy"])
    }

    /// Which of these fields are different in `found`, a consumer's configuration.
    pub fn differences(&self, found: &Value, fields: &[&'static str]) -> Vec<Difference> {
        differences(found, &to_value(self), fields)
    }

    /// The configuration in JSON.
    pub fn to_json(&self) -> Value {
        to_value(self)
    }
}

/// A field that is not as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its name in JetStream's API.
    pub field: &'static str,
    /// What it is.
    pub found: Value,
    /// What it is to be.
    pub wanted: Value,
}

impl Difference {
    /// What it is, as people write it.
    pub fn found(&self) -> String {
        readable(self.field, &self.found)
    }

    /// What it is to be, as people write it.
    pub fn wanted(&self) -> String {
        readable(self.field, &self.wanted)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.field, self.found(), self.wanted())
    }
}

fn differences(found: &Value, wanted: &Value, fields: &[&'static str]) -> Vec<Difference> {
    let difference = |&field: &&'static str| {
        let wanted = wanted.get(field)?.clone();
        // The API leaves out what is zero, false or empty.
        let found =
            found.get(field).filter(|found| !found.is_null()).cloned().unwrap_or_else(|| zero(&wanted));
        (found != wanted).then_some(Difference { field, found, wanted })
    };
    fields.iter().filter_map(difference).collect()
}

fn zero(like: &Value) -> Value {
    match like {
        Value::Bool(_) => false.into(),
        Value::Number(_) => 0.into(),
        Value::String(_) => "".into(),
        Value::Array(_) => Vec::<Value>::new().into(),
        Value::Object(_) | Value::Null => Value::Null,
    }
}

/// A field's value as people write it: `256 MiB`, `25 h`, `unlimited`.
pub fn readable(field: &str, value: &Value) -> String {
    let unlimited = || "unlimited".to_owned();
    match (field, value.as_i64()) {
        ("max_bytes" | "max_msgs" | "max_msgs_per_subject", Some(..=0)) | ("max_age", Some(0)) => unlimited(),
        ("max_bytes", Some(bytes)) => {
            in_units(bytes, &[(1024 * MIB, "GiB"), (MIB, "MiB"), (1024, "KiB"), (1, "B")])
        }
        ("max_age" | "duplicate_window" | "ack_wait", Some(nanoseconds)) => in_units(
            nanoseconds / 1_000_000,
            &[(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s"), (1, "ms")],
        ),
        _ => match value {
            Value::String(text) => text.clone(),
            Value::Array(list) => {
                list.iter().map(|entry| readable(field, entry)).collect::<Vec<_>>().join(",")
            }
            other => other.to_string(),
        },
    }
}

/// In the largest unit of which it is a whole number.
fn in_units(number: i64, units: &[(i64, &str)]) -> String {
    let fitting = units.iter().find(|(unit, _)| number != 0 && number % unit == 0);
    fitting.map_or_else(|| number.to_string(), |(unit, name)| format!("{} {name}", number / unit))
}

/// Can't fail: string keys, and no number that is none.
fn to_value(config: &impl Serialize) -> Value {
    serde_json::to_value(config).unwrap_or_default()
}

#[cfg(test)]
#[path = "streams_tests.rs"]
mod tests;
