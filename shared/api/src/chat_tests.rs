use serde_json::json;

use emberline_protocol::job::{Constraint, Message, Role, SamplingOptions, ToolCall, ToolChoice};

use super::*;
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
    // The client's schema is not changed; its nulls are kept.
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
    assert_eq!(
        body(json!({"messages": user, "echo": true})).unwrap().echo,
        None,
        "it is not an assistant's message"
    );
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
