//! The list of what the API takes and answers.

use emberline_api::chat::{ChatCompletion, ChatCompletionChunk, ChatRequest};
use emberline_api::completions::{Completion, CompletionRequest};
use emberline_api::embeddings;
use emberline_api::models::{Health, Model, ModelList, Readiness, Version};
use emberline_api::responses::{
    DeletedResponse, InputTokens, InputTokensRequest, Response, ResponseEvent, ResponsesRequest,
};
use emberline_api::schema::Components;
use emberline_api::tokenize::{DetokenizeAnswer, TokenRequest, TokenizeAnswer};
use serde_json::{Value, json};

/// One method of one path.
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) id: &'static str,
    pub(super) summary: &'static str,
    /// In the path, the query and the headers.
    pub(super) parameters: &'static [Parameter],
    /// Only for holders of a key.
    pub(super) needs_key: bool,
    pub(super) request: Option<Request>,
    /// What a success answers with; nothing where there is none.
    pub(super) answer: Option<Schema>,
    /// What each event of a stream holds, if the request may ask for one.
    pub(super) event: Option<Schema>,
    /// Other statuses than those that every endpoint has.
    pub(super) errors: &'static [u16],
}

pub(super) type Schema = fn(&mut Components) -> Value;

/// A body, and one that is good.
pub(super) struct Request {
    pub(super) schema: Schema,
    pub(super) example: &'static str,
}

/// A value beside the body.
#[derive(Debug, Clone, Copy)]
pub(super) enum Parameter {
    Id,
    IdempotencyKey,
    RequestTimeout,
    Stream,
    StartingAfter,
}

impl Parameter {
    pub(super) fn describe(self) -> Value {
        let (name, place, description, schema) = match self {
            Self::Id => ("id", "path", "Which one.", json!({"type": "string", "minLength": 1})),
            Self::IdempotencyKey => (
                "Idempotency-Key",
                "header",
                "A repeat with the same key and body gets the answer of the first request.",
                json!({"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"}),
            ),
            Self::RequestTimeout => (
                "x-request-timeout",
                "header",
                "How many seconds the client waits, if that is less than the server would work on it.",
                json!({"type": "number", "exclusiveMinimum": 0}),
            ),
            Self::Stream => {
                ("stream", "query", "Answer as server-sent events.", json!({"enum": ["true", "false"]}))
            }
            Self::StartingAfter => (
                "starting_after",
                "query",
                "With `stream=true`: the sequence number of the last event that was heard.",
                json!({"type": "integer", "minimum": 0}),
            ),
        };
        let is_required = matches!(self, Self::Id);
        json!({
            "name": name, "in": place, "description": description, "required": is_required, "schema": schema,
        })
    }
}

/// What may go wrong wherever a body is read and a model is used.
const WITH_MODEL: &[u16] = &[400, 403, 404, 413, 415, 429, 502, 503, 504];
/// The same where an `Idempotency-Key` may be reused.
const WITH_REPEATS: &[u16] = &[400, 403, 404, 409, 413, 415, 429, 502, 503, 504];

/// What may go wrong with a response that is kept.
const ABOUT_RESPONSES: &[u16] = &[400, 404, 409, 429, 502, 503, 504];

fn response(components: &mut Components) -> Value {
    components.answer::<Response<'static>>()
}

