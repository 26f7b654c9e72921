//! The real model keeps to schemas, grammars and calls, whatever it would rather say.

#![allow(clippy::unwrap_used, clippy::expect_used)] // also in the functions that tests call

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use emberline_inference::device::ComputeDevice;
use emberline_inference::engine::Engine;
use emberline_inference::engine::inference::{InferenceEngine, LoadOptions, load};
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::event::{EventKind, FinishReason};
use emberline_protocol::job::{
    Constraint, GenerationRequest, Job, Message, Role, SamplingOptions, Tool, ToolChoice,
};
use emberline_protocol::subject::JobId;
use emberline_test_kit::paths::model_path;
use serde_json::{Value, json};
use tokio::sync::mpsc::unbounded_channel;

#[path = "schemas/corpus.rs"]
mod corpus;

const SEEDS: u64 = 10;
const MAX_TOKENS: u32 = 160;
/// Batches share the device's reading of the weights.
const SLOTS: usize = 64;

/// One engine at a time: the machine's cores go to it.
static ENGINE: Mutex<Option<InferenceEngine>> = Mutex::new(None);

fn engine() -> MutexGuard<'static, Option<InferenceEngine>> {
    let mut engine = ENGINE.lock().unwrap_or_else(PoisonError::into_inner);
    engine.get_or_insert_with(|| {
        let options = LoadOptions::new(model_path().unwrap(), "real", ComputeDevice::cpu());
        load(&LoadOptions { slots: Some(SLOTS), ..options }).unwrap()
    });
    engine
}

fn job(number: u64, question: &str, request: GenerationRequest) -> Job {
    let sampling = SamplingOptions { temperature: 1.2, ..SamplingOptions::default() };
    Job {
        v: PROTOCOL_VERSION,
        id: JobId::from_random(u128::from(number)),
        model: "real".to_owned(),
        created: 0,
        deadline: u64::MAX,
        request: GenerationRequest {
            messages: vec![Message::new(Role::User, question)],
            max_tokens: Some(MAX_TOKENS),
            sampling,
            ..request
        },
        seed: number,
        background: None,
        account: None,
    }
}

/// What an answer is: its text, why it ended, and what it does without.
struct Answer {
    text: String,
    reason: FinishReason,
    relaxed: Vec<String>,
}

/// Runs all jobs together; the text of each and why it ended.
fn run(jobs: Vec<Job>) -> Vec<(String, FinishReason)> {
    answers(jobs).into_iter().map(|answer| (answer.text, answer.reason)).collect()
}

fn answers(jobs: Vec<Job>) -> Vec<Answer> {
    let mut engine = engine();
    let engine = engine.as_mut().unwrap();
    let mut receivers = Vec::new();
    for job in jobs {
        let (events, receiver) = unbounded_channel();
        let prepared = engine.preprocessor().prepare(job, Instant::now()).unwrap();
        receivers.push((receiver, prepared.acceptance.relaxed.paths().to_vec()));
        engine.submit(prepared, events);
    }
    let began = Instant::now();
    let before = engine.counts();
    while engine.has_work() {
        engine.step().unwrap();
    }
    engine.flush().unwrap();
    let counts = engine.counts();
    let (steps, masks) = (counts.step_time - before.step_time, counts.masks - before.masks);
    eprintln!(
        "{:.1} s, {masks} masks of {:.3} ms, {:.2} % of the steps' time waited for them",
        began.elapsed().as_secs_f64(),
        (counts.mask_time - before.mask_time).as_secs_f64() * 1e3 / masks as f64,
        (counts.mask_wait - before.mask_wait).as_secs_f64() * 100.0 / steps.as_secs_f64(),
    );
    receivers
        .into_iter()
        .map(|(mut receiver, relaxed)| {
            let mut said = (String::new(), None);
            while let Ok(event) = receiver.try_recv() {
                match event {
                    EventKind::Tokens { text, .. } => said.0.push_str(&text),
                    EventKind::Finish { reason, .. } => said.1 = Some(reason),
                    EventKind::Error(error) => panic!("{error:?} after {:?}", said.0),
                    _ => {}
                }
            }
            Answer { text: said.0, reason: said.1.unwrap(), relaxed }
        })
        .collect()
}

