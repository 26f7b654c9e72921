use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::job::SamplingOptions;

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
    let sampling = SamplingOptions { temperature: 0.7, ..SamplingOptions::default() };
    assert_eq!(request.generation.sampling, sampling);
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
        ("top_k", json!(-2), InvalidValue, "top_k"),
        ("top_k", json!(1.5), InvalidType, "top_k"),
        ("min_p", json!(1.01), InvalidValue, "min_p"),
        ("presence_penalty", json!(2.01), InvalidValue, "presence_penalty"),
        ("frequency_penalty", json!(-2.01), InvalidValue, "frequency_penalty"),
        ("frequency_penalty", json!("0"), InvalidType, "frequency_penalty"),
        ("repetition_penalty", json!(0), InvalidValue, "repetition_penalty"),
        ("repetition_penalty", json!(-1), InvalidValue, "repetition_penalty"),
        ("repetition_penalty", json!(1e39), InvalidValue, "repetition_penalty"),
        ("repetition_penalty", json!(1e-60), InvalidValue, "repetition_penalty"),
        ("repetition_penalty", json!([]), InvalidType, "repetition_penalty"),
        ("logit_bias", json!([]), InvalidType, "logit_bias"),
        ("logit_bias", json!({"5": 100.1}), InvalidValue, "logit_bias.5"),
        ("logit_bias", json!({"5": 1, "6": "1"}), InvalidType, "logit_bias.6"),
        ("logit_bias", json!({"05": 1}), InvalidValue, "logit_bias.05"),
        ("logit_bias", json!({"-5": 1}), InvalidValue, "logit_bias.-5"),
        ("logit_bias", json!({"hello": 1}), InvalidValue, "logit_bias.hello"),
        ("logit_bias", json!({"4294967296": 1}), InvalidValue, "logit_bias.4294967296"),
        ("min_tokens", json!(-1), InvalidValue, "min_tokens"),
        ("min_tokens", json!(true), InvalidType, "min_tokens"),
        ("ignore_eos", json!(1), InvalidType, "ignore_eos"),
        ("stop_token_ids", json!(5), InvalidType, "stop_token_ids"),
        ("stop_token_ids", json!([5, "6"]), InvalidType, "stop_token_ids[1]"),
        ("stop_token_ids", json!([null]), InvalidType, "stop_token_ids[0]"),
        ("stop_token_ids", json!([5, -6]), InvalidValue, "stop_token_ids[1]"),
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
fn sampling_options_are_read() {
    let mut body = with("max_tokens", json!(9));
    let options = json!({
        "temperature": 2, "top_p": 0, "top_k": 40, "min_p": 1, "presence_penalty": -2,
        "frequency_penalty": 2, "repetition_penalty": 1.5, "min_tokens": 9, "ignore_eos": true,
        "logit_bias": {"10": 100, "9": -100, "4294967295": 0.5, "8": null},
        "stop_token_ids": [7, 4294967295_u32, 0],
    });
    body.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    let expected = SamplingOptions {
        temperature: 2.0,
        top_p: 0.0,
        top_k: 40,
        min_p: 1.0,
        presence_penalty: -2.0,
        frequency_penalty: 2.0,
        repetition_penalty: 1.5,
        logit_bias: vec![(9, -100.0), (10, 100.0), (u32::MAX, 0.5)],
        min_tokens: 9,
        ignore_eos: true,
        stop_token_ids: vec![7, u32::MAX, 0],
    };
    assert_eq!(parse(&body).unwrap().generation.sampling, expected);
}

#[test]
fn neutral_sampling_options_are_the_defaults() {
    for (name, value) in [
        ("top_k", json!(-1)),
        ("top_k", json!(0)),
        ("min_p", json!(0)),
        ("presence_penalty", json!(0)),
        ("frequency_penalty", json!(0.0)),
        ("repetition_penalty", json!(1)),
        ("logit_bias", json!({})),
        ("min_tokens", json!(0)),
        ("ignore_eos", json!(false)),
        ("stop_token_ids", json!([])),
        ("stop_token_ids", json!(null)),
    ] {
        let request = parse(&with(name, value.clone())).unwrap();
        assert_eq!(request.generation.sampling, SamplingOptions::default(), "{name}: {value}");
    }
}

#[test]
fn lists_of_tokens_have_an_end() {
    let biases = |count: usize| {
        Value::Object((0..count).map(|id| (id.to_string(), json!(1))).collect::<Map<String, Value>>())
    };
    assert_eq!(parse(&with("logit_bias", biases(300))).unwrap().generation.sampling.logit_bias.len(), 300);
    let error = parse(&with("logit_bias", biases(301))).unwrap_err();
    assert_eq!((error.code, error.param.as_deref()), (ErrorCode::InvalidValue, Some("logit_bias")));
    assert!(parse(&with("stop_token_ids", json!(vec![1; MAX_STOP_TOKEN_IDS]))).is_ok());
    let error = parse(&with("stop_token_ids", json!(vec![1; MAX_STOP_TOKEN_IDS + 1]))).unwrap_err();
    assert_eq!((error.code, error.param.as_deref()), (ErrorCode::InvalidValue, Some("stop_token_ids")));
}

#[test]
fn the_least_tokens_are_no_more_than_the_most() {
    let mut body = with("min_tokens", json!(6));
    assert_eq!(parse(&body).unwrap().generation.sampling.min_tokens, 6);
    body["max_completion_tokens"] = json!(5);
    let error = parse(&body).unwrap_err();
    assert_eq!((error.code, error.param.as_deref()), (ErrorCode::InvalidValue, Some("min_tokens")));
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
                            Just("max_tokens"), Just("metadata"), Just("n"), Just("zzz"), Just("logit_bias"),
                            Just("stop_token_ids"), Just("top_k"), Just("repetition_penalty"), Just("min_tokens")],
        value in any_json(),
    ) {
        if let Err(error) = parse(&with(name, value)) {
            prop_assert!(error.param.is_some_and(|p| p.starts_with(name)));
            prop_assert_eq!(error.code.status(), 400);
        }
    }
}
