//! Which models are served, and by how many workers, as the summaries of their heartbeats say.

use std::collections::BTreeMap;

use emberline_api::models::{ModelNames, Readiness};
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::heartbeat::ServedModel;
use emberline_protocol::model_summary::ModelSummary;
use emberline_protocol::versioned::Unreadable;

use super::queue::Capacity;
use crate::nats::jetstream::bus_unavailable;

/// Models of all workers that take jobs, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServedModels {
    /// Whether the summaries could be read.
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
    /// Reads summaries, with their subjects; the later of two of a model counts. What they leave out, or can't be
    /// read itself, is reported to `skipped`.
    pub fn read<'a>(
        summaries: impl IntoIterator<Item = (&'a str, &'a [u8])>,
        mut skipped: impl FnMut(String),
    ) -> Self {
        let mut served = Self { is_known: true, ..Self::default() };
        for (subject, payload) in summaries {
            let summary = match ModelSummary::read(payload) {
                Ok(summary) => summary,
                Err(Unreadable::Version(version)) => {
                    let upgrade = emberline_protocol::upgrade(version, "worker", "function");
                    skipped(format!("whoever writes {subject} gets no jobs: {upgrade}"));
                    continue;
                }
                Err(Unreadable::Malformed(error)) => {
                    skipped(format!("{subject} can't be read: {error}"));
                    continue;
                }
            };
            let ModelSummary { model, slots, pace, left_out, unreadable, .. } = summary;
            for (version, workers) in left_out {
                let upgrade = emberline_protocol::upgrade(version, "worker", "function");
                skipped(format!(
                    "{workers} workers of '{}' get no jobs, by their heartbeats: {upgrade}",
                    model.name
                ));
            }
            if unreadable > 0 {
                skipped(format!("{unreadable} heartbeats of '{}' can't be read", model.name));
            }
            served.capacities.insert(model.name.clone(), Capacity { slots, pace });
            served.models.insert(model.name.clone(), model);
        }
        served
    }

    /// Nothing that anybody knows of: there is no stream of heartbeats and their summaries, since it lay in memory and
    /// its server was started again, or its servers are gone.
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
    use emberline_protocol::PROTOCOL_VERSION;
    use serde_json::json;

    fn summary(model: &str, context_length: u32) -> Vec<u8> {
        serde_json::to_vec(&json!({
            "v": PROTOCOL_VERSION, "keeper": "w", "workers": 2, "slots": 6, "pace": 2.0,
            "model": {"name": model, "context_length": context_length, "created": 7},
        }))
        .unwrap()
    }

    fn read(summaries: &[Vec<u8>]) -> ServedModels {
        let summaries = summaries.iter().map(|summary| ("s", &summary[..]));
        ServedModels::read(summaries, |reason| panic!("{reason}"))
    }

    #[test]
    fn each_model_has_a_summary_and_the_latest_counts() {
        let served = read(&[summary("b", 8192), summary("a", 100), summary("b", 4096)]);
        assert_eq!(served.names(), ["a", "b"]);
        assert_eq!(served.get("b").unwrap().context_length, 4096);
        assert_eq!(served.capacity("a"), Capacity { slots: 6, pace: 2.0 });
        assert_eq!(served.capacity("c"), Capacity::default());
        let ready = serde_json::to_value(served.ready().unwrap()).unwrap();
        assert_eq!(ready, json!({"status": "ready", "models": ["a", "b"]}));
    }

    #[test]
    fn jobs_for_a_configured_model_may_wait_for_a_worker() {
        let served = read(&[summary("a", 100)]);
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
    fn without_summaries_nobody_knows_that_a_model_is_missing() {
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
    }

    #[test]
    fn what_is_left_out_is_reported_and_hides_nothing() {
        let mut mixed: serde_json::Value = serde_json::from_slice(&summary("b", 1)).unwrap();
        mixed["left_out"] = json!({"4": 3});
        mixed["unreadable"] = json!(2);
        let (a, mixed) = (summary("a", 1), mixed.to_string());
        let all = [
            ("$KV.workers.v99=m", r#"{"v":99,"new":true}"#.as_bytes()),
            ("$KV.workers.old", br#"{"v":4,"worker":"old"}"#),
            ("x", b"{}"),
            ("$KV.workers.v5=a", &a),
            ("$KV.workers.v5=b", mixed.as_bytes()),
        ];
        let mut reasons = Vec::new();
        let served = ServedModels::read(all, |reason| reasons.push(reason));
        assert_eq!(served.names(), ["a", "b"]);
        let says = [
            &["v99=m", "upgrade the function"][..],
            &["$KV.workers.old", "upgrade the worker"],
            &["x can't be read"],
            &["3 workers of 'b'", "version 4", "upgrade the worker"],
            &["2 heartbeats of 'b'"],
        ];
        assert_eq!(reasons.len(), says.len(), "{reasons:?}");
        for (reason, words) in reasons.iter().zip(says) {
            assert!(words.iter().all(|word| reason.contains(word)), "{reason}");
        }
    }
}
