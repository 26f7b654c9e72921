//! Each parameter of a chat request that has no file of its own: honoured, accepted because it asks
//! for nothing, or refused by its name. `choices`, `sampling`, `tools` and `response_format` have
//! the others.

use anyhow::{Context as _, Result};
use emberline_protocol::relaxed::RELAXED_HEADER;
use emberline_test_kit::cases;
use emberline_test_kit::compare::{refusal, whole_and_streamed, with};
use emberline_test_kit::stack::{API_KEY, MODEL, Stack};
use serde_json::{Value, json};

use super::AT_ONCE;

const CHAT: &str = "/v1/chat/completions";

fn question() -> Value {
    json!({
        "model": MODEL, "temperature": 0, "max_tokens": 12,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is the capital of France?"},
        ],
    })
}

fn text(answer: &Value) -> Result<&str> {
    answer["choices"][0]["message"]["content"].as_str().context("content")
}

#[tokio::test]
async fn on_one_stack() -> Result<()> {
    let stack = Stack::start().await?;
    cases::run(
        AT_ONCE,
        cases![&stack;
            what_asks_for_nothing_changes_nothing,
            what_is_not_supported_is_refused_by_name,
            what_the_template_does_not_read_is_left_out_and_told,
            a_conversation_is_the_same_in_each_of_its_forms,
            metadata_comes_back_and_usage_has_its_details,
            an_answer_without_a_limit_ends_by_itself_or_with_the_context,
            what_is_asked_without_insisting_is_left_out_and_named,
            vllms_structured_outputs_are_obeyed,
        ],
    )
    .await
}

