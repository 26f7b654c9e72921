use proptest::prelude::*;
use serde_json::json;

use emberline_protocol::event::{FinishReason, IMPOSSIBLE_LOGPROB, TokenLogprob, TokenLogprobs, Usage};
use emberline_protocol::job::{Constraint, Message, Role, SamplingOptions, ToolCall, ToolChoice};
use emberline_protocol::prompt::{PromptScore, PromptToken};
use emberline_protocol::subject::JobId;
use emberline_protocol::tools::{TextBesideCalls, ToolFormat, call_id};

use super::*;
use crate::answer::{Choice, ChunkTokens, ChunkUsage, Envelope};
use crate::parameters::MAX_STOP_TOKEN_IDS;
use crate::schema::assert_enforceable;

pub(super) fn parse(body: &Value) -> Result<ChatRequest, ApiError> {
    ChatRequest::parse(body.to_string().as_bytes())
}

pub(super) fn with(name: &str, value: Value) -> Value {
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

pub(super) fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name}})
}

#[test]
fn nothing_is_declared_that_is_not_enforced() {
    assert_enforceable(BODY.schema());
}

#[test]
fn messages_of_every_role_are_read() {
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "f", "arguments": " "}});
    let messages = json!([
        {"role": "developer", "content": "Be kind.", "name": "boss"},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "call_1", "name": "f"},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}, {"type": "refusal", "refusal": " No."}]},
        {"role": "assistant", "content": null, "refusal": "No."},
    ]);
    let call = ToolCall { id: "call_1".into(), name: "f".into(), arguments: "{}".into() };
    let expected = [
        Message { name: Some("boss".into()), ..Message::new(Role::System, "Be kind.") },
        Message::new(Role::User, "Hello"),
        Message { tool_calls: vec![call], ..Message::new(Role::Assistant, "") },
        Message {
            name: Some("f".into()),
            tool_call_id: Some("call_1".into()),
            ..Message::new(Role::Tool, "42")
        },
        Message::new(Role::Assistant, "Yes. No."),
        Message::new(Role::Assistant, "No."),
    ];
    assert_eq!(parse(&with("messages", messages)).unwrap().generation.messages, expected);
}

#[test]
fn tools_and_the_choice_among_them_are_read() {
    let choose = |choice: Value| {
        let parameters = json!({"type": "object", "properties": {"a": {"type": "null", "const": null}}});
        let mut body = with(
            "tools",
            json!([tool("f"), {"type": "function", "function":
            {"name": "g", "description": "G", "parameters": parameters, "strict": true}}]),
        );
        body["tool_choice"] = choice;
        body["parallel_tool_calls"] = json!(false);
        parse(&body).map(|request| request.generation)
    };
    let request = choose(json!(null)).unwrap();
    assert_eq!((request.tools[0].name.as_str(), request.tools[0].parameters.len()), ("f", 0));
    let g = &request.tools[1];
    assert_eq!((g.description.as_deref(), g.strict, request.parallel_tool_calls), (Some("G"), true, false));
    // What is the client's own is not touched, nulls included.
    assert_eq!(g.parameters["properties"]["a"], json!({"type": "null", "const": null}));
    assert_eq!(request.tool_choice, ToolChoice::Auto);
    assert_eq!(choose(json!("none")).unwrap().tool_choice, ToolChoice::None);
    assert_eq!(choose(json!("required")).unwrap().tool_choice, ToolChoice::Required);
    assert_eq!(choose(tool("g")).unwrap().tool_choice, ToolChoice::Named("g".into()));
    let error = choose(tool("h")).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("tool_choice.function.name"));
}

#[test]
fn every_response_format_becomes_a_constraint() {
    let constraint = |format: Value| parse(&with("response_format", format)).unwrap().generation.constraint;
    assert_eq!(constraint(json!({"type": "text"})), None);
    assert_eq!(constraint(json!({"type": "json_object"})), Some(Constraint::JsonObject));
    let schema = json!({"type": "object", "default": null});
    assert_eq!(
        constraint(
            json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": true}})
        ),
        Some(Constraint::JsonSchema { schema, strict: true })
    );
    let grammar = json!({"type": "grammar", "grammar": "start: \"a\""});
    assert_eq!(constraint(grammar), Some(Constraint::Grammar("start: \"a\"".into())));
    assert_eq!(constraint(json!({"type": "regex", "regex": "a+"})), Some(Constraint::Regex("a+".into())));
}

