//! Requests that together use everything that a takeover must carry on.

use serde_json::{Value, json};

use crate::compare::with;
use crate::options::{MODEL, SIMULATED_MODEL};

/// A request with a name for reports.
#[derive(Debug, Clone)]
pub struct TestRequest {
    /// What is special about it.
    pub name: &'static str,
    /// Its body.
    pub body: Value,
}

/// For the simulated engine.
pub fn simulated() -> Vec<TestRequest> {
    let body = json!({
        "model": SIMULATED_MODEL, "max_tokens": 40,
        "messages": [{"role": "user", "content": "Say what you always say."}],
    });
    let (streamed, never) = (streamed(), json!(["nothing of the kind", "line. That"]));
    let requests = [
        ("short", json!({"max_tokens": 12}), true),
        ("middling", json!({}), true),
        ("long", json!({"max_tokens": 80}), true),
        ("three choices", json!({"n": 3, "max_tokens": 30}), true),
        ("a stop string", json!({"stop": ["line. The quick"]}), true),
        // Each time round, text is held back until it is no stop string.
        ("stop strings that almost come", json!({"stop": never}), true),
        ("log-probabilities", json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 30}), true),
        ("by itself", json!({"max_tokens": null}), true),
        ("whole", json!({}), false),
        ("two choices, whole", json!({"n": 2, "max_tokens": 24, "logprobs": true}), false),
    ];
    requests
        .map(|(name, more, is_streamed)| {
            let body = with(&body, &more);
            TestRequest { name, body: if is_streamed { with(&body, &streamed) } else { body } }
        })
        .into()
}

/// For the real model: sampling, constraints, tool calls and log-probabilities.
pub fn real() -> Vec<TestRequest> {
    let question = |text: &str| json!([{"role": "user", "content": text}]);
    let greedy = json!({
        "model": MODEL, "temperature": 0, "max_tokens": 32, "messages": question("Describe a lighthouse."),
    });
    let drawn = json!({
        "model": MODEL, "temperature": 0.9, "seed": 7, "max_tokens": 32,
        "messages": question("Write about the sea."),
    });
    let schema = json!({
        "type": "object", "required": ["name", "lakes", "near"], "additionalProperties": false,
        "properties": {
            "name": {"enum": ["Zürich", "Genève"]},
            "lakes": {"type": "integer", "minimum": 0, "maximum": 9},
            "near": {"type": "array", "minItems": 2, "maxItems": 2, "items": {"enum": ["Bern", "Basel"]}},
        },
    });
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": true}});
    let tool = json!({"type": "function", "function": {
        "name": "weather", "description": "Tells the weather in a city.", "strict": true,
        "parameters": {
            "type": "object", "required": ["city", "days"], "additionalProperties": false,
            "properties": {"city": {"enum": ["Paris", "Zürich"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        },
    }});
    let described = json!({"messages": question("Describe Zürich."), "max_tokens": 60});
    let called = json!({
        "messages": question("How will the weather in Zürich be on the next three days?"),
        "tools": [tool], "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 60,
    });
    let requests = [
        ("greedy", greedy.clone()),
        ("seed 7", drawn.clone()),
        ("three choices", with(&drawn, &json!({"n": 3, "seed": 8, "max_tokens": 16}))),
        ("log-probabilities", with(&drawn, &json!({"seed": 9, "logprobs": true, "top_logprobs": 3}))),
        ("penalties", with(&drawn, &json!({"seed": 10, "frequency_penalty": 1.5, "presence_penalty": 0.5}))),
        ("a stop string", with(&greedy, &json!({"stop": ["tower", "light"]}))),
        ("json_schema", with(&with(&drawn, &described), &json!({"response_format": format}))),
        ("a tool call", with(&greedy, &called)),
    ];
    let whole = TestRequest { name: "whole", body: drawn };
    requests
        .map(|(name, body)| TestRequest { name, body: with(&body, &streamed()) })
        .into_iter()
        .chain([whole])
        .collect()
}

fn streamed() -> Value {
    json!({"stream": true, "stream_options": {"include_usage": true}})
}
