use emberline_protocol::event::{TokenLogprob, TokenLogprobs};
use emberline_protocol::tools::{TextBesideCalls, ToolFormat};
use proptest::prelude::*;

use super::*;
use crate::generation::stored_request::job_of;
use crate::relay::{Acceptance, Ending};

const USAGE: Usage = Usage { prompt_tokens: 5, cached_tokens: 2, completion_tokens: 7 };

fn state(background: bool) -> ResponseState {
    let spec = ResponseSpec { background, ..ResponseSpec::default() };
    ResponseState::new(JobId::from_random(1), 5_999, "alias".into(), spec)
}

fn accepted(tool_format: Option<ToolFormat>) -> Output {
    Output::Accepted(Acceptance { tool_format, ..Acceptance::default() })
}

fn text(text: &str) -> Output {
    Output::Text { choice: 0, text: text.into(), logprobs: None, ids: None, tokens: 1 }
}

fn finish(reason: FinishReason) -> Output {
    Output::Finish { choice: 0, reason }
}

/// Everything that is told of an answer in these pieces.
fn told(format: Option<ToolFormat>, pieces: &[&str], reason: FinishReason) -> (Vec<Event>, Value) {
    let mut state = state(true);
    state.push(accepted(format));
    pieces.iter().for_each(|piece| state.push(text(piece)));
    state.push(finish(reason));
    state.push(Output::Done(Ending { usage: USAGE, at: Some(9) }));
    assert!(state.is_over());
    (state.take_events(), json!(state.response()))
}

fn kinds(events: &[Event]) -> Vec<String> {
    events.iter().map(|event| event.body()["type"].as_str().unwrap().to_owned()).collect()
}

/// The same without the cuts: neighbouring deltas as one, with the last one's number.
fn joined(events: impl IntoIterator<Item = Event>) -> Vec<Value> {
    let mut joined: Vec<Value> = Vec::new();
    for event in events {
        let body = event.body();
        match joined.last_mut() {
            Some(last) if body.get("delta").is_some() && last["type"] == body["type"] => {
                let whole = format!("{}{}", last["delta"].as_str().unwrap(), body["delta"].as_str().unwrap());
                *last = body;
                last["delta"] = whole.into();
            }
            _ => joined.push(body),
        }
    }
    joined
}

