use proptest::prelude::*;
use serde_json::json;

use super::*;

fn parse(body: &Value) -> Result<ChatRequest, ApiError> {
    ChatRequest::parse(body.to_string().as_bytes())
}

fn with(name: &str, value: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body[name] = value;
    body
}

#[test]
fn the_starting_point_is_read() {
    let request = parse(&json!({
        "model": "vllm-primary",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is machine learning?"}
        ],
        "temperature": 0.7, "max_tokens": 500
    }))
    .unwrap();
    assert_eq!(request.model, "vllm-primary");
    assert_eq!(request.generation.max_tokens, Some(500));
    assert_eq!(request.generation.temperature, 0.7);
    assert_eq!(request.generation.top_p, 1.0);
    assert_eq!(request.generation.messages.len(), 2);
    assert!(!request.stream && request.seed.is_none() && request.generation.stop.is_empty());
}

#[test]
fn each_bad_field_is_named() {
    use ErrorCode::*;
    let cases = [
        ("model", json!(3), InvalidType, "model"),
        ("model", json!(null), MissingField, "model"),
        ("model", json!(""), InvalidValue, "model"),
        ("messages", json!([]), InvalidValue, "messages"),
        ("messages", json!({}), InvalidType, "messages"),
        ("messages", json!([1]), InvalidType, "messages[0]"),
        ("messages", json!([{"role": "user"}]), MissingField, "messages[0].content"),
        ("messages", json!([{"content": "x"}]), MissingField, "messages[0].role"),
        ("messages", json!([{"role": "king", "content": "x"}]), InvalidValue, "messages[0].role"),
        ("messages", json!([{"role": "tool", "content": "x"}]), UnsupportedParameter, "messages[0].role"),
        ("messages", json!([{"role": "user", "content": []}]), UnsupportedParameter, "messages[0].content"),
        ("messages", json!([{"role": "user", "content": 1}]), InvalidType, "messages[0].content"),
        (
            "messages",
            json!([{"role": "user", "content": "", "name": "a"}]),
            UnsupportedParameter,
            "messages[0].name",
        ),
        (
            "messages",
            json!([{"role": "user", "content": "", "nam": "a"}]),
            UnknownParameter,
            "messages[0].nam",
        ),
        ("temperature", json!(2.1), InvalidValue, "temperature"),
        ("temperature", json!("1"), InvalidType, "temperature"),
        ("top_p", json!(-0.1), InvalidValue, "top_p"),
        ("max_tokens", json!(0), InvalidValue, "max_tokens"),
        ("max_completion_tokens", json!(1.5), InvalidType, "max_completion_tokens"),
        ("stop", json!(["a", "b", "c", "d", "e"]), InvalidValue, "stop"),
        ("stop", json!(["a", ""]), InvalidValue, "stop[1]"),
        ("stop", json!([1]), InvalidType, "stop[0]"),
        ("stop", json!(1), InvalidType, "stop"),
        ("seed", json!("x"), InvalidType, "seed"),
        ("stream", json!("yes"), InvalidType, "stream"),
        ("stream_options", json!({"include_usage": true}), InvalidValue, "stream_options"),
        ("n", json!(2), UnsupportedParameter, "n"),
        ("store", json!(true), UnsupportedParameter, "store"),
        ("service_tier", json!("flex"), UnsupportedParameter, "service_tier"),
        ("metadata", json!({"a": 1}), InvalidType, "metadata.a"),
        ("tools", json!([{}]), UnsupportedParameter, "tools"),
        ("top_k", json!(5), UnsupportedParameter, "top_k"),
        ("tempreature", json!(1), UnknownParameter, "tempreature"),
    ];
    for (name, value, code, param) in cases {
        let error = parse(&with(name, value.clone())).unwrap_err();
        assert_eq!((error.code, error.param.as_deref()), (code, Some(param)), "{name}: {value}: {error}");
    }
}

#[test]
fn stream_options_are_read_to_the_last_field() {
    let mut body = with("stream", json!(true));
    body["stream_options"] = json!({"include_usage": true, "include_obfuscation": false});
    assert!(parse(&body).unwrap().include_usage);
    body["stream_options"] = json!({"usage": true});
    assert_eq!(parse(&body).unwrap_err().param.as_deref(), Some("stream_options.usage"));
}

#[test]
fn both_names_of_the_token_limit_must_agree() {
    let mut body = with("max_tokens", json!(5));
    body["max_completion_tokens"] = json!(5);
    assert_eq!(parse(&body).unwrap().generation.max_tokens, Some(5));
    body["max_completion_tokens"] = json!(6);
    assert_eq!(parse(&body).unwrap_err().param.as_deref(), Some("max_tokens"));
}

#[test]
fn values_that_ask_for_nothing_are_accepted() {
    for (name, value) in [
        ("n", json!(1)),
        ("presence_penalty", json!(0)),
        ("logprobs", json!(false)),
        ("response_format", json!({"type": "text"})),
        ("user", json!("u")),
        ("metadata", json!({"k": "v"})),
        ("top_k", json!(null)),
        // As openai-python dumps a message that it received.
        ("messages", json!([{"role": "assistant", "content": "", "refusal": null, "tool_calls": null}])),
    ] {
        assert!(parse(&with(name, value)).is_ok(), "{name}");
    }
}

#[test]
fn negative_seeds_are_seeds() {
    assert_eq!(parse(&with("seed", json!(-1))).unwrap().seed, Some(u64::MAX));
}

#[test]
fn chunks_have_the_documented_shape() {
    let envelope = Envelope {
        job: JobId::from_random(1),
        created: 5,
        model: "m".into(),
        fingerprint: "fp".into(),
        metadata: None,
    };
    let parse = |text: String| serde_json::from_str::<Value>(&text).unwrap();
    let first = parse(envelope.chunk(0, &Delta::Role, None, false));
    assert_eq!(first["object"], "chat.completion.chunk");
    assert_eq!(first["id"], format!("chatcmpl-{:032x}", 1));
    assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert!(first.get("usage").is_none());
    let last = parse(envelope.chunk(0, &Delta::Empty, Some(FinishReason::Stop), true));
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(last["usage"], Value::Null);
    let usage =
        parse(envelope.usage_chunk(&Usage { prompt_tokens: 2, cached_tokens: 0, completion_tokens: 3 }));
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["total_tokens"], 5);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map("[a-z_]{1,8}", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_value_in_any_field_is_read_or_refused_with_its_name(
        name in prop_oneof![Just("temperature"), Just("stop"), Just("messages"), Just("seed"), Just("stream_options"),
                            Just("max_tokens"), Just("metadata"), Just("n"), Just("zzz")],
        value in any_json(),
    ) {
        if let Err(error) = parse(&with(name, value)) {
            prop_assert!(error.param.is_some_and(|p| p.starts_with(name)));
            prop_assert_eq!(error.code.status(), 400);
        }
    }
}