fn response_event(components: &mut Components) -> Value {
    components.answer::<ResponseEvent>()
}

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        method: "post",
        path: "/v1/chat/completions",
        id: "createChatCompletion",
        summary: "The next message of a conversation",
        parameters: &[Parameter::IdempotencyKey, Parameter::RequestTimeout],
        needs_key: true,
        request: Some(Request {
            schema: ChatRequest::schema,
            example: r#"{"model": "vllm-primary", "messages": [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "What is machine learning?"}], "temperature": 0.7, "max_tokens": 500}"#,
        }),
        answer: Some(|components| components.answer::<ChatCompletion<'static>>()),
        event: Some(|components| components.answer::<ChatCompletionChunk<'static>>()),
        errors: WITH_REPEATS,
    },
    Operation {
        method: "post",
        path: "/v1/completions",
        id: "createCompletion",
        summary: "Text that continues a prompt",
        parameters: &[Parameter::IdempotencyKey, Parameter::RequestTimeout],
        needs_key: true,
        request: Some(Request {
            schema: CompletionRequest::schema,
            example: r#"{"model": "vllm-primary", "prompt": "Once upon a time", "max_tokens": 32}"#,
        }),
        answer: Some(|components| components.answer::<Completion<'static>>()),
        event: Some(|components| components.answer::<Completion<'static>>()),
        errors: WITH_REPEATS,
    },
    Operation {
        method: "post",
        path: "/v1/responses",
        id: "createResponse",
        summary: "A response to a conversation, which may go on in the background",
        parameters: &[Parameter::IdempotencyKey, Parameter::RequestTimeout],
        needs_key: true,
        request: Some(Request {
            schema: ResponsesRequest::schema,
            example: r#"{"model": "vllm-primary", "input": "What is machine learning?"}"#,
        }),
        answer: Some(response),
        event: Some(response_event),
        errors: WITH_REPEATS,
    },
    Operation {
        method: "post",
        path: "/v1/responses/input_tokens",
        id: "countInputTokens",
        summary: "How many tokens the input of a response has",
        parameters: &[],
        needs_key: true,
        request: Some(Request {
            schema: InputTokensRequest::schema,
            example: r#"{"model": "vllm-primary", "input": "What is machine learning?"}"#,
        }),
        answer: Some(|components| components.answer::<InputTokens>()),
        event: None,
        errors: WITH_MODEL,
    },
    Operation {
        method: "get",
        path: "/v1/responses/{id}",
        id: "retrieveResponse",
        summary: "A background response, as far as it is; or the rest of its stream",
        parameters: &[Parameter::Id, Parameter::Stream, Parameter::StartingAfter],
        needs_key: true,
        request: None,
        answer: Some(response),
        event: Some(response_event),
        errors: ABOUT_RESPONSES,
    },
    Operation {
        method: "delete",
        path: "/v1/responses/{id}",
        id: "deleteResponse",
        summary: "Forgets a background response",
        parameters: &[Parameter::Id],
        needs_key: true,
        request: None,
        answer: Some(|components| components.answer::<DeletedResponse>()),
        event: None,
        errors: ABOUT_RESPONSES,
    },
    Operation {
        method: "post",
        path: "/v1/responses/{id}/cancel",
        id: "cancelResponse",
        summary: "Ends a background response",
        parameters: &[Parameter::Id],
        needs_key: true,
        request: None,
        answer: Some(response),
        event: None,
        errors: ABOUT_RESPONSES,
    },
    Operation {
        method: "post",
        path: "/v1/embeddings",
        id: "createEmbedding",
        summary: "Embeddings of texts; no model makes them yet, so every request is refused",
        parameters: &[],
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
        parameters: &[],
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
        parameters: &[],
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
        parameters: &[],
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
        parameters: &[Parameter::Id],
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
        parameters: &[],
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
        parameters: &[],
        needs_key: false,
        request: None,
        answer: Some(|components| components.answer::<Readiness>()),
        event: None,
        errors: &[503],
    },
    Operation {
        method: "get",
        path: "/version",
        id: "version",
        summary: "The function's version",
        parameters: &[],
        needs_key: false,
        request: None,
        answer: Some(|components| components.answer::<Version>()),
        event: None,
        errors: &[],
    },
    Operation {
        method: "get",
        path: "/openapi.json",
        id: "openapi",
        summary: "This document",
        parameters: &[],
        needs_key: false,
        request: None,
        answer: Some(|_| json!({"type": "object"})),
        event: None,
        errors: &[],
    },
];
