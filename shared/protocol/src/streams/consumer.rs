//! The durable consumers from which workers take jobs.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::difference::{Difference, differences, to_value};
use super::nanoseconds;
use crate::lane::Lane;
use crate::subject;

/// Time without an acknowledgement after which JetStream redelivers a job.
pub const ACK_WAIT: Duration = Duration::from_millis(2500);

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
    /// 0 means as many as the stream has, even if that changes.
    pub num_replicas: u8,
}

/// The consumers of JOBS from which workers take the jobs of `model`, one for each lane.
pub fn consumers(model: &str) -> [Consumer; 4] {
    Lane::ALL.map(|lane| Consumer::of_jobs(model, lane))
}

impl Consumer {
    /// The fields that `emberline nats setup` compares.
    pub const FIELDS: [&str; 5] =
        ["filter_subject", "ack_policy", "ack_wait", "max_deliver", "max_ack_pending"];

    /// The consumer of JOBS from which workers take the jobs of `model` in one lane.
    pub fn of_jobs(model: &str, lane: Lane) -> Self {
        Self {
            durable_name: subject::jobs_consumer(model, lane),
            filter_subject: subject::jobs(model, lane),
            deliver_policy: "all",
            ack_policy: "explicit",
            replay_policy: "instant",
            ack_wait: ACK_WAIT,
            // Unlimited: a worker ends a job that repeatedly kills workers, as the log shows, so that the
            // client gets an error.
            max_deliver: -1,
            max_ack_pending: 100_000,
            num_replicas: 0,
        }
    }

    /// Like [`Stream::incompatible_fields`](super::Stream::incompatible_fields).
    pub fn incompatible_fields(&self, found: &Value) -> Vec<Difference> {
        self.differences(found, &["filter_subject", "ack_policy"])
    }

    /// The fields, out of `fields`, that differ in `found`, the configuration of an existing consumer.
    pub fn differences(&self, found: &Value, fields: &[&'static str]) -> Vec<Difference> {
        differences(found, &to_value(self), fields)
    }

    /// The configuration in JSON.
    pub fn to_json(&self) -> Value {
        to_value(self)
    }
}
