use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::answer::{Choice, Envelope};
use crate::event::{FinishReason, TokenLogprob, TokenLogprobs, Usage};
use crate::schema::assert_enforceable;
use crate::subject::JobId;

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
        ("min_tokens", json!(17), InvalidValue, "min_tokens"),
        ("messages", json!([]), UnknownParameter, "messages"),
        ("stream_options", json!({}), InvalidValue, "stream_options"),
    ] {
        let error = parse(name, &value).unwrap_err();
        assert_eq!((error.code, error.param.as_deref()), (code, Some(param)), "{name}: {value}: {error}");
    }
    let body = json!({"model": "m", "prompt": "a", "echo": true, "logprobs": 0});
    assert_eq!(CompletionRequest::parse(body.to_string().as_bytes()).unwrap_err().code, UnsupportedParameter);
    let body = json!({"model": "m", "prompt": "a", "n": 3, "best_of": 2});
    assert_eq!(CompletionRequest::parse(body.to_string().as_bytes()).unwrap_err().code, InvalidValue);
    let body = |prompts: usize| json!({"model": "m", "prompt": vec!["a"; prompts], "n": 16}).to_string();
    assert_eq!(CompletionRequest::parse(body(8).as_bytes()).unwrap().generations.len(), 8);
    let error = CompletionRequest::parse(body(9).as_bytes()).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("n"));
}

fn answer() -> CompletionAnswer {
    let job = JobId::from_random(1);
    CompletionAnswer { envelope: Envelope { job, created: 5, model: "m".into(), fingerprint: "fp".into() } }
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn token(bytes: &[u8], logprob: f32, top: &[&[u8]]) -> TokenLogprobs {
    let one = |bytes: &[u8]| TokenLogprob { bytes: bytes.to_vec(), logprob };
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
    let choice =
        Choice {
            text: "aé漢z".into(), logprobs: Some(logprobs), finish_reason: Some(FinishReason::Length)
        };
    let usage = Usage { prompt_tokens: 2, cached_tokens: 1, completion_tokens: 3 };
    let plain = Choice { text: "x".into(), logprobs: None, finish_reason: Some(FinishReason::Stop) };
    let whole = value(&answer().whole(&[choice.clone(), plain], Some(2), &usage));
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
    let whole = value(&answer().whole(&[choice], Some(0), &usage));
    assert_eq!(whole["choices"][0]["logprobs"]["top_logprobs"], json!(null));
}

#[test]
fn offsets_go_on_from_part_to_part() {
    let mut offsets = Offsets::default();
    let mut part = |bytes: &[u8]| {
        let tokens = [token(bytes, -1.0, &[])];
        let part = value(&answer().text(3, "t", Some((&tokens, 0, &mut offsets)), false));
        assert_eq!((&part["choices"][0]["index"], part.get("usage")), (&json!(3), None));
        part["choices"][0]["logprobs"]["text_offset"][0].clone()
    };
    assert_eq!([part(b"ab"), part("é".as_bytes()), part(b"c")], [json!(0), json!(2), json!(3)]);
}

#[test]
fn a_stream_ends_with_the_reason_and_the_usage() {
    let last = value(&answer().finish(1, FinishReason::Stop, true));
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
