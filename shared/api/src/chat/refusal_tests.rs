use proptest::prelude::*;
use serde_json::json;

use super::tests::{parse, tool, with};
use super::*;

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
        ("messages", json!([{"role": "function", "content": "x"}]), UnsupportedParameter, "messages[0].role"),
        ("messages", json!([{"role": "tool", "content": "x"}]), MissingField, "messages[0].tool_call_id"),
        (
            "messages",
            json!([{"role": "tool", "content": "x", "tool_call_id": "a"}]),
            InvalidValue,
            "messages[0].tool_call_id",
        ),
        ("messages", json!([{"role": "assistant"}]), MissingField, "messages[0].content"),
        (
            "messages",
            json!([{"role": "assistant", "content": "", "audio": {"id": "a"}}]),
            UnsupportedParameter,
            "messages[0].audio",
        ),
        (
            "messages",
            json!([{"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": ""}}]),
            UnsupportedParameter,
            "messages[0].function_call",
        ),
        (
            "messages",
            json!([{"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]}]),
            UnsupportedParameter,
            "messages[0].content[0].type",
        ),
        (
            "messages",
            json!([{"role": "user", "content": "x", "reasoning_content": "hm"}]),
            UnknownParameter,
            "messages[0].reasoning_content",
        ),
        (
            "messages",
            json!([{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "[]"}}]}]),
            InvalidValue,
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            "messages",
            json!([{"role": "assistant", "tool_calls": [{"id": "a", "type": "custom"}]}]),
            UnsupportedParameter,
            "messages[0].tool_calls[0].type",
        ),
        ("messages", json!([{"role": "user", "content": []}]), InvalidValue, "messages[0].content"),
        (
            "messages",
            json!([{"role": "user", "content": [{"type": "image_url"}]}]),
            UnsupportedParameter,
            "messages[0].content[0].type",
        ),
        (
            "messages",
            json!([{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}]),
            InvalidValue,
            "messages[0].content[0].type",
        ),
        ("messages", json!([{"role": "user", "content": ["x"]}]), InvalidType, "messages[0].content[0]"),
        ("messages", json!([{"role": "user", "content": 1}]), InvalidType, "messages[0].content"),
        ("messages", json!([{"role": "user", "content": "", "name": ""}]), InvalidValue, "messages[0].name"),
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
        ("n", json!(0), InvalidValue, "n"),
        ("n", json!(17), InvalidValue, "n"),
        ("n", json!(2.0), InvalidType, "n"),
        ("n", json!("2"), InvalidType, "n"),
        ("logprobs", json!(5), InvalidType, "logprobs"),
        ("logprobs", json!("true"), InvalidType, "logprobs"),
        ("top_logprobs", json!(21), InvalidValue, "top_logprobs"),
        ("top_logprobs", json!(-1), InvalidValue, "top_logprobs"),
        ("top_logprobs", json!(true), InvalidType, "top_logprobs"),
        // Without `logprobs`.
        ("top_logprobs", json!(1), InvalidValue, "top_logprobs"),
        ("store", json!("yes"), InvalidType, "store"),
        ("service_tier", json!("flex"), UnsupportedParameter, "service_tier"),
        ("metadata", json!({"a": 1}), InvalidType, "metadata.a"),
        ("service_tier", json!("golden"), InvalidValue, "service_tier"),
        ("modalities", json!(["text", "audio"]), UnsupportedParameter, "modalities[1]"),
        ("functions", json!([{"name": "f"}]), UnsupportedParameter, "functions"),
        ("function_call", json!({"name": "f"}), UnsupportedParameter, "function_call"),
        ("best_of", json!(2), UnsupportedParameter, "best_of"),
        ("skip_special_tokens", json!(false), UnsupportedParameter, "skip_special_tokens"),
        ("length_penalty", json!(1.5), UnsupportedParameter, "length_penalty"),
        ("priority", json!(-1), UnsupportedParameter, "priority"),
        ("allowed_token_ids", json!([1]), UnsupportedParameter, "allowed_token_ids"),
        ("use_beam_search", json!(1), InvalidType, "use_beam_search"),
        ("max_tokens", json!(-2), InvalidValue, "max_tokens"),
        ("max_tokens", json!(u64::MAX), InvalidValue, "max_tokens"),
        ("seed", json!(0.5), InvalidType, "seed"),
        ("seed", json!(-1e19), InvalidValue, "seed"),
        ("seed", json!(2e19), InvalidValue, "seed"),
        (
            "structured_outputs",
            json!({"structural_tag": "x"}),
            UnsupportedParameter,
            "structured_outputs.structural_tag",
        ),
        ("structured_outputs", json!({"regexp": "x"}), UnknownParameter, "structured_outputs.regexp"),
        ("guided_choice", json!([]), InvalidValue, "guided_choice"),
        ("guided_json", json!([1]), InvalidType, "guided_json"),
        ("web_search_options", json!({}), UnsupportedParameter, "web_search_options"),
        ("tools", json!([{}]), MissingField, "tools[0].type"),
        ("tools", json!([{"type": "functon"}]), InvalidValue, "tools[0].type"),
        (
            "tools",
            json!([{"type": "function", "function": {"name": "a b"}}]),
            InvalidValue,
            "tools[0].function.name",
        ),
        ("tools", json!([tool("f"), tool("g"), tool("f")]), InvalidValue, "tools[2].function.name"),
        ("tool_choice", json!("required"), InvalidValue, "tool_choice"),
        ("tool_choice", json!("maybe"), InvalidValue, "tool_choice"),
        ("tool_choice", json!(1), InvalidType, "tool_choice"),
        ("tool_choice", json!({"type": "allowed_tools"}), MissingField, "tool_choice.allowed_tools"),
        (
            "tool_choice",
            json!({"type": "custom", "custom": {"name": "f"}}),
            UnsupportedParameter,
            "tool_choice.type",
        ),
        ("response_format", json!({"type": "yaml"}), InvalidValue, "response_format.type"),
        ("response_format", json!({"type": "json_schema"}), MissingField, "response_format.json_schema"),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"name": "n"}}),
            MissingField,
            "response_format.json_schema.schema",
        ),
        ("response_format", json!({"type": "regex", "regex": ""}), InvalidValue, "response_format.regex"),
        ("verbosity", json!("loud"), InvalidValue, "verbosity"),
        ("chat_template_kwargs", json!([]), InvalidType, "chat_template_kwargs"),
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
                            Just("stop_token_ids"), Just("logprobs"), Just("top_logprobs"), Just("top_k"), Just("repetition_penalty"), Just("min_tokens"),
                            Just("tools"), Just("tool_choice"), Just("response_format"), Just("modalities"), Just("store")],
        value in any_json(),
    ) {
        if let Err(error) = parse(&with(name, value)) {
            prop_assert!(error.param.is_some_and(|p| p.starts_with(name)));
            prop_assert_eq!(error.code.status(), 400);
        }
    }
}
