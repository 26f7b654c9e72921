use proptest::prelude::*;
use serde_json::{Value, json};

use emberline_protocol::event::{FinishReason, TokenLogprob, TokenLogprobs, Usage};
use emberline_protocol::job::Constraint;
use emberline_protocol::prompt::{PromptScore, PromptToken};
use emberline_protocol::subject::JobId;

use super::*;
use crate::answer::{Choice, ChunkTokens, ChunkUsage, Envelope};
use crate::schema::assert_enforceable;

fn parse(name: &str, value: &Value) -> Result<CompletionRequest, ApiError> {
    let mut body = json!({"model": "m", "prompt": "Once"});
    body[name] = value.clone();
    CompletionRequest::parse(body.to_string().as_bytes())
}

#[test]
fn nothing_is_declared_that_is_not_enforced() {
    assert_enforceable(BODY.schema());
}

#[test]
fn prompts_of_every_form_are_read() {
    let text = |text: &str| RawPrompt::Text(text.to_owned());
    for (prompt, expected) in [
        (json!("a"), vec![text("a")]),
        (json!(["a", "b"]), vec![text("a"), text("b")]),
        (json!([1, 2]), vec![RawPrompt::Tokens(vec![1, 2])]),
        (json!([[1, 2], [u32::MAX]]), vec![RawPrompt::Tokens(vec![1, 2]), RawPrompt::Tokens(vec![u32::MAX])]),
    ] {
        let request = parse("prompt", &prompt).unwrap();
        let prompts: Vec<_> = request.generations.into_iter().filter_map(|one| one.prompt).collect();
        assert_eq!(prompts, expected);
    }
}

#[test]
fn defaults_are_those_of_the_older_api() {
    let request = parse("user", &json!("u")).unwrap();
    let [generation] = &request.generations[..] else { panic!("one prompt") };
    assert_eq!((generation.max_tokens, generation.n, generation.logprobs), (Some(16), 1, None));
    assert!(!generation.echo && !request.stream && generation.messages.is_empty());
    assert_eq!(parse("logprobs", &json!(0)).unwrap().generations[0].logprobs, Some(0));
    assert!(parse("echo", &json!(true)).unwrap().generations[0].echo);
    assert!(parse("best_of", &json!(1)).is_ok() && parse("suffix", &json!(null)).is_ok());
}

#[test]
fn each_bad_field_is_named() {
    use ErrorCode::*;
    for (name, value, code, param) in [
        ("prompt", json!(null), MissingField, "prompt"),
        ("prompt", json!(5), InvalidType, "prompt"),
        ("prompt", json!(""), InvalidValue, "prompt"),
        ("prompt", json!([]), InvalidValue, "prompt"),
        ("prompt", json!([true]), InvalidType, "prompt[0]"),
        ("prompt", json!(["a", 1]), InvalidType, "prompt[1]"),
        ("prompt", json!([1, -1]), InvalidValue, "prompt[1]"),
        ("prompt", json!([[1], []]), InvalidValue, "prompt[1]"),
        ("prompt", json!(vec!["a"; 17]), InvalidValue, "prompt"),
        ("suffix", json!("end"), UnsupportedParameter, "suffix"),
        ("best_of", json!(2), UnsupportedParameter, "best_of"),
        ("logprobs", json!(6), InvalidValue, "logprobs"),
        ("logprobs", json!(true), InvalidType, "logprobs"),
        ("max_tokens", json!(0), InvalidValue, "max_tokens"),
        ("prompt_logprobs", json!(21), InvalidValue, "prompt_logprobs"),
        ("logprob_token_ids", json!([1]), InvalidValue, "logprob_token_ids"),
        ("bad_words", json!([""]), InvalidValue, "bad_words[0]"),
        ("cache_salt", json!(""), InvalidValue, "cache_salt"),
        ("min_tokens", json!(17), InvalidValue, "min_tokens"),
        ("messages", json!([]), UnknownParameter, "messages"),
        ("stream_options", json!({"include_usage": true}), InvalidValue, "stream_options"),
        ("add_special_tokens", json!(false), UnsupportedParameter, "add_special_tokens"),
        ("skip_special_tokens", json!(false), UnsupportedParameter, "skip_special_tokens"),
        ("max_tokens", json!(-2), InvalidValue, "max_tokens"),
        ("structured_outputs", json!({"regex": ""}), InvalidValue, "structured_outputs.regex"),
    ] {
        let error = parse(name, &value).unwrap_err();
        assert_eq!((error.code, error.param.as_deref()), (code, Some(param)), "{name}: {value}: {error}");
    }
    let body = json!({"model": "m", "prompt": "a", "n": 3, "best_of": 2});
    assert_eq!(CompletionRequest::parse(body.to_string().as_bytes()).unwrap_err().code, InvalidValue);
    let body = |prompts: usize| json!({"model": "m", "prompt": vec!["a"; prompts], "n": 16}).to_string();
    assert_eq!(CompletionRequest::parse(body(8).as_bytes()).unwrap().generations.len(), 8);
    let error = CompletionRequest::parse(body(9).as_bytes()).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("n"));
}

