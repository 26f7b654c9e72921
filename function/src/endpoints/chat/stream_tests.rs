use emberline_api::answer::Envelope;
use emberline_api::parameters::StreamUsage;
use emberline_api::token_details::TokenDetails;
use emberline_protocol::event::{Acceptance, TokenLogprob, Usage};
use emberline_protocol::job::ToolChoice;
use emberline_protocol::prompt::PromptScore;
use emberline_protocol::subject::JobId;
use emberline_protocol::tools::{TextBesideCalls, ToolFormat, call_id};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::relay::PromptLimits;
use crate::response::sse::tests::payload;

fn answer(tool_format: Option<ToolFormat>) -> ChatAnswer {
    let job = JobId::from_random(1);
    ChatAnswer {
        envelope: Envelope { job, created: 2, model: "m".into(), fingerprint: "fp".into() },
        metadata: None,
        tool_format,
        beside_calls: TextBesideCalls::default(),
        tool_choice: ToolChoice::Auto,
        echo: None,
        details: TokenDetails::default(),
    }
}

fn frames(tool_format: Option<ToolFormat>, logprobs: Option<u32>) -> ChatStream {
    ChatStream::new(answer(tool_format), UsageCounter::new(StreamUsage::Never, &[]), limits(logprobs))
}

fn limits(logprobs: Option<u32>) -> OutputLimits {
    OutputLimits { choices: 2, tokens: 100, logprobs, ..OutputLimits::default() }
}

fn text(choice: u32, text: &str) -> Output {
    Output::Text { choice, text: text.into(), logprobs: None, ids: None, tokens: 1 }
}

fn choices(frames: &[Bytes]) -> Vec<Value> {
    frames.iter().map(|frame| payload(frame)["choices"][0].clone()).collect()
}

#[test]
fn a_stream_has_the_documented_shape() {
    let mut frames = frames(None, None);
    let opening = choices(&frames.begin());
    assert_eq!(opening.len(), 2);
    assert_eq!(
        (&opening[1]["index"], &opening[1]["delta"]),
        (&json!(1), &json!({"role": "assistant", "content": ""}))
    );
    let more = choices(&frames.on_output(text(0, "x\ny")));
    assert_eq!(
        more,
        [json!({"index": 0, "delta": {"content": "x\ny"}, "logprobs": null, "finish_reason": null})]
    );
    let last = choices(&frames.on_output(Output::Finish { choice: 0, reason: FinishReason::Length }));
    assert_eq!((&last[0]["delta"], &last[0]["finish_reason"]), (&json!({}), &json!("length")));
    assert_eq!(frames.on_output(Output::Done(Ending::default())), [DONE]);
    assert!(frames.on_output(text(2, "of no choice")).is_empty());
}

#[test]
fn usage_comes_in_a_chunk_of_its_own() {
    let mut frames = ChatStream::new(
        answer(None),
        UsageCounter::new(StreamUsage::Last, &[]),
        OutputLimits { choices: 1, ..limits(None) },
    );
    assert_eq!(payload(&frames.on_output(text(0, "x"))[0])["usage"], Value::Null);
    let usage = Usage { prompt_tokens: 1, cached_tokens: 0, completion_tokens: 2 };
    let end = frames.on_output(Output::Done(Ending { usage, at: None }));
    let usage = payload(&end[0]);
    assert_eq!((&usage["choices"], &usage["usage"]["total_tokens"]), (&json!([]), &json!(3)));
    assert_eq!(end[1..], [DONE]);
}

#[test]
fn usage_so_far_comes_with_every_chunk_if_it_is_asked_for() {
    let prompt = Acceptance { prompt_tokens: 5, ..Acceptance::default() };
    let count = UsageCounter::new(StreamUsage::Always, &[prompt]);
    let mut frames = ChatStream::new(answer(None), count, OutputLimits { choices: 1, ..limits(None) });
    let counts = |frames: &[Bytes]| {
        let usage = payload(&frames[0])["usage"].clone();
        (usage["prompt_tokens"].clone(), usage["completion_tokens"].clone())
    };
    assert_eq!(counts(&frames.begin()), (json!(5), json!(0)));
    assert_eq!(counts(&frames.on_output(text(0, "x"))), (json!(5), json!(1)));
    let three = Output::Text { choice: 0, text: "abc".into(), logprobs: None, ids: None, tokens: 3 };
    assert_eq!(counts(&frames.on_output(three)), (json!(5), json!(4)));
    let finish = Output::Finish { choice: 0, reason: FinishReason::Stop };
    assert_eq!(counts(&frames.on_output(finish)), (json!(5), json!(4)));
    let usage = Usage { prompt_tokens: 5, cached_tokens: 0, completion_tokens: 5 };
    let end = frames.on_output(Output::Done(Ending { usage, at: None }));
    assert_eq!(counts(&end), (json!(5), json!(5)));
    assert_eq!(end[1..], [DONE]);
}

