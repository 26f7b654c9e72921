use serde_json::json;

use super::*;

const STEP: Duration = Duration::from_millis(100);

fn chunk(choice: u64, content: &str) -> String {
    let choice = json!({"index": choice, "delta": {"content": content}, "finish_reason": null});
    format!("data: {}\n\n", json!({"choices": [choice]}))
}

fn finish(choice: u64) -> String {
    let choice = json!({"index": choice, "delta": {}, "finish_reason": "stop"});
    format!("data: {}\n\n", json!({"choices": [choice]}))
}

fn usage(completion: u64) -> String {
    let usage = json!({"prompt_tokens": 3, "completion_tokens": completion});
    format!("data: {}\n\n", json!({"choices": [], "usage": usage}))
}

const DONE: &str = "data: [DONE]\n\n";

/// A stream that brings one event every [`STEP`].
fn recording(events: &[String]) -> Recording {
    let sent = Instant::now();
    let time = |number: usize| sent + STEP * u32::try_from(number).unwrap();
    let arrivals = events.iter().enumerate().map(|(n, event)| (time(n + 1), event.as_bytes().to_vec()));
    Recording {
        streamed: true,
        sent,
        status: Some(200),
        retry_after: None,
        arrivals: arrivals.collect(),
        ended: time(events.len() + 1),
        broken: None,
    }
}

/// The parts of a good stream: three pieces, an end of the choice, usage, the end.
fn parts() -> Vec<String> {
    let pieces = ["one", " two", " three"].map(|piece| chunk(0, piece));
    pieces.into_iter().chain([finish(0), usage(3), DONE.to_owned()]).collect()
}

fn good() -> Answer {
    check(&recording(&parts()), None).unwrap().answer
}

fn fault(events: &[String]) -> Fault {
    check(&recording(events), Some(&good())).unwrap_err()
}

#[test]
fn a_good_stream_is_read_and_its_longest_gap_is_found() {
    let mut parts = parts();
    parts.insert(2, ": waiting\n\n".to_owned());
    let checked = check(&recording(&parts), Some(&good())).unwrap();
    assert_eq!(checked.answer.choices[0].text, "one two three");
    assert_eq!(checked.answer.usage, Some((3, 3)));
    assert_eq!(checked.first, STEP);
    assert_eq!(checked.gap.unwrap().length(), STEP * 2);
}

#[test]
fn how_the_network_cuts_it_does_not_matter() {
    let mut cut = recording(&parts());
    let bytes = cut.body();
    cut.arrivals = bytes.chunks(7).map(|piece| (cut.sent, piece.to_vec())).collect();
    assert_eq!(check(&cut, None).unwrap().answer, good());
}

#[test]
fn a_lost_piece_is_found_wherever_it_is() {
    for lost in 0..3 {
        let mut parts = parts();
        parts.remove(lost);
        assert!(matches!(fault(&parts), Fault::Lost { choice: 0, .. }), "{lost}");
    }
}

#[test]
fn a_doubled_piece_is_found_wherever_it_is() {
    for doubled in 0..3 {
        let mut parts = parts();
        parts.insert(doubled, parts[doubled].clone());
        assert!(matches!(fault(&parts), Fault::Doubled { choice: 0, .. }), "{doubled}");
    }
}

#[test]
fn pieces_out_of_order_are_found() {
    for first in 0..2 {
        let mut parts = parts();
        parts.swap(first, first + 1);
        assert!(matches!(fault(&parts), Fault::Swapped { choice: 0, .. }), "{first}");
    }
}

#[test]
fn a_lost_and_a_doubled_word_of_a_text_that_repeats_itself_are_found() {
    let words = ["The", " ember", " glows. ", "The", " ember", " glows. ", "The", " ember", " glows. "];
    let stream = |words: &[&str]| {
        let pieces = words.iter().map(|word| chunk(0, word));
        recording(&pieces.chain([finish(0), usage(9), DONE.to_owned()]).collect::<Vec<_>>())
    };
    let known = check(&stream(&words), None).unwrap().answer;
    for place in 0..words.len() {
        let (mut less, mut more) = (words.to_vec(), words.to_vec());
        less.remove(place);
        more.insert(place, words[place]);
        assert!(matches!(check(&stream(&less), Some(&known)), Err(Fault::Lost { .. })));
        assert!(matches!(check(&stream(&more), Some(&known)), Err(Fault::Doubled { .. })));
    }
    // Three words are where the text begins again, so that only its length tells.
    assert!(matches!(check(&stream(&words[3..]), Some(&known)), Err(Fault::Lost { .. })));
}

