//! Which models are served, and by how many workers, as their heartbeats say.

use std::collections::BTreeMap;

use emberline_api::models::{ModelNames, Readiness};
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::heartbeat::{Heartbeat, ModelState, ServedModel};
use emberline_protocol::malformed::Malformed;

use super::queue::Capacity;
use crate::nats::jetstream::bus_unavailable;

/// Models of all workers that take jobs, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServedModels {
    /// Whether the heartbeats could be read.
    is_known: bool,
    models: BTreeMap<String, ServedModel>,
    capacities: BTreeMap<String, Capacity>,
}

/// The queue that a job is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The model's own name.
    pub model: String,
    /// Of its workers; nothing if there are none.
    pub context_length: Option<u32>,
}

impl Destination {
    /// The same failure to queue a job, with what is known of the workers: where there is one, there are
    /// the streams, and one that takes nothing has no leader at the moment.
    pub fn explain(&self, error: ApiError) -> ApiError {
        let is_served = self.context_length.is_some();
        if is_served && error.code == ErrorCode::NoWorker { bus_unavailable() } else { error }
    }
}

impl ServedModels {
    /// Reads heartbeats; one that can't be read is reported to `skipped` and counts for nothing.
    pub fn read<'a>(heartbeats: impl IntoIterator<Item = &'a [u8]>, mut skipped: impl FnMut(String)) -> Self {
        let mut models: BTreeMap<String, ServedModel> = BTreeMap::new();
        let mut capacities: BTreeMap<String, Capacity> = BTreeMap::new();
        for payload in heartbeats {
            let heartbeat = match serde_json::from_slice::<Heartbeat>(payload) {
                Ok(heartbeat) if heartbeat.v == PROTOCOL_VERSION => heartbeat,
                Ok(heartbeat) => {
                    let upgrade = emberline_protocol::upgrade(heartbeat.v, "worker", "function");
                    skipped(format!("worker {} gets no jobs, by its heartbeat {upgrade}", heartbeat.worker));
                    continue;
                }
                Err(error) => {
                    skipped(format!("a heartbeat can't be read: {}", Malformed::from(error)));
                    continue;
                }
            };
            if heartbeat.draining {
                continue;
            }
            for status in heartbeat.states.iter().filter(|status| status.state == ModelState::Serving) {
                capacities.entry(status.name.clone()).or_default().add(status);
            }
            for model in heartbeat.models {
                models
                    .entry(model.name.clone())
                    .and_modify(|known| {
                        // A job may go to any of them: promise only what all can keep.
                        known.context_length = known.context_length.min(model.context_length);
                        known.created = known.created.min(model.created);
                    })
                    .or_insert(model);
            }
        }
        Self { is_known: true, models, capacities }
    }

    /// Nothing that anybody knows of: there is no stream of heartbeats, since it lies in memory and is made anew by
    /// the next worker, or its servers are gone.
    pub fn unknown() -> Self {
        Self::default()
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        self.models.keys().cloned().collect()
    }

    /// What the workers of a model can do together.
    pub fn capacity(&self, model: &str) -> Capacity {
        self.capacities.get(model).copied().unwrap_or_default()
    }

    /// All of them, by name.
    pub fn models(&self) -> &BTreeMap<String, ServedModel> {
        &self.models
    }

    /// The model of this name.
    pub fn get(&self, name: &str) -> Option<&ServedModel> {
        self.models.get(name)
    }

    /// The own name of the model that `requested` means, if it is served.
    pub fn admit(&self, requested: &str, names: &ModelNames) -> Result<String, ApiError> {
        names.admit(requested, &self.names()).map_err(|error| match error.code {
            ErrorCode::ModelNotFound => self.not_found(requested, names),
            _ => error,
        })
    }

    /// The error for a model that is not among them.
    pub fn not_found(&self, requested: &str, names: &ModelNames) -> ApiError {
        if self.is_known {
            return names.not_found(requested, &self.names());
        }
        let message = format!(
            "Nobody knows whether a worker serves '{requested}': no worker has started yet, or NATS has lost their \
             heartbeats. Try again shortly."
        );
        ApiError::field(ErrorCode::NoWorker, "model", message)
    }

    /// Where jobs for `requested` go: to a model that is served, or, if they may wait for a worker, to
    /// one that is configured.
    pub fn destination(
        &self,
        requested: &str,
        names: &ModelNames,
        may_wait: bool,
    ) -> Result<Destination, ApiError> {
        let model = match names.admit(requested, &self.names()) {
            Err(error) if error.code == ErrorCode::NoWorker && may_wait => {
                names.resolve(requested).to_owned()
            }
            _ => self.admit(requested, names)?,
        };
        let context_length = self.get(&model).map(|served| served.context_length);
        Ok(Destination { model, context_length })
    }

    /// Body of `GET /ready`: what is served, or the reason why nothing is.
    pub fn ready(&self) -> Result<Readiness, ApiError> {
        if self.models.is_empty() {
            let message = "No worker serves a model at the moment. Try again shortly.";
            return Err(ApiError::new(ErrorCode::NoWorker, message));
        }
        Ok(Readiness { status: "ready", models: self.names() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emberline_protocol::heartbeat::ModelStatus;
    use serde_json::json;

    #[test]
    fn a_models_workers_work_together() {
        let status = |name: &str, state, capacity, pace| ModelStatus {
            name: name.into(),
            state,
            reason: None,
            capacity,
            active: 0,
            pace,
            memory: None,
        };
        let worker = |draining, states| {
            serde_json::to_vec(&Heartbeat { v: PROTOCOL_VERSION, draining, states, ..Heartbeat::default() })
                .unwrap()
        };
        let served = read(&[
            worker(
                false,
                vec![status("a", ModelState::Serving, 4, 0.5), status("b", ModelState::Serving, 1, 0.0)],
            ),
            // Replaced by another of its name, which is there already.
            worker(
                false,
                vec![status("a", ModelState::Serving, 2, 1.5), status("a", ModelState::Draining, 8, 9.0)],
            ),
            worker(true, vec![status("a", ModelState::Serving, 16, 7.0)]),
        ]);
        assert_eq!(served.capacity("a"), Capacity { slots: 6, pace: 2.0 });
        assert_eq!(served.capacity("b"), Capacity { slots: 1, pace: 0.0 });
        assert_eq!(served.capacity("c"), Capacity::default());
    }

    fn heartbeat(worker: &str, draining: bool, models: &[(&str, u32)]) -> Vec<u8> {
        let served = |(name, context_length): &(&str, u32)| ServedModel {
            name: (*name).into(),
            context_length: *context_length,
            created: 7,
        };
        serde_json::to_vec(&Heartbeat {
            v: PROTOCOL_VERSION,
            worker: worker.into(),
            models: models.iter().map(served).collect(),
            engine: "burn".into(),
            device: "cpu".into(),
            version: "0".into(),
            capacity: 4,
            draining,
            ..Heartbeat::default()
        })
        .unwrap()
    }

    fn read(heartbeats: &[Vec<u8>]) -> ServedModels {
        ServedModels::read(heartbeats.iter().map(Vec::as_slice), |reason| panic!("{reason}"))
    }

    #[test]
    fn workers_models_are_joined() {
        let served = read(&[
            heartbeat("1", false, &[("b", 8192), ("a", 100)]),
            heartbeat("2", false, &[("b", 4096)]),
            heartbeat("3", true, &[("c", 1)]),
        ]);
        assert_eq!(served.names(), ["a", "b"]);
        assert_eq!(served.get("b").unwrap().context_length, 4096);
        let ready = serde_json::to_value(served.ready().unwrap()).unwrap();
        assert_eq!(ready, json!({"status": "ready", "models": ["a", "b"]}));
    }

    #[test]
    fn jobs_for_a_configured_model_may_wait_for_a_worker() {
        let served = read(&[heartbeat("1", false, &[("a", 100)])]);
        let names = ModelNames::parse("a,b", "x=b").unwrap();
        let destination = |requested, may_wait| served.destination(requested, &names, may_wait);
        let to = |model: &str, context_length| Destination { model: model.into(), context_length };
        for may_wait in [false, true] {
            assert_eq!(destination("a", may_wait), Ok(to("a", Some(100))));
            assert_eq!(destination("c", may_wait).unwrap_err().code, ErrorCode::ModelNotFound);
        }
        let no_stream = ApiError::new(ErrorCode::NoWorker, "no stream");
        assert_eq!(to("b", None).explain(no_stream.clone()), no_stream);
        assert_eq!(to("a", Some(100)).explain(no_stream).code, ErrorCode::BusUnavailable);
        assert_eq!(destination("x", true), Ok(to("b", None)));
        assert_eq!(destination("b", false).unwrap_err().code, ErrorCode::NoWorker);
    }

    #[test]
    fn without_heartbeats_nobody_knows_that_a_model_is_missing() {
        let names = ModelNames::parse("b", "").unwrap();
        for (served, code) in
            [(read(&[]), ErrorCode::ModelNotFound), (ServedModels::unknown(), ErrorCode::NoWorker)]
        {
            assert_eq!(served.admit("c", &names).unwrap_err().code, code);
            assert_eq!(served.not_found("c", &names).code, code);
            assert_eq!(served.destination("c", &names, true).unwrap_err().code, code);
            assert_eq!(served.admit("b", &names).unwrap_err().code, ErrorCode::NoWorker);
            assert_eq!(served.destination("b", &names, true).unwrap().context_length, None);
        }
    }

    #[test]
    fn nothing_is_ready_without_a_worker_that_takes_jobs() {
        assert_eq!(read(&[]).ready().unwrap_err().code, ErrorCode::NoWorker);
        assert!(read(&[heartbeat("3", true, &[("c", 1)])]).ready().is_err());
    }

    #[test]
    fn an_unreadable_heartbeat_hides_no_other() {
        let version = format!("\"v\":{PROTOCOL_VERSION}");
        let newer =
            String::from_utf8(heartbeat("9", false, &[("z", 1)])).unwrap().replace(&version, "\"v\":99");
        let all = [b"{}".to_vec(), newer.into_bytes(), heartbeat("1", false, &[("a", 1)])];
        let mut reasons = Vec::new();
        let served = ServedModels::read(all.iter().map(Vec::as_slice), |reason| reasons.push(reason));
        assert_eq!((served.names(), reasons.len()), (vec!["a".to_owned()], 2));
    }
}
