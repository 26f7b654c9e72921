//! What all workers of a model can do together, summed up from their heartbeats by one of them.
//!
//! So whoever wants to know what is served reads one message for each model, however many workers there are. The
//! worker that keeps a model's summary reads the heartbeats of that model's workers and of no others.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::PROTOCOL_VERSION;
use crate::heartbeat::{Heartbeat, ModelState, ServedModel};
use crate::versioned::{self, Unreadable};

/// How often a summary is written, and how often the model's other workers look whether it is, in seconds.
pub const SUMMARY_INTERVAL_S: u64 = 1;
/// A summary that is not written for so many seconds has lost its keeper: another worker takes its place. Together
/// with [`SUMMARY_INTERVAL_S`] that is well below [`crate::heartbeat::HEARTBEAT_TTL_S`], after which it is gone.
pub const KEEPER_TIMEOUT_S: u64 = 3;

/// Larger than any real pace: JSON has no infinity.
const MAX_PACE: f64 = 1e15;

/// A model's entry in the `workers` bucket ([`crate::subject::model_summary`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSummary {
    /// [`crate::PROTOCOL_VERSION`] of the writer, and of the workers that count.
    pub v: u32,
    /// Id of the worker that keeps it up to date; `None` if that one has left, and any other may go on.
    pub keeper: Option<String>,
    /// The model. Its context is the shortest that any worker has, and its time the earliest.
    pub model: ServedModel,
    /// Number of workers that take jobs for it.
    pub workers: u32,
    /// Number of its jobs that can run at the same time.
    pub slots: u64,
    /// Recently completed jobs per second of time in which any ran; 0 if unknown.
    pub pace: f64,
    /// Number of its workers that have another protocol version and get no jobs, by version.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<u32, u32>,
    /// Number of its heartbeats that can't be read.
    #[serde(default)]
    pub unreadable: u32,
}

impl ModelSummary {
    /// Sums up what the heartbeats of a model's workers say of it, as `keeper`; `None` if no worker takes jobs for it.
    pub fn of(
        model: &str,
        keeper: Option<&str>,
        heartbeats: impl IntoIterator<Item = Result<Heartbeat, Unreadable>>,
    ) -> Option<Self> {
        let mut summary: Option<Self> = None;
        let (mut left_out, mut unreadable) = (BTreeMap::new(), 0_u32);
        for heartbeat in heartbeats {
            let heartbeat = match heartbeat {
                Ok(heartbeat) => heartbeat,
                Err(Unreadable::Version(version)) => {
                    let workers: &mut u32 = left_out.entry(version).or_default();
                    *workers = workers.saturating_add(1);
                    continue;
                }
                Err(Unreadable::Malformed(_)) => {
                    unreadable = unreadable.saturating_add(1);
                    continue;
                }
            };
            let Some(served) = heartbeat.takes_jobs_for().iter().find(|served| served.name == model) else {
                continue;
            };
            let summary = summary.get_or_insert_with(|| Self {
                v: PROTOCOL_VERSION,
                keeper: keeper.map(str::to_owned),
                model: served.clone(),
                workers: 0,
                slots: 0,
                pace: 0.0,
                left_out: BTreeMap::new(),
                unreadable: 0,
            });
            summary.add(served, &heartbeat);
        }
        summary.map(|summary| Self { left_out, unreadable, ..summary })
    }

    fn add(&mut self, served: &ServedModel, heartbeat: &Heartbeat) {
        // A job may go to any of the workers: promise only what all can keep.
        self.model.context_length = self.model.context_length.min(served.context_length);
        self.model.created = self.model.created.min(served.created);
        self.workers = self.workers.saturating_add(1);
        let statuses = heartbeat.states.iter().filter(|status| status.name == served.name);
        for status in statuses.filter(|status| status.state == ModelState::Serving) {
            self.slots = self.slots.saturating_add(status.capacity.into());
            self.pace = (self.pace + status.pace.max(0.0)).min(MAX_PACE);
        }
    }