#[test]
fn a_text_is_told_as_openai_tells_it() {
    let (events, body) = told(None, &["Hé", "", "llo"], FinishReason::Stop);
    assert_eq!(
        kinds(&events),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let bodies: Vec<Value> = events.iter().map(Event::body).collect();
    let numbers: Vec<u64> = bodies.iter().map(|body| body["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 6, 9, 10, 11, 12, 13]);
    assert_eq!(bodies[0]["response"]["status"], "queued");
    assert_eq!(bodies[2]["item"]["content"], json!([]));
    let part = json!({"type": "output_text", "text": "Héllo", "annotations": [], "logprobs": []});
    assert_eq!(bodies[7]["part"], part);
    assert_eq!(bodies[9]["response"], body);
    let id = JobId::from_random(1);
    assert_eq!(
        body["output"],
        json!([{
            "id": format!("msg_{id}00"), "type": "message", "status": "completed", "role": "assistant",
            "content": [part],
        }])
    );
    assert_eq!((&body["id"], &body["created_at"]), (&json!(format!("resp_{id}")), &json!(5)));
    assert_eq!((&body["status"], &body["temperature"]), (&json!("completed"), &json!(0.0)));
    assert_eq!(body["usage"]["total_tokens"], 12);
    assert_eq!(job_of(body["id"].as_str().unwrap()), Some(id));
}

#[test]
fn log_probabilities_come_with_the_text_of_their_tokens() {
    let token = |bytes: &[u8]| TokenLogprobs {
        token: TokenLogprob { id: 1, bytes: bytes.to_vec(), logprob: -0.1 },
        top: vec![TokenLogprob { id: 2, bytes: b"x".to_vec(), logprob: -0.2 }],
    };
    let mut state = state(true);
    state.push(accepted(None));
    for (text, tokens) in [
        ("ab", vec![token(b"a"), token(b"b")]),
        ("", vec![token(&[0xe6, 0xbc])]),
        ("漢c", vec![token(&[0xa2]), token(b"c")]),
        ("", vec![token(b"STOP")]),
    ] {
        state.push(Output::Text {
            choice: 0,
            text: text.into(),
            logprobs: Some(tokens),
            ids: None,
            tokens: 1,
        });
    }
    state.push(finish(FinishReason::Stop));
    state.push(Output::Done(Ending { usage: USAGE, at: Some(9) }));
    let events = state.take_events();
    let tokens = |logprobs: &Value| -> Vec<String> {
        logprobs.as_array().unwrap().iter().map(|one| one["bytes"].to_string()).collect()
    };
    let deltas: Vec<Vec<String>> =
        events.iter().filter(|e| e.delta.is_some()).map(|e| tokens(&e.body()["logprobs"])).collect();
    assert_eq!(deltas, [vec!["[97]", "[98]"], vec!["[230,188]", "[162]", "[99]"]]);
    let part = &json!(state.response())["output"][0]["content"][0];
    assert_eq!(tokens(&part["logprobs"]).len(), 6);
    let top = json!([{"token": "x", "logprob": -0.2, "bytes": [120]}]);
    assert_eq!(
        part["logprobs"][0],
        json!({"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": top})
    );
    let done =
        events.iter().map(Event::body).find(|body| body["type"] == "response.output_text.done").unwrap();
    assert_eq!(done["logprobs"], part["logprobs"]);
    // Whoever has heard "a漢" of a delta hears of no token that was whole before that.
    let last = events.iter().rfind(|event| event.delta.is_some()).unwrap().clone();
    let rest = last.clone().after(last.number - 1).unwrap();
    assert_eq!((rest.delta.as_deref(), tokens(&rest.body()["logprobs"])), (Some("c"), vec!["[99]".into()]));
}

#[test]
fn calls_are_items_of_their_own() {
    let answer = "Look:\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>\n\
                  <tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";
    let (events, body) = told(Some(ToolFormat::Hermes), &[answer], FinishReason::Stop);
    let output = body["output"].as_array().unwrap();
    let types: Vec<&str> = output.iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["message", "function_call", "function_call"]);
    assert_eq!((&output[1]["name"], &output[1]["arguments"]), (&json!("f"), &json!("{\"a\": 1}")));
    assert!(output.iter().all(|item| item["status"] == "completed"));
    assert_ne!(output[1]["call_id"], output[2]["call_id"]);
    let kinds = kinds(&events);
    let count = |kind: &str| kinds.iter().filter(|k| *k == kind).count();
    assert_eq!(count("response.function_call_arguments.done"), 2);
    assert_eq!(count("response.output_item.done"), 3);
}

#[test]
fn what_breaks_off_is_incomplete() {
    let (_, body) = told(None, &["a"], FinishReason::Length);
    assert_eq!((&body["status"], &body["output"][0]["status"]), (&json!("incomplete"), &json!("incomplete")));
    assert_eq!(body["incomplete_details"], json!({"reason": "max_output_tokens"}));
    let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\"";
    let (_, body) = told(Some(ToolFormat::Hermes), &[call], FinishReason::Length);
    assert_eq!(
        (&body["output"][0]["type"], &body["output"][0]["status"]),
        (&json!("function_call"), &json!("incomplete"))
    );
    let (events, body) = told(None, &["a"], FinishReason::Cancelled);
    assert_eq!((&body["status"], &body["incomplete_details"]), (&json!("cancelled"), &Value::Null));
    assert_eq!(events.last().unwrap().body()["type"], "response.incomplete");
    let (_, body) = told(None, &[], FinishReason::Stop);
    assert_eq!(body["output"][0]["content"][0]["text"], "");
}

#[test]
fn a_required_call_that_is_cut_off_before_its_name_is_no_text() {
    let mut state = state(false);
    let beside_calls = TextBesideCalls::None;
    let acceptance =
        Acceptance { tool_format: Some(ToolFormat::Hermes), beside_calls, ..Acceptance::default() };
    state.push(Output::Accepted(acceptance));
    state.push(text("<tool_call>\n{\"na"));
    state.push(finish(FinishReason::Length));
    state.push(Output::Done(Ending { usage: USAGE, at: Some(9) }));
    assert!(!kinds(&state.take_events()).contains(&"response.output_text.delta".to_owned()));
    let body = json!(state.response());
    assert_eq!((&body["status"], &body["output"][0]["status"]), (&json!("incomplete"), &json!("incomplete")));
    assert_eq!(body["output"][0]["content"][0]["text"], "");
    assert_eq!(body["completed_at"], Value::Null, "it was cut off");
}

#[test]
fn a_failure_has_a_code_of_openai() {
    let mut state = state(false);
    assert_eq!(json!(state.response())["status"], "in_progress");
    state.push(accepted(None));
    state.push(text("a"));
    state.push(Output::Failed(ApiError::new(ErrorCode::WorkerFailed, "why")));
    let body = json!(state.response());
    assert_eq!(body["error"], json!({"code": "server_error", "message": "why"}));
    assert_eq!((&body["status"], &body["output"][0]["status"]), (&json!("failed"), &json!("incomplete")));
    assert_eq!(state.take_events().last().unwrap().body()["type"], "response.failed");
}

#[test]
fn an_interruption_takes_no_number() {
    let mut state = state(true);
    state.push(accepted(None));
    let last = state.take_events().pop().unwrap().body();
    let error = state.interruption(&ApiError::new(ErrorCode::BusUnavailable, "x")).body();
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("bus_unavailable")));
    assert_eq!(error["sequence_number"], last["sequence_number"]);
}