async fn what_asks_for_nothing_changes_nothing(stack: &Stack) -> Result<()> {
    let plain = whole_and_streamed(stack, &question()).await?;
    for nothing in [
        json!({"store": false}),
        json!({"service_tier": "auto"}),
        json!({"service_tier": "default"}),
        json!({"user": "ann", "safety_identifier": "s", "prompt_cache_key": "k", "prompt_cache_retention": "24h"}),
        json!({"modalities": ["text"]}),
        json!({"response_format": {"type": "text"}}),
        json!({"tools": []}),
        json!({"tools": [], "tool_choice": "none", "parallel_tool_calls": true}),
        json!({"n": 1, "presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}, "stop": [], "min_tokens": 0}),
        json!({"chat_template_kwargs": {}}),
        json!({"structured_outputs": {}, "guided_json_object": false}),
        json!({"functions": [], "function_call": "none", "client_metadata": {"session": "s"}, "best_of": 1}),
        // Defaults of vLLM, SGLang and llama.cpp.
        json!({"skip_special_tokens": true, "spaces_between_special_tokens": true, "include_stop_str_in_output": false,
               "use_beam_search": false, "length_penalty": 1.0, "early_stopping": false, "priority": 0,
               "detokenize": true, "add_special_tokens": false, "truncate_prompt_tokens": null}),
        json!({"no_stop_trim": false, "return_hidden_states": false, "cache_prompt": true, "typical_p": 1.0,
               "mirostat": 0, "dry_multiplier": 0.0, "repeat_penalty": 1.0, "n_probs": 0, "id_slot": -1}),
        // Absent, in OpenAI's API.
        json!({"n": null, "stop": null, "seed": null, "logprobs": null, "tools": null, "metadata": null, "store": null}),
        json!({"max_completion_tokens": 12}),
        json!({"max_completion_tokens": 12, "max_tokens": null}),
        json!({"stream_options": null}),
    ] {
        let answer = whole_and_streamed(stack, &with(&question(), &nothing))
            .await
            .with_context(|| nothing.to_string())?;
        assert_eq!(answer["choices"], plain["choices"], "{nothing}");
        assert_eq!(answer["service_tier"], "default");
        assert_eq!(answer["system_fingerprint"], plain["system_fingerprint"]);
    }
    let mut streamed = question();
    streamed["stream_options"] = json!({"include_obfuscation": false});
    let stream = stack.stream(&streamed).await?;
    assert_eq!(stream.text(), text(&plain)?);
    assert!(stream.chunks.iter().all(|chunk| chunk.get("usage").is_none_or(Value::is_null)));
    assert!(stream.chunks.iter().all(|chunk| chunk.get("obfuscation").is_none()));
    Ok(())
}

async fn what_is_not_supported_is_refused_by_name(stack: &Stack) -> Result<()> {
    let user = |part: Value| json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, part]}]});
    let unsupported = [
        (json!({"service_tier": "flex"}), "service_tier"),
        (json!({"service_tier": "priority"}), "service_tier"),
        (json!({"modalities": ["text", "audio"]}), "modalities[1]"),
        (json!({"audio": {"voice": "alloy", "format": "wav"}}), "audio"),
        (json!({"prediction": {"type": "content", "content": "x"}}), "prediction"),
        (json!({"web_search_options": {}}), "web_search_options"),
        (json!({"moderation": {}}), "moderation"),
        (json!({"functions": [{"name": "f"}]}), "functions"),
        (json!({"function_call": {"name": "f"}}), "function_call"),
        (json!({"skip_special_tokens": false}), "skip_special_tokens"),
        (json!({"include_stop_str_in_output": true}), "include_stop_str_in_output"),
        (json!({"use_beam_search": true}), "use_beam_search"),
        (json!({"best_of": 2}), "best_of"),
        (json!({"length_penalty": 0.5}), "length_penalty"),
        (json!({"priority": 1}), "priority"),
        (json!({"truncate_prompt_tokens": 5}), "truncate_prompt_tokens"),
        (json!({"allowed_token_ids": [1]}), "allowed_token_ids"),
        (json!({"mirostat": 2}), "mirostat"),
        (json!({"structured_outputs": {"structural_tag": "x"}}), "structured_outputs.structural_tag"),
        (user(json!({"type": "thinking", "thinking": "hm"})), "messages[0].content[1].type"),
        (user(json!({"type": "image_url", "image_url": {"url": "data:,"}})), "messages[0].content[1].type"),
        (user(json!({"type": "input_audio", "input_audio": {}})), "messages[0].content[1].type"),
        (user(json!({"type": "file", "file": {}})), "messages[0].content[1].type"),
        (json!({"messages": [{"role": "function", "name": "f", "content": "x"}]}), "messages[0].role"),
        (
            json!({"stream": true, "stream_options": {"include_obfuscation": true}}),
            "stream_options.include_obfuscation",
        ),
    ];
    for (more, param) in unsupported {
        let body = with(&question(), &more);
        let wanted = (400, "unsupported_parameter".to_owned(), Some(param.to_owned()));
        assert_eq!(refusal(stack, CHAT, &body).await?, wanted, "{more}");
        let streamed = with(&body, &json!({"stream": true}));
        assert_eq!(refusal(stack, CHAT, &streamed).await?, wanted, "{more}, streamed");
    }
    // Unknown names at any depth.
    for (more, param) in [
        (json!({"beam_width": 4}), "beam_width"),
        (json!({"stream": true, "stream_options": {"every": 1}}), "stream_options.every"),
        (user(json!({"type": "text", "text": "Hi", "size": 3})), "messages[0].content[1].size"),
    ] {
        let wanted = (400, "unknown_parameter".to_owned(), Some(param.to_owned()));
        assert_eq!(refusal(stack, CHAT, &with(&question(), &more)).await?, wanted, "{more}");
    }
    // The server goes on serving.
    whole_and_streamed(stack, &question()).await?;
    Ok(())
}

async fn what_the_template_does_not_read_is_left_out_and_told(stack: &Stack) -> Result<()> {
    let plain = whole_and_streamed(stack, &question()).await?;
    let relaxed = |response: &reqwest::Response| {
        let header = response.headers().get(RELAXED_HEADER)?;
        header.to_str().ok().map(str::to_owned)
    };
    for (more, paths) in [
        (json!({}), None),
        (json!({"reasoning_effort": "low"}), Some("reasoning_effort")),
        (json!({"verbosity": "low"}), Some("verbosity")),
        (
            json!({"chat_template_kwargs": {"enable_thinking": false, "depth": 3}}),
            Some("chat_template_kwargs.enable_thinking, chat_template_kwargs.depth"),
        ),
    ] {
        let body = with(&question(), &more);
        let answer = whole_and_streamed(stack, &body).await.with_context(|| more.to_string())?;
        assert_eq!(answer["choices"], plain["choices"], "{more}");
        for stream in [false, true] {
            let response = stack.chat(&with(&body, &json!({"stream": stream}))).await?;
            assert_eq!(relaxed(&response).as_deref(), paths, "{more}");
        }
    }
    let tokens =
        json!({"model": MODEL, "messages": question()["messages"], "chat_template_kwargs": {"depth": 3}});
    let response = stack.post("/tokenize", API_KEY, &[], &tokens).await?;
    assert_eq!(relaxed(&response).as_deref(), Some("chat_template_kwargs.depth"));
    Ok(())
}