fn token(text: &str) -> TokenLogprobs {
    let token = TokenLogprob { id: 7, bytes: text.as_bytes().to_vec(), logprob: -0.5 };
    TokenLogprobs { token, top: Vec::new() }
}

#[test]
fn log_probabilities_come_with_their_text() {
    let mut frames = frames(None, Some(0));
    let output = Output::Text {
        choice: 1,
        text: String::new(),
        logprobs: Some(vec![token("x")]),
        ids: None,
        tokens: 1,
    };
    let choice = &choices(&frames.on_output(output))[0];
    assert_eq!((&choice["index"], &choice["delta"]), (&json!(1), &json!({"content": ""})));
    let token = json!({"token": "x", "logprob": -0.5, "bytes": [120], "top_logprobs": []});
    assert_eq!(choice["logprobs"], json!({"content": [token], "refusal": null}));
}

#[test]
fn a_prompt_that_is_told_comes_with_the_first_chunk() {
    let within = OutputLimits { ids: true, prompt: Some(PromptLimits { logprobs: Some(0) }), ..limits(None) };
    let details = TokenDetails { ids: true, prompt_logprobs: Some(0), ..TokenDetails::default() };
    let echo = Some("Well".to_owned());
    let mut frames = ChatStream::new(
        ChatAnswer { details, echo, ..answer(None) },
        UsageCounter::new(StreamUsage::Never, &[]),
        within,
    );
    assert!(frames.begin().is_empty());
    let score = Some(PromptScore { logprob: -1.0, rank: 3, top: Vec::new() });
    let tokens = vec![
        PromptToken { id: 5, bytes: b"a".to_vec(), score: None },
        PromptToken { id: 6, bytes: b"b".to_vec(), score },
    ];
    let told = frames.on_output(Output::Prompt { first: 0, choices: 2, tokens: tokens.into() });
    let deltas: Vec<Value> = choices(&told).iter().map(|choice| choice["delta"].clone()).collect();
    let role = json!({"role": "assistant", "content": ""});
    assert_eq!(deltas, [role.clone(), json!({"content": "Well"}), role, json!({"content": "Well"})]);
    let (first, third) = (payload(&told[0]), payload(&told[2]));
    assert_eq!(first["prompt_token_ids"], json!([5, 6]));
    let entry = json!({"logprob": -1.0, "rank": 3, "decoded_token": "b"});
    assert_eq!(first["prompt_logprobs"], json!([null, {"6": entry}]));
    assert_eq!((third.get("prompt_token_ids"), third.get("prompt_logprobs")), (None, None));

    // Tokens without text have a chunk of their own before the last.
    let held = Output::Text { choice: 1, text: "x".into(), logprobs: None, ids: Some(vec![8, 9]), tokens: 2 };
    assert_eq!(choices(&frames.on_output(held))[0]["token_ids"], json!([8, 9]));
    let last = choices(&frames.on_output(Output::Finish { choice: 1, reason: FinishReason::Stop }));
    assert_eq!((last.len(), last[0].get("token_ids")), (1, None));
}

const CALL: &str = "Hm.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"é\"}}\n</tool_call>";

