//! From the body of a chat request to the message that queues its job: read, validated, and written again.

#![allow(missing_docs)] // criterion's macros make public items

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use emberline_api::chat::ChatRequest;
use emberline_function::generation::job::{self, JobContext};
use emberline_protocol::job::Account;
use emberline_protocol::key::KeyId;
use emberline_protocol::lane::Lane;
use serde_json::{Value, json};

fn small() -> Value {
    json!({
        "model": "m",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is machine learning?"},
        ],
        "temperature": 0.7,
        "max_tokens": 500,
    })
}

fn with_tools() -> Value {
    let tool = |number: u32| {
        json!({"type": "function", "function": {
            "name": format!("function_{number}"),
            "description": "Looks up the weather of a place for some days.",
            "parameters": {"type": "object", "additionalProperties": false, "required": ["place"], "properties": {
                "place": {"type": "string", "description": "A city and its country"},
                "days": {"type": "integer", "minimum": 1, "maximum": 14},
                "units": {"enum": ["celsius", "fahrenheit"]},
            }},
        }})
    };
    let mut body = small();
    body["tools"] = (0..20).map(tool).collect();
    body
}

/// The payload of the message that queues the job of `body`.
fn body_to_job(body: &[u8]) -> Vec<u8> {
    let Ok(request) = ChatRequest::parse(body) else { return Vec::new() };
    let account = Account {
        key: KeyId::of_key(b"key"),
        reserved_tokens: job::reserved_tokens(&request.generation, 8192),
        token_counters: Vec::new(),
        job_counters: Vec::new(),
        lane: Lane::default(),
        admission: None,
    };
    let context = JobContext { now_ms: 1, timeout_ms: 1, id_bits: 1, seed: 1, account, background: None };
    let job = job::new_job(request.generation, request.seed, "m", context);
    job::message(&job, 1 << 20).map(|message| message.payload.to_vec()).unwrap_or_default()
}

fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("body to job");
    for (name, body) in [("small chat", small()), ("chat with 20 tools", with_tools())] {
        let body = body.to_string().into_bytes();
        assert!(!body_to_job(&body).is_empty(), "{name} is refused");
        group.throughput(Throughput::Bytes(u64::try_from(body.len()).unwrap_or(u64::MAX)));
        group.bench_function(name, |bencher| bencher.iter(|| body_to_job(black_box(&body))));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