async fn a_conversation_is_the_same_in_each_of_its_forms(stack: &Stack) -> Result<()> {
    let ask = |messages: Value| with(&question(), &json!({"messages": messages}));
    let part = |text: &str| json!({"type": "text", "text": text});
    let (system, user) = ("You are a helpful assistant.", "What is the capital of France?");
    let plain = whole_and_streamed(stack, &question()).await?;
    for messages in [
        json!([{"role": "developer", "content": system}, {"role": "user", "content": user}]),
        json!([{"role": "system", "content": [part(system)]}, {"role": "user", "content": [part("What is the "), part("capital of France?")]}]),
    ] {
        assert_eq!(
            whole_and_streamed(stack, &ask(messages.clone())).await?["choices"],
            plain["choices"],
            "{messages}"
        );
    }
    let before =
        |answer: Value| json!([{"role": "user", "content": "Hi"}, answer, {"role": "user", "content": user}]);
    let said =
        whole_and_streamed(stack, &ask(before(json!({"role": "assistant", "content": "No, thanks."}))))
            .await?;
    for answer in [
        json!({"role": "assistant", "content": [part("No, "), part("thanks.")]}),
        json!({"role": "assistant", "content": [{"type": "refusal", "refusal": "No, thanks."}]}),
        json!({"role": "assistant", "content": "No, thanks.", "refusal": null, "annotations": [], "tool_calls": null,
               "provider_specific_fields": {"refusal": null}}),
    ] {
        assert_eq!(
            whole_and_streamed(stack, &ask(before(answer.clone()))).await?["choices"],
            said["choices"],
            "{answer}"
        );
    }
    // What other servers put into an answer.
    for more in [
        json!({"phase": "final_answer", "id": "msg_1", "cache_control": {"type": "ephemeral"}}),
        json!({"reasoning_content": "They are busy.", "audio": null, "function_call": null, "tool_calls": []}),
    ] {
        let answer = with(&json!({"role": "assistant", "content": "No, thanks."}), &more);
        assert_eq!(
            whole_and_streamed(stack, &ask(before(answer))).await?["choices"],
            said["choices"],
            "{more}"
        );
    }
    // A name is part of the prompt.
    let named =
        whole_and_streamed(stack, &ask(json!([{"role": "user", "name": "Ann", "content": user}]))).await?;
    let nameless = whole_and_streamed(stack, &ask(json!([{"role": "user", "content": user}]))).await?;
    let count = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().context("prompt_tokens");
    assert!(count(&named)? > count(&nameless)?, "{}", named["usage"]);
    Ok(())
}

async fn metadata_comes_back_and_usage_has_its_details(stack: &Stack) -> Result<()> {
    let metadata = json!({"purpose": "test", "ü": "é"});
    let body = with(&question(), &json!({"metadata": metadata}));
    whole_and_streamed(stack, &body).await?;
    let answer = whole_and_streamed(stack, &body).await?;
    assert_eq!(answer["metadata"], metadata);
    let usage = &answer["usage"];
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 0);
    let (prompt, cached) = (&usage["prompt_tokens"], &usage["prompt_tokens_details"]["cached_tokens"]);
    assert!(cached.as_u64() > Some(0) && cached.as_u64() < prompt.as_u64(), "{usage}");
    let fingerprint = answer["system_fingerprint"].as_str().context("system_fingerprint")?;
    assert!(!fingerprint.is_empty());
    let many: serde_json::Map<String, Value> = (0..17).map(|n| (n.to_string(), json!("x"))).collect();
    let refused = refusal(stack, CHAT, &with(&question(), &json!({"metadata": many}))).await?;
    assert_eq!(refused, (400, "invalid_value".to_owned(), Some("metadata".to_owned())));
    Ok(())
}

async fn an_answer_without_a_limit_ends_by_itself_or_with_the_context(stack: &Stack) -> Result<()> {
    let body = with(&question(), &json!({"max_tokens": null}));
    let answer = whole_and_streamed(stack, &body).await?;
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    for none in [json!({"max_tokens": -1}), json!({"max_tokens": null, "max_completion_tokens": -1})] {
        assert_eq!(
            whole_and_streamed(stack, &with(&body, &none)).await?["choices"],
            answer["choices"],
            "{none}"
        );
    }
    let beyond = with(&question(), &json!({"max_tokens": null, "max_completion_tokens": 8192}));
    let wanted = (400, "context_length_exceeded".to_owned(), Some("messages".to_owned()));
    assert_eq!(refusal(stack, CHAT, &beyond).await?, wanted);
    Ok(())
}

