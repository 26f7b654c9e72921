//! `/openapi.json`: what the API takes and answers, made of the types that read and write it.
//!
//! [`OPERATIONS`] lists what there is; the schemas come from the same declarations that every body
//! is held against ([`emberline_shared::schema`]), so the document can't promise anything else.

use std::sync::OnceLock;

use emberline_shared::chat::{ChatCompletion, ChatCompletionChunk, ChatRequest};
use emberline_shared::completions::{Completion, CompletionRequest};
use emberline_shared::embeddings;
use emberline_shared::error::ErrorBody;
use emberline_shared::models::{Health, Model, ModelList, Readiness};
use emberline_shared::schema::Components;
use emberline_shared::tokenize::{DetokenizeAnswer, TokenRequest, TokenizeAnswer};
use serde_json::{Map, Value, json};

/// One method of one path.
struct Operation {
    method: &'static str,
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    /// Only for holders of a key.
    needs_key: bool,
    request: Option<Request>,
    /// What a success answers with; nothing where there is none.
    answer: Option<Schema>,
    /// What each event of a stream holds, if the request may ask for one.
    event: Option<Schema>,
    /// Other statuses than those that every endpoint has.
    errors: &'static [u16],
}

type Schema = fn(&mut Components) -> Value;

/// A body, and one that is good.
struct Request {
    schema: Schema,
    example: &'static str,
}

/// What may go wrong wherever a body is read and a model is used.
const WITH_MODEL: &[u16] = &[400, 403, 404, 413, 415, 429, 502, 503, 504];

const OPERATIONS: &[Operation] = &[
    Operation {
        method: "post",
        path: "/v1/chat/completions",
        id: "createChatCompletion",
        summary: "The next message of a conversation",
        needs_key: true,
        request: Some(Request {
            schema: ChatRequest::schema,
            example: r#"{"model": "vllm-primary", "messages": [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "What is machine learning?"}], "temperature": 0.7, "max_tokens": 500}"#,
        }),
        answer: Some(|components| components.answer::<ChatCompletion<'static>>()),
        event: Some(|components| components.answer::<ChatCompletionChunk<'static>>()),
        errors: WITH_MODEL,
    },
    Operation {
        method: "post",
        path: "/v1/completions",
        id: "createCompletion",
        summary: "Text that continues a prompt",
        needs_key: true,
        request: Some(Request {
            schema: CompletionRequest::schema,
            example: r#"{"model": "vllm-primary", "prompt": "Once upon a time", "max_tokens": 32}"#,
        }),
        answer: Some(|components| components.answer::<Completion<'static>>()),
        event: Some(|components| components.answer::<Completion<'static>>()),
        errors: WITH_MODEL,
    },
    Operation {
        method: "post",
        path: "/v1/embeddings",
        id: "createEmbedding",
        summary: "Embeddings of texts; no model makes them yet, so every request is refused",
        needs_key: true,
        request: Some(Request {
            schema: embeddings::schema,
            example: r#"{"model": "vllm-primary", "input": "The food was delicious."}"#,
        }),
        answer: None,
        event: None,
        errors: WITH_MODEL,
    },
    Operation {
        method: "post",
        path: "/tokenize",
        id: "tokenize",
        summary: "The tokens of a text or a conversation",
        needs_key: true,
        request: Some(Request {
            schema: TokenRequest::tokenize_schema,
            example: r#"{"model": "vllm-primary", "prompt": "Hello, world!"}"#,
        }),
        answer: Some(|components| components.answer::<TokenizeAnswer>()),
        event: None,
        errors: WITH_MODEL,
    },
    Operation {
        method: "post",
        path: "/detokenize",
        id: "detokenize",
        summary: "The text of tokens",
        needs_key: true,
        request: Some(Request {
            schema: TokenRequest::detokenize_schema,
            example: r#"{"model": "vllm-primary", "tokens": [1, 2, 3]}"#,
        }),
        answer: Some(|components| components.answer::<DetokenizeAnswer>()),
        event: None,
        errors: WITH_MODEL,
    },
    Operation {
        method: "get",
        path: "/v1/models",
        id: "listModels",
        summary: "The models that are served now, and the aliases that lead to them",
        needs_key: true,
        request: None,
        answer: Some(|components| components.answer::<ModelList>()),
        event: None,
        errors: &[429, 503],
    },
    Operation {
        method: "get",
        path: "/v1/models/{id}",
        id: "retrieveModel",
        summary: "One model or alias",
        needs_key: true,
        request: None,
        answer: Some(|components| components.answer::<Model>()),
        event: None,
        errors: &[403, 404, 429, 503],
    },
    Operation {
        method: "get",
        path: "/health",
        id: "health",
        summary: "Whether the function runs",
        needs_key: false,
        request: None,
        answer: Some(|components| components.answer::<Health>()),
        event: None,
        errors: &[],
    },
    Operation {
        method: "get",
        path: "/ready",
        id: "ready",
        summary: "Whether a worker serves a model",
        needs_key: false,
        request: None,
        answer: Some(|components| components.answer::<Readiness>()),
        event: None,
        errors: &[503],
    },
    Operation {
        method: "get",
        path: "/openapi.json",
        id: "openapi",
        summary: "This document",
        needs_key: false,
        request: None,
        answer: Some(|_| json!({"type": "object"})),
        event: None,
        errors: &[],
    },
];

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
            if operation.path.contains("{id}") {
                let id = json!({"name": "id", "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}});
                path.insert("parameters".to_owned(), json!([id]));
            }
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
#[path = "openapi_tests.rs"]
mod tests;