#[test]
fn a_cancelled_response_says_so_before_its_log_does() {
    let mut queued = state(true);
    queued.cancel();
    assert_eq!(json!(queued.response())["status"], "cancelled");
    let mut done = state(true);
    [accepted(None), finish(FinishReason::Stop), Output::Done(Ending { usage: USAGE, at: Some(9) })]
        .into_iter()
        .for_each(|o| done.push(o));
    done.cancel();
    let done = json!(done.response());
    assert_eq!((&done["status"], &done["completed_at"]), (&json!("completed"), &json!(9)));
}

#[test]
fn only_ids_of_responses_lead_to_jobs() {
    for id in ["", "resp_", "resp_x", &"0".repeat(32), &format!("resp_{}", "0".repeat(33))] {
        assert_eq!(job_of(id), None, "{id}");
        assert_eq!(not_found(id).code, ErrorCode::NotFound);
    }
}

#[test]
fn a_frame_is_one_event_of_one_line() {
    let (events, _) = told(None, &["a\nb\r\n"], FinishReason::Stop);
    for event in events {
        let frame = String::from_utf8(event.frame().to_vec()).unwrap();
        let lines: Vec<&str> = frame.split('\n').collect();
        assert!(
            lines.len() == 4 && lines[0].starts_with("event: ") && lines[1].starts_with("data: {"),
            "{frame}"
        );
    }
}

/// An answer with or without calls.
fn answer() -> impl Strategy<Value = (Option<ToolFormat>, String)> {
    let call =
        "(<tool_call>\n)?\\{\"name\": \"f\", \"arguments\": \\{(\"é\": \"漢\")?\\}\\}\n</tool_call>\n?";
    let text = proptest::collection::vec(prop_oneof!["[a-zé漢 <{]{0,8}", call], 0..5);
    let format = prop_oneof![Just(None), Just(Some(ToolFormat::Hermes)), Just(Some(ToolFormat::Mistral))];
    (format, text.prop_map(|parts| parts.concat()))
}

fn cut(answer: &str, cuts: &[prop::sample::Index]) -> Vec<String> {
    let chars: Vec<char> = answer.chars().collect();
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(chars.len() + 1)).collect();
    places.extend([0, chars.len()]);
    places.sort_unstable();
    places.windows(2).map(|range| chars[range[0]..range[1]].iter().collect()).collect()
}

proptest! {
    #[test]
    fn no_cut_of_the_log_and_no_resumption_changes_what_is_told(
        (format, answer) in answer(),
        cuts in any::<[Vec<prop::sample::Index>; 2]>(),
        reason in prop_oneof![Just(FinishReason::Stop), Just(FinishReason::Length), Just(FinishReason::Cancelled)],
    ) {
        let tell = |cuts: &[prop::sample::Index]| {
            let pieces = cut(&answer, cuts);
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            told(format, &pieces, reason)
        };
        let ((first, body), (second, again)) = (tell(&cuts[0]), tell(&cuts[1]));
        prop_assert_eq!(&body, &again);
        let whole = joined(first.clone());
        let numbers: Vec<u64> = first.iter().map(|e| e.number).collect();
        prop_assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]));
        for (heard, number) in (1..).zip(numbers) {
            let rest = second.iter().cloned().filter_map(|event| event.after(number));
            let pieces = joined(first.iter().take(heard).cloned().chain(rest));
            prop_assert_eq!(&pieces, &whole, "resumed after {}", number);
        }
    }

    #[test]
    fn a_number_within_a_character_loses_nothing(told_so_far in 0_u64..60) {
        let (events, _) = told(None, &["漢字é漢字"], FinishReason::Stop);
        let rest: Vec<Event> = events.into_iter().filter_map(|event| event.after(told_so_far)).collect();
        let text: String = rest.iter().filter_map(|e| e.delta.as_deref()).collect();
        prop_assert!("漢字é漢字".ends_with(&text));
        let bytes_left = 17_u64.saturating_sub(told_so_far).min(14);
        prop_assert!(text.len() as u64 >= bytes_left);
    }
}

#[test]
fn a_response_is_complete_with_its_end() {
    let spec = ResponseSpec::default();
    let mut state = ResponseState::new(JobId::from_random(1), 0, "m".into(), spec);
    for output in [
        Output::Accepted(crate::relay::Acceptance::default()),
        Output::Text { choice: 0, text: "x".into(), logprobs: None, ids: None, tokens: 1 },
        Output::Finish { choice: 0, reason: FinishReason::Stop },
    ] {
        assert_eq!(ResponseBuilder::push(&mut state, output), None);
    }
    let json = ResponseBuilder::push(&mut state, Output::Done(Ending::default())).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&json).unwrap()["status"], "completed");
}