#[test]
fn what_measures_likelihood_is_read() {
    let read = |more: Value| {
        let mut body = json!({"model": "m", "prompt": [[1, 2, 3], [4]], "echo": true, "logprobs": 1});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        CompletionRequest::parse(body.to_string().as_bytes())
    };
    for max_tokens in [0, 1] {
        let request = read(json!({"max_tokens": max_tokens})).unwrap();
        assert_eq!(request.details.echoed_logprobs, Some(1));
        for generation in &request.generations {
            assert_eq!((generation.max_tokens, generation.prompt_logprobs), (Some(max_tokens), Some(1)));
        }
    }
    let no_echo = json!({"max_tokens": 0, "echo": false});
    assert_eq!(read(no_echo).unwrap_err().param.as_deref(), Some("max_tokens"));
    assert!(read(json!({"max_tokens": 0, "echo": false, "prompt_logprobs": 0})).is_ok());
    assert!(read(json!({"max_tokens": 0, "logprobs": null})).is_ok(), "the echoed prompt is an answer");
    assert_eq!(
        read(json!({"max_tokens": 0, "min_tokens": 1})).unwrap_err().param.as_deref(),
        Some("min_tokens")
    );
}

#[test]
fn what_asks_for_nothing_changes_nothing() {
    let plain = parse("user", &json!(null)).unwrap();
    for (name, value) in [
        ("add_special_tokens", json!(true)),
        ("skip_special_tokens", json!(true)),
        ("use_beam_search", json!(false)),
        ("priority", json!(0)),
        ("stream_options", json!({})),
        ("response_format", json!({"type": "text"})),
        ("max_tokens", json!(16)),
    ] {
        assert_eq!(parse(name, &value).unwrap(), plain, "{name}: {value}");
    }
    assert_eq!(parse("max_tokens", &json!(-1)).unwrap().generations[0].max_tokens, None);
}

#[test]
fn answers_may_have_to_obey() {
    let constraint = |name, value| parse(name, &value).unwrap().generations[0].constraint.clone();
    assert_eq!(constraint("guided_regex", json!("a+")), Some(Constraint::Regex("a+".into())));
    assert_eq!(constraint("structured_outputs", json!({"json_object": true})), Some(Constraint::JsonObject));
    assert_eq!(constraint("response_format", json!({"type": "json_object"})), Some(Constraint::JsonObject));
}

fn answer() -> CompletionAnswer {
    with(TokenDetails::default())
}

fn with(details: TokenDetails) -> CompletionAnswer {
    let job = JobId::from_random(1);
    let envelope = Envelope { job, created: 5, model: "m".into(), fingerprint: "fp".into() };
    CompletionAnswer { envelope, details }
}