#[allow(clippy::needless_pass_by_value)] // literals are handed over
fn object(properties: Value, required: &[&str]) -> Value {
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

fn text(most: u32) -> Value {
    json!({ "type": "string", "maxLength": most })
}

/// What is asked, and the schema of the answer.
fn schemas() -> Vec<(&'static str, Value)> {
    let city =
        object(json!({ "name": text(20), "population": { "type": "integer", "minimum": 0 } }), &["name"]);
    let nested = object(
        json!({ "country": text(20), "capital": city, "leader": object(json!({ "name": text(30) }), &["name"]) }),
        &["country", "capital", "leader"],
    );
    let tree = json!({
        "$ref": "#/$defs/node",
        "$defs": { "node": object(
            json!({ "value": { "type": "integer", "minimum": 0, "maximum": 9 },
                    "children": { "type": "array", "items": { "$ref": "#/$defs/node" }, "maxItems": 2 } }),
            &["value", "children"],
        ) },
    });
    let list = json!({
        "$defs": { "item": object(
            json!({ "word": text(10), "next": { "anyOf": [{ "$ref": "#/$defs/item" }, { "type": "null" }] } }),
            &["word", "next"],
        ) },
        "$ref": "#/$defs/item",
    });
    let shape = json!({ "oneOf": [
        object(json!({ "kind": { "const": "circle" }, "radius": { "type": "number", "minimum": 0, "maximum": 100 } }), &["kind", "radius"]),
        object(json!({ "kind": { "const": "square" }, "side": { "type": "number", "exclusiveMinimum": 1, "maximum": 50 } }), &["kind", "side"]),
    ] });
    let base = json!({ "properties": { "id": { "type": "integer", "minimum": 1, "maximum": 999 } }, "required": ["id"] });
    vec![
        ("Which colour is the sky?", json!({ "enum": ["blue", "grey", "red", "black"] })),
        ("Describe a country as JSON.", nested),
        ("Draw a small tree of numbers as JSON.", tree),
        ("Answer with {\"word\": \"a\", \"next\": null}.", list),
        (
            "Name three fruits as JSON.",
            json!({ "type": "array", "items": text(12), "minItems": 3, "maxItems": 3 }),
        ),
        (
            "Roll two to five dice. Answer as JSON.",
            json!({ "type": "array", "items": { "type": "integer", "minimum": 1, "maximum": 6 }, "minItems": 2, "maxItems": 5 }),
        ),
        (
            "Describe yourself as JSON.",
            object(
                json!({ "name": text(20), "nickname": text(20), "age": { "type": "integer", "minimum": 0, "maximum": 150 } }),
                &["name"],
            ),
        ),
        (
            "What is the weather in Zürich? Answer as JSON.",
            object(
                json!({ "größe": { "enum": ["winzig", "größer", "日本", "😀"] }, "naïve": { "type": "boolean" } }),
                &["größe", "naïve"],
            ),
        ),
        (
            "Give a telephone number.",
            object(
                json!({ "phone": { "type": "string", "pattern": "^\\+[0-9]{2} [0-9]{6,9}$" } }),
                &["phone"],
            ),
        ),
        (
            "When was the wheel invented?",
            object(json!({ "date": { "type": "string", "format": "date" } }), &["date"]),
        ),
        ("Choose a shape.", shape),
        ("Give a probability.", json!({ "type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25 })),
        (
            "Give an angle below zero.",
            json!({ "type": "integer", "exclusiveMaximum": 0, "minimum": -360, "multipleOf": 5 }),
        ),
        (
            "Is it true? Answer as JSON.",
            object(
                json!({ "answer": { "type": ["boolean", "null"] }, "version": { "const": 2 } }),
                &["answer", "version"],
            ),
        ),
        (
            "Give a name or a number.",
            json!({ "anyOf": [{ "type": "string", "minLength": 3, "maxLength": 16 }, { "type": "integer", "minimum": 10, "maximum": 99 }] }),
        ),
        (
            "Give the score of a match.",
            json!({ "type": "array", "prefixItems": [text(12), { "type": "integer", "minimum": 0, "maximum": 20 }], "items": false, "minItems": 2 }),
        ),
        (
            "How many eggs and how much flour for a cake? Answer as JSON.",
            json!({ "type": "object", "patternProperties": { "^[a-z]{3,8}$": { "type": "integer", "minimum": 1, "maximum": 500 } },
                    "additionalProperties": false, "maxProperties": 3 }),
        ),
        (
            "Describe an order as JSON.",
            json!({ "allOf": [base, { "type": "object", "properties": { "id": {}, "paid": { "type": "boolean" } },
                                       "required": ["paid"], "additionalProperties": false }] }),
        ),
        (
            "A matrix of zeros and ones, as JSON.",
            json!({ "type": "array", "minItems": 2, "maxItems": 2,
                    "items": { "type": "array", "minItems": 2, "maxItems": 2, "items": { "enum": [0, 1] } } }),
        ),
        (
            "A user and their settings, as JSON.",
            object(
                json!({ "user": object(json!({ "login": { "type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 10 } }), &["login"]),
                        "settings": object(json!({ "theme": { "enum": ["dark", "light"] }, "volume": { "type": "number", "minimum": 0, "maximum": 11 } }), &[]) }),
                &["user", "settings"],
            ),
        ),
    ]
}

#[test]
fn every_answer_that_ends_is_valid() {
    let schemas = schemas();
    assert_eq!(schemas.len(), 20);
    let runs: Vec<(&Value, Job)> = schemas
        .iter()
        .flat_map(|(question, schema)| (0..SEEDS).map(move |seed| (question, schema, seed)))
        .zip(0..)
        .map(|((question, schema, _), number)| {
            let constraint = Constraint::JsonSchema { schema: schema.clone(), strict: false };
            let request = GenerationRequest { constraint: Some(constraint), ..GenerationRequest::default() };
            (schema, job(number, question, request))
        })
        .collect();
    let said = run(runs.iter().map(|(_, job)| job.clone()).collect());
    let mut stopped: HashMap<&str, usize> = HashMap::new();
    for ((schema, job), (text, reason)) in runs.iter().zip(said) {
        if reason != FinishReason::Stop {
            continue;
        }
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let validator = jsonschema::options().should_validate_formats(true).build(schema).unwrap();
        assert!(validator.is_valid(&value), "{text} is not of {schema}");
        *stopped.entry(&job.request.messages[0].content).or_default() += 1;
    }
    let ended: usize = stopped.values().sum();
    eprintln!("{ended} of {} ended: {stopped:?}", runs.len());
    assert!(ended * 10 >= runs.len() * 9, "only {ended} of {} came to their end", runs.len());
}

#[test]
fn any_object_is_an_object() {
    let request =
        || GenerationRequest { constraint: Some(Constraint::JsonObject), ..GenerationRequest::default() };
    let said =
        run((0..10).map(|seed| job(seed, "Describe a cat as a small JSON object.", request())).collect());
    let ended: Vec<_> = said.iter().filter(|(_, reason)| *reason == FinishReason::Stop).collect();
    for (text, _) in &ended {
        assert!(serde_json::from_str::<Value>(text).unwrap().is_object(), "{text}");
    }
    assert!(!ended.is_empty(), "{said:?}");
}

fn tools() -> Vec<Tool> {
    let tool = |name: &str, parameters: Value| Tool {
        name: name.to_owned(),
        description: None,
        parameters: parameters.as_object().unwrap().clone(),
        strict: true,
    };
    vec![
        tool(
            "get_weather",
            object(json!({ "city": text(20), "unit": { "enum": ["C", "F"] } }), &["city", "unit"]),
        ),
        tool(
            "add",
            object(
                json!({ "a": { "type": "integer", "minimum": 0, "maximum": 99 }, "b": { "type": "integer", "minimum": 0, "maximum": 99 } }),
                &["a", "b"],
            ),
        ),
    ]
}

/// The calls of an answer in the manner of Hermes, and the text before them.
fn calls(text: &str) -> (&str, Vec<(String, Value)>) {
    let mut parts = text.split("<tool_call>");
    let before = parts.next().unwrap();
    let read = |part: &str| {
        let json = part.trim().strip_suffix("</tool_call>").expect("a call ends");
        let call: Value = serde_json::from_str(json).unwrap();
        (call["name"].as_str().unwrap().to_owned(), call["arguments"].clone())
    };
    (before, parts.map(read).collect())
}

#[test]
fn calls_fit_their_schemas() {
    let request = |choice: &ToolChoice, parallel_tool_calls| GenerationRequest {
        tools: tools(),
        tool_choice: choice.clone(),
        parallel_tool_calls,
        ..GenerationRequest::default()
    };
    let choices = [ToolChoice::Required, ToolChoice::Named("add".into()), ToolChoice::Auto, ToolChoice::None];
    let kinds: Vec<_> = choices.iter().flat_map(|choice| [(choice, true), (choice, false)]).collect();
    let jobs = kinds.iter().flat_map(|kind| std::iter::repeat_n(*kind, 5)).zip(0..).map(
        |((choice, parallel), n)| {
            job(n, "What is 2 + 40, and how warm is it in Oslo?", request(choice, parallel))
        },
    );
    let mut jobs: Vec<Job> = jobs.collect();
    jobs.iter_mut().for_each(|job| job.request.max_tokens = Some(100));
    let mut called = 0;
    for (job, (text, reason)) in jobs.iter().zip(run(jobs.clone())) {
        if reason != FinishReason::Stop {
            continue;
        }
        let (before, calls) = calls(&text);
        called += calls.len();
        let request = &job.request;
        match request.tool_choice {
            ToolChoice::None => assert!(calls.is_empty(), "{text}"),
            ToolChoice::Auto => {}
            ToolChoice::Required | ToolChoice::Named(_) => {
                assert!(before.is_empty() && !calls.is_empty(), "{text}");
            }
        }
        assert!(request.parallel_tool_calls || calls.len() < 2, "{text}");
        for (name, arguments) in calls {
            let tool = request.tools.iter().find(|tool| tool.name == name).unwrap();
            assert!(jsonschema::is_valid(&Value::Object(tool.parameters.clone()), &arguments), "{text}");
            assert!(request.tool_choice != ToolChoice::Named("add".into()) || name == "add", "{text}");
        }
    }
    assert!(called >= 10, "only {called} calls");
}

/// Random walks through all of the corpus are a test of the constraint's own.
#[test]
fn calls_with_schemas_of_the_corpus_are_valid_but_for_what_is_dropped() {
    let of_objects = |(_, schema): &(String, Value)| schema["type"] == "object";
    let schemas: Vec<(String, Value)> = corpus::schemas().into_iter().filter(of_objects).step_by(2).collect();
    assert!(schemas.len() >= 40, "{}", schemas.len());
    let call = |number: u64, name: &str, schema: &Value| {
        let parameters = schema.as_object().unwrap().clone();
        let request = GenerationRequest {
            tools: vec![Tool { name: "f".into(), description: None, parameters, strict: false }],
            tool_choice: ToolChoice::Named("f".into()),
            ..GenerationRequest::default()
        };
        let mut job = job(number, &format!("Call the function for {name}, with short arguments."), request);
        job.request.max_tokens = Some(80);
        job
    };
    let jobs = schemas.iter().zip(0..).map(|((name, schema), number)| call(number, name, schema)).collect();
    let (mut ended, mut wholly) = (0, 0);
    for ((name, schema), Answer { text, reason, relaxed }) in schemas.iter().zip(answers(jobs)) {
        if reason != FinishReason::Stop {
            continue;
        }
        ended += 1;
        let (_, calls) = calls(&text);
        let [(function, arguments)] = &calls[..] else { panic!("{name}: {text}") };
        let rest = corpus::validator_of_the_rest(schema, "tools[0].function.parameters", &relaxed);
        assert!(function == "f" && rest.is_valid(arguments), "{name}: {text} without {relaxed:?}");
        wholly += usize::from(corpus::validator_of_all(schema).is_some_and(|all| all.is_valid(arguments)));
    }
    eprintln!("{ended} of {} ended, all of them valid; {wholly} by the whole schema", schemas.len());
    assert!(ended >= 20, "only {ended} of {} came to their end", schemas.len());
}
