use super::*;
use emberline_shared::event::{ErrorEvent, EventKind, Timings};
use proptest::prelude::*;

const LIMITS: Limits = Limits { choices: 1, tokens: 100 };

fn event(attempt: u32, index: u32, kind: EventKind) -> Event {
    Event { v: 1, attempt, index, kind }
}

fn accepted(attempt: u32) -> Event {
    event(attempt, 0, EventKind::Accepted { prompt_tokens: 3, cached_tokens: 0, fingerprint: "fp".into() })
}

fn tokens(attempt: u32, index: u32, position: u32, count: u32, text: &str) -> Event {
    let ids = (0..count).collect();
    event(
        attempt,
        index,
        EventKind::Tokens { choice: 0, position, ids, text: text.into(), logprobs: Vec::new() },
    )
}

fn finish(attempt: u32, index: u32) -> Event {
    event(attempt, index, EventKind::Finish { choice: 0, reason: FinishReason::Stop })
}

fn done(attempt: u32, index: u32) -> Event {
    event(attempt, index, EventKind::Done { usage: Usage::default(), timings: Timings::default() })
}

fn failed(attempt: u32, index: u32) -> Event {
    let error: ErrorEvent = ApiError::new(ErrorCode::ContextLengthExceeded, "long").into();
    event(attempt, index, EventKind::Error(error))
}

/// Text and number of ends in a series of outputs.
fn text_of(outputs: &[Output]) -> String {
    outputs
        .iter()
        .filter_map(|o| if let Output::Text { text, .. } = o { Some(text.as_str()) } else { None })
        .collect()
}

fn feed(relay: &mut Relay, events: &[Event]) -> Vec<Output> {
    events.iter().flat_map(|event| relay.on_event(event.clone()).unwrap()).collect()
}

#[test]
fn an_answer_is_told_in_order() {
    let mut relay = Relay::new(LIMITS);
    let log = [accepted(1), tokens(1, 1, 0, 1, "a"), tokens(1, 2, 1, 2, "bc"), finish(1, 3), done(1, 4)];
    assert_eq!(
        feed(&mut relay, &log),
        [
            Output::Accepted { fingerprint: "fp".into() },
            Output::Text { choice: 0, text: "a".into() },
            Output::Text { choice: 0, text: "bc".into() },
            Output::Finish { choice: 0, reason: FinishReason::Stop },
            Output::Done(Usage::default()),
        ]
    );
    assert!(relay.is_over());
    assert_eq!(relay.choices()[0].text, "abc");
}

#[test]
fn repeated_events_and_events_after_the_end_tell_nothing() {
    let mut relay = Relay::new(LIMITS);
    let log = [accepted(1), tokens(1, 1, 0, 1, "a"), finish(1, 2), done(1, 3)];
    feed(&mut relay, &log);
    assert_eq!(feed(&mut relay, &log), []);
    assert_eq!(feed(&mut relay, &[failed(1, 4), accepted(2), failed(2, 1)]), []);
}

#[test]
fn a_failure_before_and_after_the_start_is_passed_on() {
    let error = || Output::Failed(ApiError::new(ErrorCode::ContextLengthExceeded, "long"));
    let mut relay = Relay::new(LIMITS);
    assert_eq!(feed(&mut relay, &[failed(1, 0)]), [error()]);
    let mut relay = Relay::new(LIMITS);
    assert_eq!(feed(&mut relay, &[accepted(1), tokens(1, 1, 0, 1, "a"), failed(1, 2)])[2], error());
}

#[test]
fn a_missed_event_is_read_from_the_log() {
    let log = [accepted(1), tokens(1, 1, 0, 1, "a"), tokens(1, 2, 1, 1, "b"), tokens(1, 3, 2, 1, "c")];
    let mut relay = Relay::new(LIMITS);
    feed(&mut relay, &log[..2]);
    assert_eq!(feed(&mut relay, &log[3..]), []);
    assert!(relay.has_gap());
    // The log lags behind.
    assert_eq!(relay.rebuild(&log[..1]).unwrap(), []);
    assert!(relay.has_gap());
    assert_eq!(text_of(&relay.rebuild(&log[..3]).unwrap()), "bc");
    assert!(!relay.has_gap());
    assert_eq!(feed(&mut relay, &[tokens(1, 4, 3, 1, "d")]).len(), 1);
}

#[test]
fn an_event_that_was_stored_late_is_told_in_its_place() {
    let late = tokens(1, 1, 0, 1, "a");
    let log = [accepted(1), tokens(1, 2, 1, 1, "b"), late, tokens(1, 3, 2, 1, "c")];
    let mut relay = Relay::new(LIMITS);
    feed(&mut relay, &log[..2]);
    assert_eq!(text_of(&relay.rebuild(&log).unwrap()), "abc");
}