    /// Reads a summary of this version.
    pub fn read(payload: &[u8]) -> Result<Self, Unreadable> {
        versioned::read(payload, |summary: &Self| summary.v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heartbeat::ModelStatus;
    use proptest::prelude::*;

    const MODEL: &str = "m";

    fn status(name: &str, state: ModelState, capacity: u32, pace: f64) -> ModelStatus {
        let name = name.into();
        ModelStatus {
            name,
            state,
            reason: None,
            capacity,
            active: 0,
            pace,
            memory: None,
            loaded_percent: None,
        }
    }

    fn served(name: &str, context_length: u32, created: u64) -> ServedModel {
        ServedModel { name: name.into(), context_length, created }
    }

    /// A worker that serves [`MODEL`] and another one.
    fn worker(context_length: u32, created: u64, capacity: u32, pace: f64) -> Heartbeat {
        Heartbeat {
            v: PROTOCOL_VERSION,
            models: vec![served("other", 1, 0), served(MODEL, context_length, created)],
            states: vec![
                status("other", ModelState::Serving, 64, 64.0),
                status(MODEL, ModelState::Serving, capacity, pace),
                // Replaced by the one above.
                status(MODEL, ModelState::Draining, 8, 9.0),
            ],
            ..Heartbeat::default()
        }
    }

    fn sum_up(heartbeats: &[Heartbeat]) -> Option<ModelSummary> {
        let payloads = heartbeats.iter().map(|heartbeat| serde_json::to_vec(heartbeat).unwrap());
        ModelSummary::of(MODEL, Some("w"), payloads.map(|payload| Heartbeat::read(&payload)))
    }

    #[test]
    fn a_models_workers_work_together_and_promise_what_all_can_keep() {
        let summary = sum_up(&[worker(8192, 7, 4, 0.5), worker(4096, 9, 2, 1.5), worker(8192, 3, 0, -1.0)]);
        let expected = ModelSummary {
            v: PROTOCOL_VERSION,
            keeper: Some("w".into()),
            model: served(MODEL, 4096, 3),
            workers: 3,
            slots: 6,
            pace: 2.0,
            left_out: BTreeMap::new(),
            unreadable: 0,
        };
        assert_eq!(summary, Some(expected));
    }

    #[test]
    fn a_worker_that_takes_no_jobs_for_the_model_does_not_count() {
        let draining = Heartbeat { draining: true, ..worker(10, 1, 16, 7.0) };
        let elsewhere = Heartbeat { models: vec![served("other", 1, 0)], ..worker(10, 1, 16, 7.0) };
        assert_eq!(sum_up(&[draining.clone(), elsewhere.clone()]), None);
        let summary = sum_up(&[draining, worker(20, 2, 4, 1.0), elsewhere]).unwrap();
        assert_eq!((summary.workers, summary.slots, summary.model), (1, 4, served(MODEL, 20, 2)));
    }

    #[test]
    fn workers_of_other_versions_are_left_out_and_counted() {
        let of_version = |v| Heartbeat { v, ..worker(10, 0, 16, 7.0) };
        let old = PROTOCOL_VERSION - 1;
        assert_eq!(sum_up(&[of_version(old)]), None);
        let all = [of_version(old), worker(20, 2, 4, 1.0), of_version(99), of_version(old)];
        let summary = sum_up(&all).unwrap();
        assert_eq!((summary.workers, summary.slots, summary.model.context_length), (1, 4, 20));
        assert_eq!(summary.left_out, BTreeMap::from([(old, 2), (99, 1)]));
    }

    #[test]
    fn a_heartbeat_that_cannot_be_read_hides_no_other() {
        let good = serde_json::to_vec(&worker(20, 2, 4, 1.0)).unwrap();
        let payloads = [b"{}".as_slice(), &good, b"", br#"{"v":99,"new":true}"#];
        let summary = ModelSummary::of(MODEL, None, payloads.map(Heartbeat::read)).unwrap();
        assert_eq!((summary.workers, summary.unreadable, summary.keeper), (1, 2, None));
        assert_eq!(summary.left_out, BTreeMap::from([(99, 1)]));
    }

    #[test]
    fn a_summary_is_told_from_one_of_another_version_and_from_a_heartbeat() {
        let summary = sum_up(&[worker(20, 2, 4, 1.0)]).unwrap();
        let payload = serde_json::to_vec(&summary).unwrap();
        assert_eq!(ModelSummary::read(&payload).unwrap(), summary);
        let newer = br#"{"v":99,"model":"m"}"#;
        assert!(matches!(ModelSummary::read(newer), Err(Unreadable::Version(99))));
        let old = serde_json::to_vec(&Heartbeat { v: 4, ..worker(20, 2, 4, 1.0) }).unwrap();
        assert!(matches!(ModelSummary::read(&old), Err(Unreadable::Version(4))));
        let heartbeat = serde_json::to_vec(&worker(20, 2, 4, 1.0)).unwrap();
        assert!(matches!(ModelSummary::read(&heartbeat), Err(Unreadable::Malformed(_))));
    }

    proptest! {
        #[test]
        fn the_order_of_heartbeats_makes_no_difference_and_a_sum_can_be_written(
            workers in proptest::collection::vec(
                (0..9_u32, any::<u64>(), 0..9_u32, prop_oneof![0.0..9.0_f64, Just(f64::MAX)], any::<bool>(), 4..7_u32),
                0..20,
            ),
        ) {
            let heartbeat = |(context, created, capacity, pace, draining, v): &(u32, u64, u32, f64, bool, u32)| {
                Heartbeat { v: *v, draining: *draining, ..worker(*context, *created, *capacity, *pace) }
            };
            let mut heartbeats: Vec<Heartbeat> = workers.iter().map(heartbeat).collect();
            let forwards = sum_up(&heartbeats);
            heartbeats.reverse();
            let backwards = sum_up(&heartbeats);
            prop_assert_eq!(forwards.is_some(), backwards.is_some());
            let count = workers.iter().filter(|(.., draining, v)| !draining && *v == PROTOCOL_VERSION).count();
            prop_assert_eq!(forwards.as_ref().map_or(0, |summary| summary.workers as usize), count);
            let (Some(forwards), Some(backwards)) = (forwards, backwards) else { return Ok(()) };
            prop_assert!((forwards.pace - backwards.pace).abs() <= forwards.pace * 1e-9);
            let backwards = ModelSummary { pace: forwards.pace, ..backwards };
            prop_assert_eq!(&forwards, &backwards);
            let payload = serde_json::to_vec(&forwards).unwrap();
            let read = ModelSummary::read(&payload).unwrap();
            prop_assert!((forwards.pace - read.pace).abs() <= forwards.pace * 1e-9);
            prop_assert_eq!(ModelSummary { pace: forwards.pace, ..read }, forwards);
        }
    }
}
