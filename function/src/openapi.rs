//! `/openapi.json`: what the API takes and answers, made of the types that read and write it.
//!
//! [`operations`] lists what there is; the schemas come from the same declarations that every body
//! is held against ([`emberline_shared::schema`]), so the document can't promise anything else.

mod operations;

use std::sync::OnceLock;

use emberline_shared::error::ErrorBody;
use emberline_shared::schema::Components;
use serde_json::{Map, Value, json};

use operations::{OPERATIONS, Operation};

/// The document, made once.
pub fn document() -> &'static str {
    static DOCUMENT: OnceLock<String> = OnceLock::new();
    DOCUMENT.get_or_init(|| build().to_string())
}

fn build() -> Value {
    let mut components = Components::default();
    let mut paths: Map<String, Value> = Map::new();
    for operation in OPERATIONS {
        let described = operation.describe(&mut components);
        let path = paths.entry(operation.path).or_insert_with(|| Value::Object(Map::new()));
        if let Some(path) = path.as_object_mut() {
            path.insert(operation.method.to_owned(), described);
        }
    }
    let error = components.answer::<ErrorBody>();
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
            "schemas": components.into_schemas(),
            "responses": {"Error": {
                "description": "What is wrong and what to do about it.",
                "content": {"application/json": {"schema": error}},
            }},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    })
}

impl Operation {
    fn describe(&self, components: &mut Components) -> Value {
        let mut responses = Map::new();
        if let Some(answer) = self.answer {
            let mut content = json!({"application/json": {"schema": answer(components)}});
            if let Some(event) = self.event {
                content["text/event-stream"] = json!({
                    "schema": {"type": "string"},
                    "x-event-schema": event(components),
                });
            }
            responses.insert("200".to_owned(), json!({"description": "Success", "content": content}));
        }
        let keyed: &[u16] = if self.needs_key { &[401, 500] } else { &[500] };
        for status in keyed.iter().chain(self.errors) {
            responses.insert(status.to_string(), json!({"$ref": "#/components/responses/Error"}));
        }
        responses.sort_keys();
        let security = if self.needs_key { json!([{"bearer": []}, {"apiKey": []}]) } else { json!([]) };
        let mut described = json!({
            "operationId": self.id,
            "summary": self.summary,
            "security": security,
            "parameters": self.parameters.iter().map(|parameter| parameter.describe()).collect::<Vec<_>>(),
            "responses": responses,
        });
        if let Some(request) = &self.request {
            let example: Value = serde_json::from_str(request.example).unwrap_or_default();
            described["requestBody"] = json!({
                "required": true,
                "content": {"application/json": {"schema": (request.schema)(components), "example": example}},
            });
        }
        described
    }
}

#[cfg(test)]
#[path = "openapi/openapi_tests.rs"]
mod tests;