#[test]
fn the_log_tells_an_end_that_was_missed() {
    let log = [accepted(1), tokens(1, 1, 0, 1, "a"), finish(1, 2), done(1, 3)];
    let mut relay = Relay::new(LIMITS);
    feed(&mut relay, &log[..2]);
    assert_eq!(relay.rebuild(&log).unwrap().last(), Some(&Output::Done(Usage::default())));
    assert!(relay.is_over());
}

#[test]
fn a_second_worker_goes_on_where_the_first_one_was() {
    let mut relay = Relay::new(LIMITS);
    let first = [accepted(1), tokens(1, 1, 0, 1, "a"), tokens(1, 2, 1, 1, "b")];
    assert_eq!(text_of(&feed(&mut relay, &first)), "ab");
    // It starts before the end of what was told, groups tokens in another way, and its text
    // reaches beyond.
    let second = [accepted(2), tokens(2, 1, 1, 2, "bc"), finish(2, 2), done(2, 3)];
    assert_eq!(feed(&mut relay, &second), []);
    assert!(relay.has_gap());
    let log = [&first[..], &second[..]].concat();
    let outputs = relay.rebuild(&log).unwrap();
    assert_eq!(text_of(&outputs), "c");
    assert!(relay.is_over());
}

#[test]
fn the_first_worker_is_not_heard_any_more() {
    let mut relay = Relay::new(LIMITS);
    feed(&mut relay, &[accepted(1), tokens(1, 1, 0, 1, "a")]);
    let log = [accepted(1), tokens(1, 1, 0, 1, "a"), accepted(2)];
    feed(&mut relay, &[accepted(2)]);
    relay.rebuild(&log).unwrap();
    assert_eq!(feed(&mut relay, &[failed(1, 2), tokens(1, 3, 1, 1, "zombie")]), []);
    assert_eq!(text_of(&feed(&mut relay, &[tokens(2, 1, 1, 1, "b")])), "b");
}

#[test]
fn what_no_worker_should_write_is_a_fault() {
    let start = || {
        let mut relay = Relay::new(LIMITS);
        feed(&mut relay, &[accepted(1), tokens(1, 1, 0, 1, "a")]);
        relay
    };
    let choice = EventKind::Finish { choice: 1, reason: FinishReason::Stop };
    for (wrong, fault) in [
        (tokens(1, 2, 0, 1, "b"), Fault::Position { attempt: 1, index: 2, position: 0 }),
        (tokens(1, 2, 2, 1, "b"), Fault::Position { attempt: 1, index: 2, position: 2 }),
        (tokens(1, 2, 1, 100, "b"), Fault::TooLong(1)),
        (tokens(1, 2, 1, 1, &"b".repeat(200_000)), Fault::TooLong(1)),
        (event(1, 2, choice), Fault::Choice { attempt: 1, index: 2, choice: 1 }),
        (done(1, 2), Fault::Unfinished),
    ] {
        assert_eq!(start().on_event(wrong), Err(fault));
    }
    let early = Relay::new(LIMITS).on_event(tokens(1, 0, 0, 1, "a"));
    assert_eq!(early, Err(Fault::OutOfOrder { attempt: 1, index: 0 }));
}

#[test]
fn another_text_from_a_second_worker_is_a_fault() {
    let mut relay = Relay::new(LIMITS);
    let first = [accepted(1), tokens(1, 1, 0, 2, "ab")];
    feed(&mut relay, &first);
    let log = [&first[..], &[accepted(2), tokens(2, 1, 0, 2, "ax")]].concat();
    assert_eq!(relay.rebuild(&log), Err(Fault::Differs { attempt: 2, position: 0 }));
    let log = [accepted(1), tokens(1, 1, 0, 2, "xy")];
    assert_eq!(relay.rebuild(&log), Err(Fault::LogDiffers));
}

#[test]
fn a_newer_protocol_is_refused() {
    let json = serde_json::to_vec(&Event { v: 2, ..accepted(1) }).unwrap();
    assert_eq!(read_event(&json), Err(Fault::Version(2)));
    assert!(matches!(read_event(b"{}"), Err(Fault::Unreadable(_))));
    assert_eq!(read_event(&serde_json::to_vec(&accepted(1)).unwrap()), Ok(accepted(1)));
}