/// The paths that an answer's header lists.
fn relaxed(response: &reqwest::Response) -> Result<Vec<String>> {
    let value = response.headers().get("x-emberline-relaxed").map(|value| value.to_str()).transpose()?;
    Ok(value.map(|list| list.split(", ").map(str::to_owned).collect()).unwrap_or_default())
}

async fn what_is_asked_without_insisting_is_left_out_and_named(stack: &Stack) -> Result<()> {
    let function =
        json!({"type": "function", "function": {"name": "f"}, "cache_control": {"type": "ephemeral"}});
    let tools = json!([{"type": "web_search"}, function, {"type": "custom", "custom": {"name": "c"}}]);
    for (more, paths) in [
        (json!({"store": true}), &["store"][..]),
        (json!({"tools": tools, "tool_choice": "none"}), &["tools[0]", "tools[2]"]),
        (json!({"tools": [{"type": "mcp"}]}), &["tools[0]"]),
        (
            json!({"guided_regex": "[a-z]{3}", "guided_decoding_backend": "outlines"}),
            &["guided_decoding_backend"],
        ),
        (json!({"tools": []}), &[]),
    ] {
        let whole = stack.chat(&with(&question(), &more)).await?;
        assert_eq!(
            (whole.status().as_u16(), relaxed(&whole)?),
            (200, paths.iter().map(|&p| p.into()).collect())
        );
        let streamed = stack.chat(&with(&question(), &with(&more, &json!({"stream": true})))).await?;
        assert_eq!(relaxed(&streamed)?, paths, "{more}");
        let _ = streamed.text().await?;
    }
    // A call that only what is left out could answer is refused.
    let forced = json!({"tools": [{"type": "web_search"}], "tool_choice": "required"});
    let wanted = (400, "unsupported_parameter".to_owned(), Some("tool_choice".to_owned()));
    assert_eq!(refusal(stack, CHAT, &with(&question(), &forced)).await?, wanted);
    // What a worker finds is named as the client wrote it.
    let schema = json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}, "required": ["a"],
                        "additionalProperties": false});
    let strict = json!({"type": "function", "function": {"name": "g", "strict": true, "parameters": schema}});
    let (status, _, param) =
        refusal(stack, CHAT, &with(&question(), &json!({"tools": [{"type": "mcp"}, function, strict]})))
            .await?;
    assert_eq!((status, param.as_deref()), (400, Some("tools[2].function.parameters.properties.a.pattern")));
    Ok(())
}

async fn vllms_structured_outputs_are_obeyed(stack: &Stack) -> Result<()> {
    let schema = json!({"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false});
    let free = with(&question(), &json!({"temperature": 1.2, "seed": 5, "max_tokens": 40}));
    for (more, fits) in [
        (json!({"structured_outputs": {"regex": "[a-c]{4}"}}), "[a-c]{4}"),
        (json!({"guided_regex": "[a-c]{4}"}), "[a-c]{4}"),
        (json!({"structured_outputs": {"choice": ["red {", "green \"x\""]}}), "choice"),
        (json!({"guided_choice": ["red {", "green \"x\""]}), "choice"),
        (json!({"structured_outputs": {"grammar": "start: \"red {\" | \"green\" \" \\\"x\\\"\""}}), "choice"),
        (json!({"structured_outputs": {"json": schema}}), "json"),
        (json!({"guided_json": schema.to_string()}), "json"),
    ] {
        let answer =
            whole_and_streamed(stack, &with(&free, &more)).await.with_context(|| more.to_string())?;
        let text = text(&answer)?;
        let obeys = match fits {
            "choice" => ["red {", "green \"x\""].contains(&text),
            "json" => jsonschema::is_valid(&schema, &serde_json::from_str(text)?),
            _ => text.len() == 4 && text.chars().all(|c| ('a'..='c').contains(&c)),
        };
        assert!(obeys, "{more}: {text}");
    }
    for (more, param) in [
        (json!({"guided_regex": "a", "guided_json": {}}), "guided_json"),
        (json!({"guided_regex": "a", "response_format": {"type": "json_object"}}), "guided_regex"),
        (json!({"guided_regex": "(a"}), "guided_regex"),
        (json!({"structured_outputs": {"grammar": "root ::= \"a\""}}), "structured_outputs.grammar"),
    ] {
        let wanted = (400, "invalid_value".to_owned(), Some(param.to_owned()));
        assert_eq!(refusal(stack, CHAT, &with(&free, &more)).await?, wanted, "{more}");
    }
    Ok(())
}