#[test]
fn another_piece_is_found() {
    let mut parts = parts();
    parts[1] = chunk(0, " 2");
    assert!(matches!(fault(&parts), Fault::Changed { at: 3, .. }));
}

#[test]
fn a_missing_end_is_found() {
    let mut parts = parts();
    parts.pop();
    assert_eq!(fault(&parts), Fault::NoEnd);
    let mut broken = recording(&parts);
    broken.broken = Some("reset".to_owned());
    assert_eq!(check(&broken, None).unwrap_err(), Fault::Broken("reset".to_owned()));
}

#[test]
fn two_ends_are_found() {
    let mut parts = parts();
    parts.push(DONE.to_owned());
    assert_eq!(fault(&parts), Fault::AfterEnd("data: [DONE]".to_owned()));
    parts.pop();
    parts.push("data: {\"error\":{}}\n\n".to_owned());
    assert!(matches!(fault(&parts), Fault::AfterEnd(_)));
    parts.pop();
    parts.push("data: ".to_owned());
    assert!(matches!(fault(&parts), Fault::AfterEnd(_)));
}

#[test]
fn two_ends_of_a_choice_and_none_are_found() {
    let mut twice = parts();
    twice.insert(3, finish(0));
    assert_eq!(fault(&twice), Fault::FinishedTwice { choice: 0 });
    let mut none = parts();
    none.remove(3);
    assert_eq!(fault(&none), Fault::Unfinished { choice: 0 });
    let mut late = parts();
    late.swap(2, 3);
    assert_eq!(fault(&late), Fault::AfterFinish { choice: 0 });
}

#[test]
fn choices_are_followed_each_for_itself() {
    let other = [chunk(1, "uno"), chunk(1, " due"), finish(1)];
    let mut both = parts();
    both.splice(1..1, other.clone());
    let known = check(&recording(&both), None).unwrap().answer;
    assert_eq!(known.choices[1].text, "uno due");
    let mut one = parts();
    one.splice(1..1, [other[0].clone(), other[2].clone()]);
    let fault = check(&recording(&one), Some(&known)).unwrap_err();
    assert!(matches!(fault, Fault::Lost { choice: 1, .. }));
}

#[test]
fn an_error_a_refusal_and_another_usage_are_faults() {
    let mut failed = parts();
    failed.truncate(2);
    failed.push("data: {\"error\":{\"code\":\"worker_failed\"}}\n\n".to_owned());
    assert!(matches!(fault(&failed), Fault::Failed(_)));
    let mut refused = recording(&[]);
    refused.status = Some(503);
    assert!(matches!(check(&refused, None), Err(Fault::Refused { status: 503, .. })));
    let mut usage_of_four = parts();
    usage_of_four[4] = usage(4);
    assert!(matches!(fault(&usage_of_four), Fault::Differs { what: "usage", .. }));
}

#[test]
fn a_whole_answer_may_begin_with_white_space_and_must_be_complete() {
    let message = json!({"content": "one two three"});
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 3});
    let body = format!("  {}", json!({"choices": [choice], "usage": usage}));
    let whole = |body: &str| Recording { streamed: false, ..recording(&[body.to_owned()]) };
    assert_eq!(check(&whole(&body), Some(&good())).unwrap().answer, good());
    let half = &body[..body.len() / 2];
    assert!(matches!(check(&whole(half), None), Err(Fault::Garbled(_))));
    let broken = Recording { broken: Some("reset".to_owned()), ..whole(half) };
    assert!(matches!(check(&broken, None), Err(Fault::Broken(_))));
    let late = whole(r#" {"error": {"code": "timeout"}}"#);
    assert!(matches!(check(&late, None), Err(Fault::Failed(_))));
}