#[test]
fn template_variables_are_gathered() {
    let mut body = with("reasoning_effort", json!("low"));
    body["verbosity"] = json!("high");
    body["chat_template_kwargs"] = json!({"enable_thinking": false, "x": null, "reasoning_effort": "low"});
    let expected =
        json!({"enable_thinking": false, "x": null, "reasoning_effort": "low", "verbosity": "high"});
    assert_eq!(Value::Object(parse(&body).unwrap().generation.template_variables), expected);
    body["reasoning_effort"] = json!("high");
    assert_eq!(parse(&body).unwrap_err().param.as_deref(), Some("reasoning_effort"));
}

#[test]
fn stream_options_are_read_to_the_last_field() {
    let mut body = with("stream", json!(true));
    for (options, usage) in [
        (json!({}), StreamUsage::Never),
        (json!({"include_usage": false, "continuous_usage_stats": false}), StreamUsage::Never),
        (json!({"include_usage": true, "include_obfuscation": false}), StreamUsage::Last),
        (json!({"include_usage": true, "continuous_usage_stats": true}), StreamUsage::Always),
        (json!({"continuous_usage_stats": true}), StreamUsage::Always),
    ] {
        body["stream_options"] = options;
        assert_eq!(parse(&body).unwrap().usage, usage);
    }
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
    let plain = parse(&with("user", json!(null))).unwrap();
    for (name, value) in [
        ("response_format", json!({"type": "text"})),
        ("stream_options", json!({})),
        ("stream_options", json!({"include_usage": false})),
        ("functions", json!([])),
        ("function_call", json!("none")),
        ("best_of", json!(1)),
        ("add_special_tokens", json!(false)),
        ("documents", json!([])),
        ("client_metadata", json!({"session": "s"})),
        ("prompt_cache_options", json!({"mode": "implicit"})),
        ("skip_special_tokens", json!(true)),
        ("spaces_between_special_tokens", json!(true)),
        ("include_stop_str_in_output", json!(false)),
        ("use_beam_search", json!(false)),
        ("length_penalty", json!(1)),
        ("length_penalty", json!(1.0)),
        ("early_stopping", json!(false)),
        ("detokenize", json!(true)),
        ("priority", json!(0)),
        ("truncate_prompt_tokens", json!(null)),
        ("truncation_side", json!("left")),
        ("thinking_token_budget", json!(-1)),
        ("mm_processor_kwargs", json!({})),
        ("logits_processors", json!([])),
        ("no_stop_trim", json!(false)),
        ("return_hidden_states", json!(false)),
        ("cache_prompt", json!(true)),
        ("typical_p", json!(1.0)),
        ("mirostat", json!(0)),
        ("dry_multiplier", json!(0.0)),
        ("repeat_penalty", json!(1.0)),
        ("n_probs", json!(0)),
        ("max_tokens", json!(-1)),
        ("max_completion_tokens", json!(-1)),
        ("logit_bias", json!({})),
        ("structured_outputs", json!({})),
        ("modalities", json!(["text"])),
        ("tools", json!([])),
        ("tool_choice", json!("auto")),
        ("parallel_tool_calls", json!(true)),
        ("store", json!(false)),
        ("service_tier", json!("auto")),
        ("service_tier", json!("default")),
        ("prompt_cache_key", json!("k")),
        ("prompt_cache_retention", json!("24h")),
        ("safety_identifier", json!("u")),
        ("functions", json!(null)),
        ("user", json!("u")),
        ("metadata", json!({"k": "v"})),
        ("top_k", json!(null)),
    ] {
        let request = parse(&with(name, value.clone())).unwrap();
        assert_eq!(request.generation, plain.generation, "{name}: {value}");
        assert!(request.relaxed.is_empty(), "{name}: {value}");
    }
}

#[test]
fn the_number_of_choices_is_read() {
    for (value, n) in [(json!(null), 1), (json!(1), 1), (json!(16), 16)] {
        assert_eq!(parse(&with("n", value)).unwrap().generation.n, n);
    }
    assert_eq!(parse(&with("user", json!("u"))).unwrap().generation.n, 1);
}

