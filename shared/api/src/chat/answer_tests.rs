use serde_json::json;

use emberline_protocol::event::IMPOSSIBLE_LOGPROB;
use emberline_protocol::prompt::PromptScore;
use emberline_protocol::subject::JobId;

use super::*;

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

#[allow(clippy::needless_pass_by_value)] // callers have no other use for it
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

/// A token with the first two of the three bytes of U+6F22, and its alternatives.
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
    // An echo precedes function calls, too; an empty echo leaves the content null.
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
    let choice_for = |text: &str, reason, tool_choice| {
        let answer = ChatAnswer { tool_format: Some(ToolFormat::Hermes), tool_choice, ..answer() };
        let choice = Choice { text: text.into(), finish_reason: Some(reason), ..Choice::default() };
        value(answer.completion(&[choice], &Usage::default()))["choices"][0].clone()
    };
    let choice = choice_for(CALLS, FinishReason::Stop, ToolChoice::Auto);
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
    let choice = choice_for(only_call, FinishReason::Stop, ToolChoice::Named("f".into()));
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(null), &json!("stop")));
    assert_eq!(choice_for(CALLS, FinishReason::Length, ToolChoice::Auto)["finish_reason"], "length");
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
    let plain = choice_for("", FinishReason::Stop, ToolChoice::Required);
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
