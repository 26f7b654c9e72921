//! What is served now, by the workers' heartbeats, and how `/v1/models` tells it.

use std::collections::BTreeMap;

use emberline_shared::PROTOCOL_VERSION;
use emberline_shared::error::{ApiError, ErrorCode};
use emberline_shared::heartbeat::{Heartbeat, ServedModel};
use emberline_shared::models::{Model, ModelList, ModelNames, Readiness};

use crate::auth::Caller;

/// Models of all workers that take jobs, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Served(BTreeMap<String, ServedModel>);

impl Served {
    /// Reads heartbeats; one that can't be read is reported to `skipped` and counts for nothing.
    pub fn read<'a>(heartbeats: impl IntoIterator<Item = &'a [u8]>, mut skipped: impl FnMut(String)) -> Self {
        let mut models: BTreeMap<String, ServedModel> = BTreeMap::new();
        for payload in heartbeats {
            let heartbeat = match serde_json::from_slice::<Heartbeat>(payload) {
                Ok(heartbeat) if heartbeat.v <= PROTOCOL_VERSION => heartbeat,
                Ok(heartbeat) => {
                    skipped(format!("heartbeat of {} has version {}", heartbeat.worker, heartbeat.v));
                    continue;
                }
                Err(error) => {
                    skipped(format!("a heartbeat can't be read: {error}"));
                    continue;
                }
            };
            let offered = if heartbeat.draining { Vec::new() } else { heartbeat.models };
            for model in offered {
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
        Self(models)
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// The model of this name.
    pub fn get(&self, name: &str) -> Option<&ServedModel> {
        self.0.get(name)
    }

    /// Body of `GET /ready`: what is served, or the reason why nothing is.
    pub fn ready(&self) -> Result<Readiness, ApiError> {
        if self.0.is_empty() {
            let message = "No worker serves a model at the moment. Try again shortly.";
            return Err(ApiError::new(ErrorCode::NoWorker, message));
        }
        Ok(Readiness { status: "ready", models: self.names() })
    }

    /// Body of `GET /v1/models`: models, then the aliases that lead to one of them; only what
    /// `caller` may use.
    pub fn list(&self, names: &ModelNames, caller: &Caller) -> ModelList {
        let models = self.0.values().map(|model| (model.name.as_str(), model));
        let aliases = names.aliases().filter(|(alias, _)| !self.0.contains_key(*alias));
        let aliases = aliases.filter_map(|(alias, model)| Some((alias, self.0.get(model)?)));
        let allowed = models.chain(aliases).filter(|(id, _)| caller.may_use(id, names));
        ModelList { object: "list", data: allowed.map(|(id, model)| entry(id, model)).collect() }
    }

    /// Body of `GET /v1/models/{id}`.
    pub fn find(&self, id: &str, names: &ModelNames) -> Result<Model, ApiError> {
        let model = self.0.get(names.resolve(id));
        model.map(|model| entry(id, model)).ok_or_else(|| names.not_found(id, &self.names()))
    }
}

fn entry(id: &str, model: &ServedModel) -> Model {
    Model {
        id: id.to_owned(),
        object: "model",
        created: model.created,
        owned_by: "emberline",
        root: model.name.clone(),
        parent: None,
        permission: [],
        max_model_len: model.context_length,
        context_length: model.context_length,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emberline_shared::key::{KeyId, KeyLimits};
    use serde_json::json;

    fn heartbeat(worker: &str, draining: bool, models: &[(&str, u32)]) -> Vec<u8> {
        let served = |(name, context_length): &(&str, u32)| ServedModel {
            name: (*name).into(),
            context_length: *context_length,
            created: 7,
        };
        serde_json::to_vec(&Heartbeat {
            v: 1,
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

    fn read(heartbeats: &[Vec<u8>]) -> Served {
        Served::read(heartbeats.iter().map(Vec::as_slice), |reason| panic!("{reason}"))
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
    fn nothing_is_ready_without_a_worker_that_takes_jobs() {
        assert_eq!(read(&[]).ready().unwrap_err().code, ErrorCode::NoWorker);
        assert!(read(&[heartbeat("3", true, &[("c", 1)])]).ready().is_err());
    }

    #[test]
    fn an_unreadable_heartbeat_hides_no_other() {
        let newer =
            String::from_utf8(heartbeat("9", false, &[("z", 1)])).unwrap().replace("\"v\":1", "\"v\":99");
        let all = [b"{}".to_vec(), newer.into_bytes(), heartbeat("1", false, &[("a", 1)])];
        let mut reasons = Vec::new();
        let served = Served::read(all.iter().map(Vec::as_slice), |reason| reasons.push(reason));
        assert_eq!((served.names(), reasons.len()), (vec!["a".to_owned()], 2));
    }

    #[test]
    fn aliases_are_listed_with_the_model_they_lead_to() {
        let names = ModelNames::parse("", "primary=a,other=b").unwrap();
        let served = read(&[heartbeat("1", false, &[("a", 512)])]);
        let everybody = Caller { key: KeyId::of_key(b""), models: None, limits: KeyLimits::default() };
        let list = served.list(&names, &everybody);
        let guest = Caller { models: Some(vec!["primary".into()]), ..everybody };
        let few: Vec<_> = served.list(&names, &guest).data.into_iter().map(|model| model.id).collect();
        assert_eq!(few, ["primary"]);
        let ids: Vec<_> = list.data.iter().map(|model| model.id.as_str()).collect();
        assert_eq!(ids, ["a", "primary"]);
        let entry = served.find("primary", &names).unwrap();
        assert_eq!(
            serde_json::to_value(&entry).unwrap(),
            json!({"id": "primary", "object": "model", "created": 7, "owned_by": "emberline", "root": "a",
                "parent": null, "permission": [], "max_model_len": 512, "context_length": 512})
        );
        assert_eq!(list.data[1], entry);
        assert_eq!(served.find("other", &names).unwrap_err().code, ErrorCode::ModelNotFound);
    }
}
