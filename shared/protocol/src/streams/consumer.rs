//! The durable consumers from which workers take jobs.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::difference::{Difference, differences, to_value};
use super::nanoseconds;
use crate::lane::Lane;
use crate::subject;

/// A job whose worker says nothing for this long is given to another.
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