/// One attempt: the position at which its worker takes over, how it groups tokens, and
/// whether its connection to the relay is that of a zombie which writes on after its successor.
#[derive(Debug, Clone)]
struct Attempt {
    back: usize,
    groups: Vec<usize>,
    extra: usize,
}

/// Text of each token; some complete no character.
const TOKENS: [&str; 12] = ["Hel", "lo", "", "é", " ", "wor", "", "", "漢字", "ld", "!", "."];

fn attempts() -> impl Strategy<Value = Vec<Attempt>> {
    let attempt = (0_usize..4, proptest::collection::vec(1_usize..4, 0..6), 0_usize..3)
        .prop_map(|(back, groups, extra)| Attempt { back, groups, extra });
    proptest::collection::vec(attempt, 0..4)
}

/// The log that these attempts leave, the last one running to the end.
fn log_of(attempts: &[Attempt]) -> Vec<Event> {
    let mut log = Vec::new();
    let mut written = 0;
    let mut boundaries = vec![0];
    let all = attempts.iter().cloned().chain([Attempt { back: 1, groups: vec![2; 20], extra: 0 }]);
    let count = attempts.len() + 1;
    for (n, attempt) in (1_u32..).zip(all) {
        // Take over at a place where some event began.
        let from = boundaries[boundaries.len().saturating_sub(1 + attempt.back)];
        let mut index = 1;
        let mut at = from;
        log.push(accepted(n));
        let start = log.len();
        for group in attempt.groups {
            let end = (at + group).min(TOKENS.len());
            if end > at {
                log.push(tokens(n, index, at as u32, (end - at) as u32, &TOKENS[at..end].concat()));
                index += 1;
                boundaries.push(end);
                at = end;
            }
        }
        written = written.max(at);
        boundaries.sort_unstable();
        boundaries.dedup();
        if n as usize == count {
            log.push(finish(n, index));
            log.push(done(n, index + 1));
        } else {
            // Its last words reach the log after its successor's first one.
            let late = log.len().saturating_sub(attempt.extra).max(start);
            let zombie = log.split_off(late);
            if let Some(Event { kind: EventKind::Tokens { position, .. }, .. }) = zombie.first() {
                let position = *position as usize;
                boundaries.retain(|b| *b <= position);
            }
            log.extend(zombie.into_iter().map(|event| Event { v: 0, ..event }));
        }
    }
    // Zombies' words (marked by version 0) move behind the next attempt's first event.
    let mut ordered = Vec::new();
    let mut late = Vec::new();
    for event in log {
        if event.v == 0 {
            late.push(Event { v: 1, ..event });
        } else {
            let is_start = event.index == 0;
            ordered.push(event);
            if is_start {
                ordered.append(&mut late);
            }
        }
    }
    ordered
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn every_character_comes_exactly_once(
        attempts in attempts(),
        fates in proptest::collection::vec(0_u8..8, 100),
        swaps in proptest::collection::vec(0_usize..60, 0..10),
        lag in 0_usize..4,
    ) {
        let log = log_of(&attempts);
        // What the subscription brings: some lost, some twice, some swapped.
        let mut live: Vec<(usize, Event)> = Vec::new();
        for ((place, event), fate) in log.iter().cloned().enumerate().zip(&fates) {
            match fate {
                0 => {}
                1 => live.extend([(place, event.clone()), (place, event)]),
                _ => live.push((place, event)),
            }
        }
        for swap in swaps {
            if swap + 1 < live.len() {
                live.swap(swap, swap + 1);
            }
        }
        let mut relay = Relay::new(LIMITS);
        let mut outputs = Vec::new();
        let mut stored = 0;
        for (place, event) in live {
            outputs.extend(relay.on_event(event).unwrap());
            stored = stored.max(place + 1);
            if relay.has_gap() {
                outputs.extend(relay.rebuild(&log[..stored.saturating_sub(lag)]).unwrap());
            }
        }
        // In the end silence makes the caller look at the log.
        outputs.extend(relay.rebuild(&log).unwrap());
        prop_assert_eq!(text_of(&outputs), TOKENS.concat());
        prop_assert_eq!(outputs.last(), Some(&Output::Done(Usage::default())));
        let count = |wanted: fn(&Output) -> bool| outputs.iter().filter(|o| wanted(o)).count();
        prop_assert_eq!(count(|o| matches!(o, Output::Accepted { .. })), 1);
        prop_assert_eq!(count(|o| matches!(o, Output::Finish { .. })), 1);
        prop_assert_eq!(count(|o| matches!(o, Output::Done(_))), 1);
        prop_assert!(relay.is_over() && !relay.has_gap());
    }
}