fn scored(logprobs: u32) -> CompletionAnswer {
    with(TokenDetails { logprobs: Some(logprobs), ..TokenDetails::default() })
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn token(bytes: &[u8], logprob: f32, top: &[&[u8]]) -> TokenLogprobs {
    let one = |bytes: &[u8]| TokenLogprob { id: bytes.len() as u32, bytes: bytes.to_vec(), logprob };
    TokenLogprobs { token: one(bytes), top: top.iter().map(|bytes| one(bytes)).collect() }
}

#[test]
fn a_whole_answer_has_the_documented_shape() {
    let logprobs = vec![
        token("aé".as_bytes(), -0.5, &[b"x", &[0xff]]),
        token(&[0xe6, 0xbc], -1.0, &[]),
        token(&[0xa2], -1.5, &[]),
        token(b"z", -2.0, &[]),
    ];
    let choice = Choice {
        text: "aé漢z".into(),
        logprobs: Some(logprobs),
        finish_reason: Some(FinishReason::Length),
        ..Choice::default()
    };
    let usage = Usage { prompt_tokens: 2, cached_tokens: 1, completion_tokens: 3 };
    let plain = Choice { text: "x".into(), finish_reason: Some(FinishReason::Stop), ..Choice::default() };
    let whole = value(&scored(2).whole(&[choice.clone(), plain], &[], &usage));
    assert_eq!(whole["id"], format!("cmpl-{:032x}", 1));
    assert_eq!((&whole["object"], &whole["usage"]["total_tokens"]), (&json!("text_completion"), &json!(5)));
    assert_eq!(
        whole["choices"],
        json!([
            {"text": "aé漢z", "index": 0, "finish_reason": "length", "logprobs": {
                "tokens": ["aé", "bytes:\\xe6\\xbc", "bytes:\\xa2", "z"],
                "token_logprobs": [-0.5, -1.0, -1.5, -2.0],
                "top_logprobs": [{"x": -0.5, "bytes:\\xff": -0.5}, {}, {}, {}],
                "text_offset": [0, 2, 3, 3],
            }},
            {"text": "x", "index": 1, "finish_reason": "stop", "logprobs": null},
        ])
    );
    let whole = value(&scored(0).whole(&[choice], &[], &usage));
    assert_eq!(whole["choices"][0]["logprobs"]["top_logprobs"], json!(null));
}

#[test]
fn an_echo_has_the_tokens_of_its_prompt() {
    let details = TokenDetails {
        logprobs: Some(3),
        echoed_logprobs: Some(1),
        prompt_logprobs: Some(2),
        ids: true,
        called_by_ids: false,
    };
    let one = |id, bytes: &[u8], logprob| TokenLogprob { id, bytes: bytes.to_vec(), logprob };
    let score =
        |logprob, rank| PromptScore { logprob, rank, top: vec![one(8, b"b", -0.5), one(9, b"c", -0.75)] };
    let prompt = vec![
        // The tokenizer has prepended this token, which is not part of the text.
        PromptToken { id: 1, bytes: b"<s>".to_vec(), score: None },
        PromptToken { id: 7, bytes: "é ".into(), score: Some(score(-1.0, 5)) },
        PromptToken { id: 8, bytes: b"b".to_vec(), score: Some(score(-0.5, 1)) },
    ];
    let choice = Choice {
        text: "x".into(),
        logprobs: Some(vec![token(b"x", -2.0, &[b"y"])]),
        ids: Some(vec![4]),
        prompt: Some(prompt.clone().into()),
        finish_reason: Some(FinishReason::Length),
    };
    let usage = Usage::default();
    let choices = [choice.clone(), choice];
    let echoes = ["é b".to_owned(), "é b".to_owned()];
    let whole = value(&with(details).whole(&choices, &echoes, &usage));
    let second = &whole["choices"][1];
    assert_eq!((&second["text"], &second["prompt_token_ids"]), (&json!("é bx"), &json!([1, 7, 8])));
    assert_eq!(second["token_ids"], json!([4]));
    assert_eq!(
        second["logprobs"],
        json!({
            "tokens": ["<s>", "é ", "b", "x"],
            "token_logprobs": [null, -1.0, -0.5, -2.0],
            "top_logprobs": [null, {"b": -0.5}, {"b": -0.5}, {"y": -2.0}],
            "text_offset": [0, 0, 2, 3],
        })
    );
    let third = &second["prompt_logprobs"][1];
    assert_eq!(third.as_object().unwrap().len(), 3, "{third}");
    assert_eq!(third["7"], json!({"logprob": -1.0, "rank": 5, "decoded_token": "é "}));
    let by_id = with(TokenDetails { called_by_ids: true, ..details });
    let called = value(&by_id.whole(&choices, &echoes, &usage));
    let logprobs = &called["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["token_id:1", "token_id:7", "token_id:8", "token_id:1"]));
    assert_eq!(logprobs["top_logprobs"][1], json!({"token_id:8": -0.5}));

    // The same in a stream.
    let mut offsets = Offsets::default();
    let first = value(&with(details).first(0, "é b", &prompt, &mut offsets, ChunkUsage::Absent))["choices"]
        [0]
    .clone();
    assert_eq!((&first["text"], &first["logprobs"]["text_offset"]), (&json!("é b"), &json!([0, 0, 2])));
    let rest = [token(b"x", -2.0, &[])];
    let rest = ChunkTokens { logprobs: Some(&rest), ids: Some(&[4]) };
    let rest =
        value(&with(details).text(0, "x", rest, &mut offsets, ChunkUsage::Absent))["choices"][0].clone();
    assert_eq!((&rest["token_ids"], &rest["logprobs"]["text_offset"]), (&json!([4]), &json!([3])));
}

#[test]
fn offsets_go_on_from_part_to_part() {
    let mut offsets = Offsets::default();
    let mut part = |bytes: &[u8]| {
        let tokens = [token(bytes, -1.0, &[])];
        let part = value(&answer().text(
            3,
            "t",
            ChunkTokens { logprobs: Some(&tokens), ids: None },
            &mut offsets,
            ChunkUsage::Absent,
        ));
        assert_eq!((&part["choices"][0]["index"], part.get("usage")), (&json!(3), None));
        part["choices"][0]["logprobs"]["text_offset"][0].clone()
    };
    assert_eq!([part(b"ab"), part("é".as_bytes()), part(b"c")], [json!(0), json!(2), json!(3)]);
}

#[test]
fn a_stream_ends_with_the_reason_and_the_usage() {
    let last = value(&answer().finish(1, FinishReason::Stop, ChunkUsage::Null));
    assert_eq!(
        last["choices"][0],
        json!({"text": "", "index": 1, "logprobs": null, "finish_reason": "stop"})
    );
    assert_eq!(last["usage"], json!(null));
    assert_eq!(value(&answer().usage(&Usage::default()))["choices"], json!([]));
}

proptest! {
    #[test]
    fn no_body_panics(prompt in "(\"a\"|1|-1|\\[|\\]|,|null|\\{\\}){0,8}", n in any::<i8>()) {
        let body = format!(r#"{{"model":"m","n":{n},"prompt":{prompt}}}"#);
        if let Err(error) = CompletionRequest::parse(body.as_bytes()) {
            prop_assert_eq!(error.code.status(), 400);
        }
    }
}
