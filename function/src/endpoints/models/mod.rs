//! `GET /v1/models` and `GET /v1/models/{id}`.

use emberline_api::models::{Model, ModelList, ModelNames};
use emberline_protocol::error::ApiError;
use emberline_protocol::heartbeat::ServedModel;
use http::Method;

use super::endpoint::{Endpoint, Handler, Parameter};
use crate::access::caller::Caller;
use crate::admission::served_models::ServedModels;
use crate::request::ClientRequest;
use crate::response::Reply;

pub(super) static LIST: Endpoint = Endpoint {
    method: Method::GET,
    path: "/v1/models",
    id: "listModels",
    summary: "The models that are served now, and the aliases that lead to them",
    parameters: &[],
    answer: Some(|components| components.answer::<ModelList>()),
    event: None,
    errors: &[429, 503],
    handler: Handler::Keyed(|request, _| Box::pin(list_models(request))),
};

pub(super) static RETRIEVE: Endpoint = Endpoint {
    method: Method::GET,
    path: "/v1/models/{id*}",
    id: "retrieveModel",
    summary: "One model or alias",
    parameters: &[Parameter::Id],
    answer: Some(|components| components.answer::<Model>()),
    event: None,
    errors: &[403, 404, 429, 503],
    handler: Handler::WithId(|request, _, id| Box::pin(retrieve(request, id))),
};

async fn list_models(client: &ClientRequest) -> Result<Reply, ApiError> {
    let served = client.served().await?;
    Ok(Reply::json(&list(&served, &client.config.names, &client.caller)))
}

async fn retrieve(client: &ClientRequest, id: &str) -> Result<Reply, ApiError> {
    let names = &client.config.names;
    client.caller.check_model(id, names)?;
    let served = client.served().await?;
    Ok(Reply::json(&find(&served, id, names)?))
}

/// Models, then the aliases that lead to one of them; only those that `caller` may use.
fn list(served: &ServedModels, names: &ModelNames, caller: &Caller) -> ModelList {
    let models = served.models();
    let aliases = names.aliases().filter(|(alias, _)| !models.contains_key(*alias));
    let aliases = aliases.filter_map(|(alias, model)| Some((alias, models.get(model)?)));
    let all = models.values().map(|model| (model.name.as_str(), model)).chain(aliases);
    let allowed = all.filter(|(id, _)| caller.may_use(id, names));
    ModelList { object: "list", data: allowed.map(|(id, model)| entry(id, model)).collect() }
}

fn find(served: &ServedModels, id: &str, names: &ModelNames) -> Result<Model, ApiError> {
    let model = served.get(names.resolve(id));
    model.map(|model| entry(id, model)).ok_or_else(|| served.not_found(id, names))
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
    use emberline_protocol::PROTOCOL_VERSION;
    use emberline_protocol::error::ErrorCode;
    use emberline_protocol::key::{KeyId, KeyLimits};
    use serde_json::json;

    #[test]
    fn aliases_are_listed_with_the_model_they_lead_to() {
        let names = ModelNames::parse("", "primary=a,other=b").unwrap();
        let summary = json!({"v": PROTOCOL_VERSION, "keeper": "w", "workers": 1, "slots": 4, "pace": 0.0,
            "model": {"name": "a", "context_length": 512, "created": 7}});
        let summary = summary.to_string();
        let served = ServedModels::read([("s", summary.as_bytes())], |reason| panic!("{reason}"));
        let everybody = Caller { key: KeyId::of_key(b""), models: None, limits: KeyLimits::default() };
        let list = super::list(&served, &names, &everybody);
        let guest = Caller { models: Some(vec!["primary".into()]), ..everybody };
        let few: Vec<_> =
            super::list(&served, &names, &guest).data.into_iter().map(|model| model.id).collect();
        assert_eq!(few, ["primary"]);
        let ids: Vec<_> = list.data.iter().map(|model| model.id.as_str()).collect();
        assert_eq!(ids, ["a", "primary"]);
        let entry = find(&served, "primary", &names).unwrap();
        assert_eq!(
            serde_json::to_value(&entry).unwrap(),
            json!({"id": "primary", "object": "model", "created": 7, "owned_by": "emberline", "root": "a",
                "parent": null, "permission": [], "max_model_len": 512, "context_length": 512})
        );
        assert_eq!(list.data[1], entry);
        assert_eq!(find(&served, "other", &names).unwrap_err().code, ErrorCode::ModelNotFound);
    }
}
