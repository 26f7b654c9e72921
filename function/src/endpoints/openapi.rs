//! `GET /openapi.json`: what the API takes and answers, made of the table of endpoints and of the types that read
//! bodies and write answers.
//!
//! The schemas come from the same declarations that every body is validated against ([`emberline_api::schema`]),
//! so the document and the behaviour can't differ.

use std::sync::OnceLock;

use emberline_api::error::ErrorBody;
use emberline_api::schema::Components;
use http::Method;
use serde_json::{Map, Value, json};

use super::endpoint::Handler;
use super::{ENDPOINTS, Endpoint};
use crate::http::reply;
use crate::response::Reply;

pub(super) static OPENAPI: Endpoint = Endpoint {
    method: Method::GET,
    path: "/openapi.json",
    id: "openapi",
    summary: "This document",
    parameters: &[],
    answer: Some(|_| json!({"type": "object"})),
    event: None,
    errors: &[],
    handler: Handler::Fixed(|| Reply::Whole(reply::json(200, document()))),
};

/// The document, made once.
pub fn document() -> &'static str {
    static DOCUMENT: OnceLock<String> = OnceLock::new();
    DOCUMENT.get_or_init(|| build().to_string())
}

fn build() -> Value {
    let mut components = Components::default();
    let mut paths: Map<String, Value> = Map::new();
    for endpoint in ENDPOINTS {
        let described = describe(endpoint, &mut components);
        let path =
            paths.entry(endpoint.path.replace("{id*}", "{id}")).or_insert_with(|| Value::Object(Map::new()));
        if let Some(path) = path.as_object_mut() {
            path.insert(endpoint.method.as_str().to_lowercase(), described);
        }
    }
    let error = components.answer::<ErrorBody>();
    let (requests, _) = components.names();
    let mut schemas = components.into_schemas();
    for name in requests {
        schemas.get_mut(&name).into_iter().for_each(let_null_be_absent);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Emberline",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Large language models over OpenAI's API. No parameter is silently ignored.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {"Error": {
                "description": "What is wrong and what to do about it.",
                "content": {"application/json": {"schema": error}},
            }},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "azureKey": {"type": "apiKey", "in": "header", "name": "api-key"},
            },
        },
    })
}

/// One event of a stream, whose data is an `event`, an error, or the mark of the end. (OpenAPI has
/// the schema of a stream describe its events.)
fn one_event(event: &Value, error: &Value) -> Value {
    let json = |schema| json!({"contentMediaType": "application/json", "contentSchema": schema});
    let data = json!({"type": "string", "anyOf": [{"const": "[DONE]"}, json(event), json(error)]});
    json!({
        "type": "object",
        "properties": {"event": {"type": "string"}, "data": data},
        "required": ["data"],
    })
}

/// Says that bodies are closed, but for names without a value: `null` counts as absent, also for a tag
/// that may be left out.
fn let_null_be_absent(schema: &mut Value) {
    match schema {
        Value::Object(schema) => {
            schema.values_mut().for_each(let_null_be_absent);
            let required: Vec<Value> =
                schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
            if let Some(Value::Object(properties)) = schema.get_mut("properties") {
                for (name, property) in properties {
                    if let Some(value) = property.get("const").cloned()
                        && !required.iter().any(|required| required == name.as_str())
                    {
                        *property = json!({"enum": [value, null]});
                    }
                }
            }
            if let Some(rest) = schema.get_mut("additionalProperties")
                && *rest == Value::Bool(false)
            {
                *rest = json!({"type": "null"});
            }
        }
        Value::Array(schemas) => schemas.iter_mut().for_each(let_null_be_absent),
        _ => {}
    }
}

fn describe(endpoint: &Endpoint, components: &mut Components) -> Value {
    let mut responses = Map::new();
    if let Some(answer) = endpoint.answer {
        let whole = ("application/json".to_owned(), json!({"schema": answer(components)}));
        let mut content = Map::from_iter([whole]);
        if let Some(event) = endpoint.event {
            let schema = one_event(&event(components), &components.answer::<ErrorBody>());
            content.insert("text/event-stream".to_owned(), json!({ "schema": schema }));
        }
        responses.insert("200".to_owned(), json!({"description": "Success", "content": content}));
    }
    let keyed: &[u16] = if endpoint.needs_key() { &[401, 500] } else { &[500] };
    for status in keyed.iter().chain(endpoint.errors) {
        responses.insert(status.to_string(), json!({"$ref": "#/components/responses/Error"}));
    }
    responses.sort_keys();
    let security = if endpoint.needs_key() {
        json!([{"bearer": []}, {"apiKey": []}, {"azureKey": []}])
    } else {
        json!([])
    };
    let parameters = endpoint.parameters.iter().map(|parameter| parameter.describe());
    let mut described = Map::new();
    described.insert("operationId".to_owned(), endpoint.id.into());
    described.insert("summary".to_owned(), endpoint.summary.into());
    described.insert("security".to_owned(), security);
    described.insert("parameters".to_owned(), parameters.collect());
    described.insert("responses".to_owned(), responses.into());
    if let Some(request) = endpoint.request_body() {
        let example: Value = serde_json::from_str(request.example).unwrap_or_default();
        let content = json!({"schema": (request.schema)(components), "example": example});
        let body = json!({"required": true, "content": {"application/json": content}});
        described.insert("requestBody".to_owned(), body);
    }
    described.into()
}

#[cfg(test)]
#[path = "openapi_tests.rs"]
mod tests;