#[test]
fn alternatives_come_only_with_log_probabilities() {
    let logprobs = |logprobs: Value, top: Value| {
        let mut body = with("logprobs", logprobs);
        body["top_logprobs"] = top;
        parse(&body).map(|request| request.generation.logprobs)
    };
    assert_eq!(logprobs(json!(true), json!(null)), Ok(Some(0)));
    assert_eq!(logprobs(json!(true), json!(0)), Ok(Some(0)));
    assert_eq!(logprobs(json!(true), json!(20)), Ok(Some(20)));
    for no in [json!(false), json!(null)] {
        assert_eq!(logprobs(no.clone(), json!(null)), Ok(None));
        assert_eq!(logprobs(no.clone(), json!(0)), Ok(None));
        let error = logprobs(no, json!(5)).unwrap_err();
        assert_eq!((error.code, error.param.as_deref()), (ErrorCode::InvalidValue, Some("top_logprobs")));
        assert!(error.message.contains("'logprobs'"), "the remedy: {error}");
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
        ..SamplingOptions::default()
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
fn an_answer_may_go_on_with_the_last_message() {
    let body = |more: Value| {
        let mut body = json!({"model": "m", "messages": [
            {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "},
        ]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        parse(&body)
    };
    let prompt = |more: Value| {
        let request = body(more).unwrap();
        let generation = request.generation;
        (generation.add_generation_prompt, generation.continue_final_message, request.echo)
    };
    assert_eq!(prompt(json!({})), (true, false, None));
    assert_eq!(prompt(json!({"add_generation_prompt": false})), (false, false, None));
    assert_eq!(prompt(json!({"continue_final_message": true})), (false, true, None));
    let both = json!({"continue_final_message": true, "add_generation_prompt": false, "echo": true});
    assert_eq!(prompt(both), (false, true, Some("Well, ".to_owned())));
    let user = json!([{"role": "user", "content": "Hi"}]);
    assert_eq!(body(json!({"messages": user, "echo": true})).unwrap().echo, None, "it is not the answer's");
    let call = json!([{"role": "assistant", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
    ]}]);
    for (more, param) in [
        (json!({"continue_final_message": true, "add_generation_prompt": true}), "continue_final_message"),
        (json!({"continue_final_message": true, "messages": user}), "messages"),
        (json!({"continue_final_message": true, "messages": call}), "messages"),
    ] {
        let error = body(more.clone()).unwrap_err();
        assert_eq!((error.code, error.param.as_deref()), (ErrorCode::InvalidValue, Some(param)), "{more}");
    }
}

#[test]
fn words_and_salts_are_read() {
    let read = |name: &str, value: Value| parse(&with(name, value)).map(|request| request.generation);
    assert_eq!(read("bad_words", json!(["a", " b"])).unwrap().sampling.bad_words, ["a", " b"]);
    assert_eq!(read("cache_salt", json!("s")).unwrap().cache_salt.as_deref(), Some("s"));
    assert_eq!(read("prompt_logprobs", json!(0)).unwrap().prompt_logprobs, Some(0));
    assert!(read("return_token_ids", json!(true)).unwrap().return_token_ids);
    for (name, value, param) in [
        ("bad_words", json!([""]), "bad_words[0]"),
        ("bad_words", json!(vec!["x"; 513]), "bad_words"),
        ("cache_salt", json!(""), "cache_salt"),
        ("prompt_logprobs", json!(21), "prompt_logprobs"),
        ("prompt_logprobs", json!(-1), "prompt_logprobs"),
        ("logprob_token_ids", json!([]), "logprob_token_ids"),
        ("logprob_token_ids", json!([1]), "logprob_token_ids"),
    ] {
        assert_eq!(read(name, value.clone()).unwrap_err().param.as_deref(), Some(param), "{name}: {value}");
    }
}

#[test]
fn negative_seeds_are_seeds() {
    assert_eq!(parse(&with("seed", json!(-1))).unwrap().seed, Some(u64::MAX));
}

const NO_TOKENS: ChunkTokens<'_> = ChunkTokens { logprobs: None, ids: None };

fn answer() -> ChatAnswer {
    ChatAnswer {
        envelope: Envelope {
            job: JobId::from_random(1),
            created: 5,
            model: "m".into(),
            fingerprint: "fp".into(),
        },
        metadata: None,
        tool_format: None,
        beside_calls: TextBesideCalls::default(),
        tool_choice: ToolChoice::Auto,
        echo: None,
        details: TokenDetails::default(),
    }
}

#[allow(clippy::needless_pass_by_value)] // its callers have nothing else to do with it
fn value(text: String) -> Value {
    serde_json::from_str(&text).unwrap()
}

#[test]
fn chunks_have_the_documented_shape() {
    let answer = answer();
    let first = value(answer.chunk(0, Delta::Role, NO_TOKENS, ChunkUsage::Absent));
    assert_eq!(first["object"], "chat.completion.chunk");
    assert_eq!(first["id"], format!("chatcmpl-{:032x}", 1));
    assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert!(first.get("usage").is_none());
    let more = value(answer.chunk(2, Delta::Content("x"), NO_TOKENS, ChunkUsage::Absent));
    assert_eq!(
        more["choices"],
        json!([{"index": 2, "delta": {"content": "x"}, "logprobs": null, "finish_reason": null}])
    );
    let last = value(answer.chunk(
        0,
        Delta::Finish { reason: FinishReason::Stop, calls: 0 },
        NO_TOKENS,
        ChunkUsage::Null,
    ));
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(last["usage"], Value::Null);
    let usage =
        value(answer.usage_chunk(&Usage { prompt_tokens: 2, cached_tokens: 1, completion_tokens: 3 }));
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["total_tokens"], 5);
    assert_eq!(usage["usage"]["prompt_tokens_details"], json!({"cached_tokens": 1}));
}

/// The first two of the three bytes of U+6F22, with alternatives.
fn part_of_a_character() -> TokenLogprobs {
    let token =
        |bytes: &[u8], logprob| TokenLogprob { id: bytes.len() as u32, bytes: bytes.to_vec(), logprob };
    TokenLogprobs {
        token: token(&[0xe6, 0xbc], -0.5),
        top: vec![token(b" a", -0.25), token(&[0xe6, 0xbc], -0.5), token(b"", IMPOSSIBLE_LOGPROB)],
    }
}

fn part_of_a_character_in_json() -> Value {
    json!([{
        "token": "\u{fffd}", "logprob": -0.5, "bytes": [0xe6, 0xbc],
        "top_logprobs": [
            {"token": " a", "logprob": -0.25, "bytes": [32, 97]},
            {"token": "\u{fffd}", "logprob": -0.5, "bytes": [0xe6, 0xbc]},
            {"token": "", "logprob": -9999.0, "bytes": null},
        ],
    }])
}

#[test]
fn a_chunk_carries_the_log_probabilities_of_its_tokens() {
    let chunk = |logprobs: &[TokenLogprobs]| {
        let tokens = ChunkTokens { logprobs: Some(logprobs), ids: None };
        value(answer().chunk(1, Delta::Content(""), tokens, ChunkUsage::Absent))["choices"][0].clone()
    };
    let part = chunk(&[part_of_a_character()]);
    assert_eq!(part["delta"], json!({"content": ""}));
    assert_eq!(part["logprobs"], json!({"content": part_of_a_character_in_json(), "refusal": null}));
    assert_eq!(chunk(&[])["logprobs"], json!({"content": [], "refusal": null}));
}

#[test]
fn tokens_are_told_as_asked_for() {
    let details =
        TokenDetails { ids: true, called_by_ids: true, prompt_logprobs: Some(1), ..TokenDetails::default() };
    let answer = ChatAnswer { details, echo: Some("So ".into()), ..answer() };
    let score = PromptScore { logprob: -1.5, rank: 4, top: Vec::new() };
    let prompt = [
        PromptToken { id: 1, bytes: b"<s>".to_vec(), score: None },
        PromptToken { id: 9, bytes: b"x".to_vec(), score: Some(score) },
    ];
    let choice = |text: &str| Choice {
        text: text.into(),
        logprobs: Some(vec![part_of_a_character()]),
        ids: Some(vec![2]),
        prompt: Some(prompt.clone().into()),
        finish_reason: Some(FinishReason::Stop),
    };
    let whole = value(answer.completion(&[choice("a"), choice("b")], &Usage::default()));
    assert_eq!(whole["prompt_token_ids"], json!([1, 9]));
    let entry = json!({"logprob": -1.5, "rank": 4, "decoded_token": "x"});
    assert_eq!(whole["prompt_logprobs"], json!([null, {"9": entry}]));
    let second = &whole["choices"][1];
    assert_eq!((&second["token_ids"], &second["message"]["content"]), (&json!([2]), &json!("So b")));
    let token = &second["logprobs"]["content"][0];
    assert_eq!((&token["token"], &token["bytes"]), (&json!("token_id:2"), &json!([0xe6, 0xbc])));
    assert_eq!(token["top_logprobs"][0]["token"], "token_id:2");
    // An echo stands before calls, too, and is none of itself where it is empty.
    let calls = ChatAnswer { tool_format: Some(ToolFormat::Hermes), ..answer.clone() };
    let only_calls = choice(CALLS.strip_prefix("Let me see.").unwrap());
    let message = |answer: &ChatAnswer| {
        value(answer.completion(std::slice::from_ref(&only_calls), &Usage::default()))["choices"][0]["message"]
            ["content"]
            .clone()
    };
    assert_eq!(message(&calls), json!("So "));
    assert_eq!(message(&ChatAnswer { echo: Some(String::new()), ..calls }), json!(null));
}

#[test]
fn an_answer_has_all_choices_in_order() {
    let choices = [
        Choice { text: "a".into(), finish_reason: Some(FinishReason::Stop), ..Choice::default() },
        Choice {
            text: "b".into(),
            logprobs: Some(vec![part_of_a_character()]),
            finish_reason: Some(FinishReason::Length),
            ..Choice::default()
        },
    ];
    let usage = Usage { prompt_tokens: 2, cached_tokens: 1, completion_tokens: 3 };
    let answer = value(answer().completion(&choices, &usage));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(
        answer["choices"],
        json!([
            {
                "index": 0, "message": {"role": "assistant", "content": "a", "refusal": null},
                "logprobs": null, "finish_reason": "stop",
            },
            {
                "index": 1, "message": {"role": "assistant", "content": "b", "refusal": null},
                "logprobs": {"content": part_of_a_character_in_json(), "refusal": null},
                "finish_reason": "length",
            },
        ])
    );
    assert_eq!(
        answer["usage"],
        json!({
            "prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 1},
            "completion_tokens_details": {"reasoning_tokens": 0},
        })
    );
}

const CALLS: &str = "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>\n\
    <tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";

#[test]
fn calls_are_told_apart_from_text() {
    let told = |text: &str, reason, tool_choice| {
        let answer = ChatAnswer { tool_format: Some(ToolFormat::Hermes), tool_choice, ..answer() };
        let choice = Choice { text: text.into(), finish_reason: Some(reason), ..Choice::default() };
        value(answer.completion(&[choice], &Usage::default()))["choices"][0].clone()
    };
    let choice = told(CALLS, FinishReason::Stop, ToolChoice::Auto);
    assert_eq!(choice["finish_reason"], "tool_calls");
    let call = |index, name: &str, arguments: &str| {
        let id = call_id(&JobId::from_random(1), 0, index);
        json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
    };
    let calls = json!([call(0, "f", "{\"a\": 1}"), call(1, "g", "{}")]);
    assert_eq!(
        choice["message"],
        json!({"role": "assistant", "content": "Let me see.", "refusal": null, "tool_calls": calls})
    );
    let only_call = CALLS.strip_prefix("Let me see.").unwrap();
    let choice = told(only_call, FinishReason::Stop, ToolChoice::Named("f".into()));
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(null), &json!("stop")));
    assert_eq!(told(CALLS, FinishReason::Length, ToolChoice::Auto)["finish_reason"], "length");
    let cut = ChatAnswer {
        tool_format: Some(ToolFormat::Hermes),
        beside_calls: TextBesideCalls::None,
        tool_choice: ToolChoice::Required,
        ..answer()
    };
    let choice = Choice {
        text: "<tool_call>\n{\"na".into(),
        finish_reason: Some(FinishReason::Length),
        ..Choice::default()
    };
    let cut = value(cut.completion(&[choice], &Usage::default()))["choices"][0].clone();
    assert_eq!(cut["message"], json!({"role": "assistant", "content": "", "refusal": null}));
    let plain = told("", FinishReason::Stop, ToolChoice::Required);
    assert_eq!(plain["message"], json!({"role": "assistant", "content": "", "refusal": null}));
}

#[test]
fn a_call_is_streamed_as_its_name_and_pieces_of_its_arguments() {
    let delta =
        |delta| value(answer().chunk(0, delta, NO_TOKENS, ChunkUsage::Absent))["choices"][0]["delta"].clone();
    let id = call_id(&JobId::from_random(1), 0, 2);
    let function = json!({"name": "f", "arguments": ""});
    assert_eq!(
        delta(Delta::CallStart { index: 2, name: "f" }),
        json!({"tool_calls": [{"index": 2, "id": id, "type": "function", "function": function}]})
    );
    assert_eq!(
        delta(Delta::Arguments { index: 2, text: "{\"" }),
        json!({"tool_calls": [{"index": 2, "function": {"arguments": "{\""}}]})
    );
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