#[test]
fn a_call_comes_by_name_and_pieces_of_arguments() {
    let mut frames = frames(Some(ToolFormat::Hermes), None);
    let mut deltas = choices(&frames.on_output(text(1, CALL)));
    deltas.extend(choices(&frames.on_output(Output::Finish { choice: 1, reason: FinishReason::Stop })));
    let (last, deltas) = deltas.split_last().unwrap();
    assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("tool_calls")));
    let deltas: Vec<_> = deltas.iter().map(|choice| choice["delta"].clone()).collect();
    let id = call_id(&JobId::from_random(1), 1, 0);
    assert_eq!(deltas[0], json!({"content": "Hm."}));
    let function = json!({"name": "f", "arguments": ""});
    assert_eq!(
        deltas[1]["tool_calls"],
        json!([{"index": 0, "id": id, "type": "function", "function": function}])
    );
    let arguments: String = deltas[2..]
        .iter()
        .map(|delta| delta["tool_calls"][0]["function"]["arguments"].as_str().unwrap())
        .collect();
    assert_eq!(arguments, "{\"a\": \"é\"}");
}

#[test]
fn a_required_call_that_is_cut_off_before_its_name_is_no_text() {
    let required = ChatAnswer { beside_calls: TextBesideCalls::None, ..answer(Some(ToolFormat::Hermes)) };
    let mut frames = ChatStream::new(
        required,
        UsageCounter::new(StreamUsage::Never, &[]),
        OutputLimits { choices: 1, tokens: 9, logprobs: Some(0), ..OutputLimits::default() },
    );
    let logprobs = Some(vec![token("<tool_call>"), token("\n{\"na")]);
    let mut told = choices(&frames.on_output(Output::Text {
        choice: 0,
        text: "<tool_call>\n{\"na".into(),
        logprobs,
        ids: None,
        tokens: 2,
    }));
    told.extend(choices(&frames.on_output(Output::Finish { choice: 0, reason: FinishReason::Length })));
    let [tokens, end] = &told[..] else { panic!("{told:?}") };
    assert_eq!((&tokens["delta"], &end["delta"]), (&json!({"content": ""}), &json!({})));
    assert_eq!(tokens["logprobs"]["content"].as_array().unwrap().len(), 2);
    assert_eq!(end["finish_reason"], "length");
}

proptest! {
    #[test]
    fn no_text_breaks_a_frame(written in ".*|[\\n\\r\u{2028}]{0,5}") {
        let choice = &choices(&frames(None, None).on_output(text(0, &written)))[0];
        prop_assert_eq!(&choice["delta"]["content"], &json!(written));
    }

    /// However the worker cuts its text.
    #[test]
    fn every_token_has_its_log_probability_and_id_once_and_the_stream_is_the_whole(cuts in proptest::collection::vec(1_usize..5, 0..60)) {
        let within = OutputLimits { ids: true, ..limits(Some(0)) };
        let mut frames = ChatStream::new(answer(Some(ToolFormat::Hermes)), UsageCounter::new(StreamUsage::Never, &[]), within);
        let mut rest: Vec<char> = CALL.chars().collect();
        let (mut told, mut tokens) = (Vec::new(), Vec::new());
        for cut in cuts.into_iter().chain([usize::MAX]) {
            let part: String = rest.drain(..cut.min(rest.len())).collect();
            tokens.push(part.clone());
            let (logprobs, ids) = (Some(vec![token(&part)]), Some(vec![tokens.len() as u32]));
            told.extend(choices(&frames.on_output(Output::Text { choice: 0, text: part, logprobs, ids, tokens: 1 })));
        }
        told.extend(choices(&frames.on_output(Output::Finish { choice: 0, reason: FinishReason::Stop })));
        let heard: Vec<String> = told.iter()
            .flat_map(|choice| choice["logprobs"]["content"].as_array().cloned().unwrap_or_default())
            .map(|token| token["token"].as_str().unwrap().to_owned())
            .collect();
        let ids = told.iter().flat_map(|choice| choice["token_ids"].as_array().cloned().unwrap_or_default());
        prop_assert_eq!(ids.filter_map(|id| id.as_u64()).collect::<Vec<_>>(), (1..=tokens.len() as u64).collect::<Vec<_>>());
        prop_assert_eq!(heard, tokens);
        let join = |path: &str| told.iter().filter_map(|choice| choice.pointer(path)?.as_str()).collect::<String>();
        prop_assert_eq!(join("/delta/content"), "Hm.");
        prop_assert_eq!(join("/delta/tool_calls/0/function/arguments"), "{\"a\": \"é\"}");
        prop_assert_eq!(&told.last().unwrap()["finish_reason"], "tool_calls");
    }
}
