use emberline_protocol::event::{ErrorEvent, EventKind, Timings, TokenLogprob};

use super::*;

const LIMITS: OutputLimits =
    OutputLimits { choices: 1, tokens: 100, logprobs: None, ids: false, prompt: None };

fn event(attempt: u32, index: u32, kind: EventKind) -> Chunk {
    Chunk::of(attempt, index, kind)
}

fn accepted(attempt: u32) -> Chunk {
    event(
        attempt,
        0,
        EventKind::Accepted(Acceptance {
            prompt_tokens: 3,
            fingerprint: "fp".into(),
            ..Acceptance::default()
        }),
    )
}

fn tokens(attempt: u32, index: u32, position: u32, count: u32, text: &str) -> Chunk {
    tokens_of(0, attempt, index, position, count, text)
}

fn tokens_of(choice: u32, attempt: u32, index: u32, position: u32, count: u32, text: &str) -> Chunk {
    let ids = (0..count).collect();
    event(
        attempt,
        index,
        EventKind::Tokens { choice, position, ids, text: text.into(), logprobs: Vec::new() },
    )
}

fn finish(attempt: u32, index: u32) -> Chunk {
    finish_of(0, attempt, index)
}

fn finish_of(choice: u32, attempt: u32, index: u32) -> Chunk {
    event(attempt, index, EventKind::Finish { choice, reason: FinishReason::Stop })
}

fn done(attempt: u32, index: u32) -> Chunk {
    event(attempt, index, EventKind::Done { usage: Usage::default(), timings: Timings::default(), at: None })
}

fn failed(attempt: u32, index: u32) -> Chunk {
    let error: ErrorEvent = ApiError::new(ErrorCode::ContextLengthExceeded, "long").into();
    event(attempt, index, EventKind::Error(error))
}

fn text(choice: u32, text: &str) -> Output {
    text_by(choice, text, 1)
}

fn text_by(choice: u32, text: &str, tokens: u32) -> Output {
    Output::Text { choice, text: text.into(), logprobs: None, ids: None, tokens }
}

/// All text in a series of outputs.
fn text_of(outputs: &[Output]) -> String {
    outputs
        .iter()
        .filter_map(|o| if let Output::Text { text, .. } = o { Some(text.as_str()) } else { None })
        .collect()
}

fn feed(relay: &mut Relay, events: &[Chunk]) -> Vec<Output> {
    events.iter().flat_map(|event| relay.on_chunk(event.clone()).unwrap()).collect()
}

#[test]
fn an_answer_is_told_in_order() {
    let mut relay = Relay::new(LIMITS);
    let log = [accepted(1), tokens(1, 1, 0, 1, "a"), tokens(1, 2, 1, 2, "bc"), finish(1, 3), done(1, 4)];
    assert_eq!(
        feed(&mut relay, &log),
        [
            Output::Accepted(Acceptance {
                fingerprint: "fp".into(),
                prompt_tokens: 3,
                ..Acceptance::default()
            }),
            text(0, "a"),
            text_by(0, "bc", 2),
            Output::Finish { choice: 0, reason: FinishReason::Stop },
            Output::Done(Ending::default()),
        ]
    );
    assert!(relay.is_over());
}

#[test]
fn choices_take_turns() {
    let mut relay = Relay::new(OutputLimits { choices: 3, ..LIMITS });
    let log = [
        accepted(1),
        tokens_of(2, 1, 1, 0, 1, "x"),
        tokens_of(0, 1, 2, 0, 1, "a"),
        finish_of(1, 1, 3),
        tokens_of(2, 1, 4, 1, 1, "y"),
        finish_of(2, 1, 5),
        tokens_of(0, 1, 6, 1, 2, "b"),
        finish_of(0, 1, 7),
        done(1, 8),
    ];
    let outputs = feed(&mut relay, &log);
    assert_eq!(
        outputs[1..],
        [
            text(2, "x"),
            text(0, "a"),
            Output::Finish { choice: 1, reason: FinishReason::Stop },
            text(2, "y"),
            Output::Finish { choice: 2, reason: FinishReason::Stop },
            text_by(0, "b", 2),
            Output::Finish { choice: 0, reason: FinishReason::Stop },
            Output::Done(Ending::default()),
        ]
    );
    assert_eq!(feed(&mut relay, &log), [], "nothing is told twice");
}

#[test]
fn a_second_worker_goes_on_with_the_choices_that_are_not_complete() {
    let limits = OutputLimits { choices: 2, ..LIMITS };
    let mut relay = Relay::new(limits);
    let first =
        [accepted(1), tokens_of(0, 1, 1, 0, 1, "a"), tokens_of(1, 1, 2, 0, 2, "xy"), finish_of(0, 1, 3)];
    feed(&mut relay, &first);
    let second = [accepted(2), tokens_of(1, 2, 1, 2, 1, "z"), finish_of(1, 2, 2), done(2, 3)];
    assert_eq!(feed(&mut relay, &second), []);
    let outputs = relay.rebuild(&[&first[..], &second[..]].concat()).unwrap();
    let end = [
        text(1, "z"),
        Output::Finish { choice: 1, reason: FinishReason::Stop },
        Output::Done(Ending::default()),
    ];
    assert_eq!(outputs, end);

    // The same from a worker that has not read the log.
    let mut relay = Relay::new(limits);
    feed(&mut relay, &first);
    let second = [
        accepted(2),
        tokens_of(1, 2, 1, 0, 3, "xyz"),
        finish_of(1, 2, 2),
        tokens_of(0, 2, 3, 0, 1, "a"),
        finish_of(0, 2, 4),
        done(2, 5),
    ];
    assert_eq!(feed(&mut relay, &second), []);
    assert_eq!(relay.rebuild(&[&first[..], &second[..]].concat()).unwrap(), end);
}

#[test]
fn a_job_that_is_done_with_a_choice_unfinished_is_a_fault() {
    let mut relay = Relay::new(OutputLimits { choices: 2, ..LIMITS });
    feed(&mut relay, &[accepted(1), finish_of(1, 1, 1)]);
    assert_eq!(relay.on_chunk(done(1, 2)), Err(Fault::Unfinished));
}

/// `chunk` with these log-probabilities.
fn with(mut chunk: Chunk, new: Vec<TokenLogprobs>) -> Chunk {
    if let [EventKind::Tokens { logprobs, .. }] = &mut chunk.events[..] {
        *logprobs = new;
    }
    chunk
}

/// A token with so many alternatives.
fn token(text: &str, logprob: f32, alternatives: usize) -> TokenLogprobs {
    let token = TokenLogprob { id: 0, bytes: text.into(), logprob };
    TokenLogprobs { top: vec![token.clone(); alternatives], token }
}

#[test]
fn log_probabilities_are_told_with_the_tokens_that_an_event_carries() {
    let mut relay = Relay::new(OutputLimits { logprobs: Some(1), ..LIMITS });
    let [a, b, c] = [token("a", -1.0, 1), token("b", -2.0, 0), token("c", -3.0, 1)];
    let log = [
        accepted(1),
        with(tokens(1, 1, 0, 2, "ab"), vec![a.clone(), b.clone()]),
        // No whole character, but a token.
        with(tokens(1, 2, 2, 1, ""), vec![c.clone()]),
        // Text that was held back, and no token.
        tokens(1, 3, 3, 0, "c"),
        finish(1, 4),
    ];
    let told = |text: &str, logprobs: &[&TokenLogprobs]| Output::Text {
        choice: 0,
        text: text.into(),
        logprobs: Some(logprobs.iter().copied().cloned().collect()),
        ids: None,
        tokens: logprobs.len() as u32,
    };
    assert_eq!(feed(&mut relay, &log)[1..4], [told("ab", &[&a, &b]), told("", &[&c]), told("c", &[])]);

    // What is told twice over differs in the last bits on another device: the first one counts.
    let other = token("c", -3.5, 1);
    let second = [accepted(2), with(tokens(2, 1, 2, 1, "c"), vec![other]), finish(2, 2), done(2, 3)];
    feed(&mut relay, &second);
    let outputs = relay.rebuild(&[&log[..], &second[..]].concat()).unwrap();
    assert_eq!(outputs, [Output::Done(Ending::default())]);
}

#[test]
fn ids_and_the_token_that_ends_an_answer_are_told_once() {
    let limits = OutputLimits { logprobs: Some(1), ids: true, ..LIMITS };
    let mut relay = Relay::new(limits);
    let end =
        |attempt, index, logprobs| event(attempt, index, EventKind::EndToken { choice: 0, id: 9, logprobs });
    let first = [
        accepted(1),
        with(tokens(1, 1, 0, 2, "ab"), vec![token("a", -1.0, 0), token("b", -2.0, 0)]),
        end(1, 2, Some(token("", -3.0, 1))),
    ];
    let told = |text: &str, logprobs: Vec<TokenLogprobs>, ids: Vec<u32>| Output::Text {
        choice: 0,
        text: text.into(),
        tokens: ids.len() as u32,
        logprobs: Some(logprobs),
        ids: Some(ids),
    };
    assert_eq!(
        feed(&mut relay, &first)[1..],
        [
            told("ab", vec![token("a", -1.0, 0), token("b", -2.0, 0)], vec![0, 1]),
            told("", vec![token("", -3.0, 1)], vec![9]),
        ]
    );
    // Its worker died before it said that this was the end.
    let second = [accepted(2), end(2, 1, Some(token("", -3.0, 1))), finish(2, 2), done(2, 3)];
    feed(&mut relay, &second);
    let outputs = relay.rebuild(&[&first[..], &second[..]].concat()).unwrap();
    let finish = Output::Finish { choice: 0, reason: FinishReason::Stop };
    assert_eq!(outputs, [finish, Output::Done(Ending::default())]);
    // In a chat its log-probability is not told, and nobody else may tell it.
    let mut chat = Relay::new(limits);
    feed(&mut chat, &[accepted(1)]);
    assert_eq!(chat.on_chunk(end(1, 1, None)), Ok(vec![told("", Vec::new(), vec![9])]));
    let mut plain = Relay::new(LIMITS);
    feed(&mut plain, &[accepted(1)]);
    assert_eq!(plain.on_chunk(end(1, 1, None)), Ok(Vec::new()));
    let fault = Fault::Logprobs { attempt: 1, index: 2 };
    assert_eq!(plain.on_chunk(end(1, 2, Some(token("", -3.0, 0)))), Err(fault));
}

#[test]
fn log_probabilities_that_were_not_asked_for_are_not_told() {
    let mut relay = Relay::new(LIMITS);
    let log = [
        accepted(1),
        with(tokens(1, 1, 0, 1, "a"), vec![token("a", -1.0, 1)]),
        with(tokens(1, 2, 1, 1, ""), vec![token("b", -1.0, 1)]),
    ];
    assert_eq!(feed(&mut relay, &log)[1..], [text(0, "a")]);
}

#[test]
fn log_probabilities_that_are_not_as_asked_for_are_a_fault() {
    let sound = token("a", -1.0, 2);
    let long = "a".repeat(2000);
    for wrong in [
        vec![],
        vec![sound.clone(), sound.clone()],
        vec![token("a", -1.0, 3)],
        vec![token("a", f32::NEG_INFINITY, 2)],
        vec![token(&long, -1.0, 0)],
    ] {
        let mut relay = Relay::new(OutputLimits { logprobs: Some(2), ..LIMITS });
        feed(&mut relay, &[accepted(1)]);
        let fault = Err(Fault::Logprobs { attempt: 1, index: 1 });
        assert_eq!(relay.on_chunk(with(tokens(1, 1, 0, 1, "a"), wrong.clone())), fault, "{wrong:?}");
    }
}

#[test]
fn not_everything_waits_for_a_gap_to_be_closed() {
    for choices in [1, 3] {
        let mut relay = Relay::new(OutputLimits { choices, ..LIMITS });
        feed(&mut relay, &[accepted(1)]);
        let most = u32::try_from(MAX_WAITING).unwrap() * choices;
        for index in 0..most {
            assert_eq!(relay.on_chunk(tokens(1, index + 2, index + 1, 1, "a")), Ok(Vec::new()));
        }
        assert_eq!(relay.on_chunk(tokens(1, most + 2, 1, 1, "a")), Err(Fault::TooManyWaiting));
    }
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
    assert_eq!(relay.rebuild(&log).unwrap().last(), Some(&Output::Done(Ending::default())));
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
    for position in [0, 2] {
        let wrong = tokens(1, 2, position, 1, "b");
        let mut relay = start();
        // Perhaps another worker has begun meanwhile.
        assert_eq!(feed(&mut relay, std::slice::from_ref(&wrong)), []);
        assert!(relay.has_gap());
        let log = [accepted(1), tokens(1, 1, 0, 1, "a"), wrong];
        assert_eq!(relay.rebuild(&log), Err(Conflict::Position { attempt: 1, index: 2, position }.into()));
    }
    for (wrong, fault) in [
        (tokens(1, 2, 1, 100, "b"), Fault::TooLong(1)),
        (tokens(1, 2, 1, 1, &"b".repeat(200_000)), Fault::TooLong(1)),
        (event(1, 2, choice), Conflict::Choice { attempt: 1, index: 2, choice: 1 }.into()),
        (tokens_of(7, 1, 2, 0, 1, "b"), Conflict::Choice { attempt: 1, index: 2, choice: 7 }.into()),
        (done(1, 2), Fault::Unfinished),
    ] {
        assert_eq!(start().on_chunk(wrong), Err(fault));
    }
    for late in [tokens(1, 3, 1, 1, "b"), tokens(1, 3, 1, 1, ""), tokens(1, 3, 1, 0, "b")] {
        let mut relay = start();
        feed(&mut relay, &[finish(1, 2)]);
        assert_eq!(relay.on_chunk(late), Err(Conflict::OutOfOrder { attempt: 1, index: 3 }.into()));
    }
    let early = Relay::new(LIMITS).on_chunk(tokens(1, 0, 0, 1, "a"));
    assert_eq!(early, Err(Conflict::OutOfOrder { attempt: 1, index: 0 }.into()));
}

#[test]
fn a_job_may_be_cancelled_at_any_time() {
    let cancelled = |attempt, index| {
        event(attempt, index, EventKind::Finish { choice: 0, reason: FinishReason::Cancelled })
    };
    let mut queued = Relay::new(LIMITS);
    let told = feed(&mut queued, &[cancelled(1, 0), done(1, 1)]);
    let told_of = Output::Finish { choice: 0, reason: FinishReason::Cancelled };
    assert!(matches!(&told[..], [first, Output::Done(_)] if *first == told_of), "{told:?}");
    let mut finished = Relay::new(LIMITS);
    feed(&mut finished, &[accepted(1), tokens(1, 1, 0, 1, "a"), finish(1, 2)]);
    let log = [accepted(1), tokens(1, 1, 0, 1, "a"), finish(1, 2), cancelled(2, 0), done(2, 1)];
    assert!(matches!(finished.rebuild(&log).unwrap()[..], [Output::Done(_)]));
}

#[test]
fn another_text_from_a_second_worker_is_a_fault() {
    let mut relay = Relay::new(LIMITS);
    let first = [accepted(1), tokens(1, 1, 0, 2, "ab")];
    feed(&mut relay, &first);
    let log = [&first[..], &[accepted(2), tokens(2, 1, 0, 2, "ax")]].concat();
    assert_eq!(relay.rebuild(&log), Err(Conflict::Differs { attempt: 2, position: 0 }.into()));
    let told_as = "the first one's text, whichever attempt's number the second one has";
    let log = [taken(1, "other"), accepted_as(1, 1), tokens(1, 2, 0, 2, "xy")];
    let mut relay = Relay::new(LIMITS);
    feed(&mut relay, &[taken(1, "one"), accepted_as(1, 1), tokens(1, 2, 0, 2, "ab")]);
    assert_eq!(relay.rebuild(&log), Err(Conflict::Differs { attempt: 1, position: 0 }.into()), "{told_as}");
}

fn taken(attempt: u32, worker: &str) -> Chunk {
    event(attempt, 0, EventKind::Taken { worker: worker.into(), ack: None })
}

/// An acceptance in another place of its attempt.
fn accepted_as(attempt: u32, index: u32) -> Chunk {
    Chunk { index, end: index + 1, ..accepted(attempt) }
}

#[test]
fn a_job_is_taken_once_a_worker_has_written() {
    let mut relay = Relay::new(LIMITS);
    assert!(!relay.is_taken());
    feed(&mut relay, &[taken(2, "b")]);
    assert!(relay.is_taken());

    let mut relay = Relay::new(LIMITS);
    assert_eq!(relay.rebuild(&[taken(1, "a")]), Ok(Vec::new()));
    assert!(relay.is_taken());
}

#[test]
fn a_takeover_that_the_log_refused_disturbs_nobody() {
    let mut relay = Relay::new(LIMITS);
    feed(&mut relay, &[taken(1, "a"), accepted_as(1, 1), tokens(1, 2, 0, 1, "a")]);
    // Both are live only: the log was not as the second worker thought.
    assert_eq!(feed(&mut relay, &[taken(2, "b")]), []);
    assert!(!relay.has_gap());
    assert_eq!(text_of(&feed(&mut relay, &[tokens(1, 3, 1, 1, "b")])), "b");

    feed(&mut relay, &[taken(1, "c")]);
    assert!(relay.has_gap(), "it may have been stored in a log that is begun anew");
    assert_eq!(feed(&mut relay, &[tokens(1, 4, 2, 1, "c")]), []);
    let log = [taken(1, "a"), accepted_as(1, 1), tokens(1, 2, 0, 1, "a"), tokens(1, 3, 1, 1, "b")];
    assert_eq!(text_of(&relay.rebuild(&log).unwrap()), "c");
    assert!(!relay.has_gap());
}

#[test]
fn a_log_that_was_lost_and_is_written_again_goes_on_where_the_told_text_ends() {
    let mut relay = Relay::new(LIMITS);
    let first = [taken(1, "a"), accepted_as(1, 1), tokens(1, 2, 0, 1, "a"), tokens(1, 3, 1, 2, "bc")];
    assert_eq!(text_of(&feed(&mut relay, &first)), "abc");
    // Nothing is known of the first worker, so the second one has its number.
    let second = [
        taken(1, "b"),
        accepted_as(1, 1),
        tokens(1, 2, 0, 2, "ab"),
        tokens(1, 3, 2, 2, "cd"),
        finish(1, 4),
        done(1, 5),
    ];
    assert_eq!(feed(&mut relay, &second[..4]), []);
    assert!(relay.has_gap());
    let outputs = relay.rebuild(&second[..4]).unwrap();
    assert_eq!(outputs, [text(0, "d")]);
    assert!(!relay.has_gap());
    // The first one may still write, and then only the log tells whose chunk this is.
    assert_eq!(feed(&mut relay, &[tokens(1, 4, 3, 1, "d")]), []);
    assert_eq!(feed(&mut relay, &second[4..]), []);
    assert!(relay.has_gap());
    assert_eq!(relay.rebuild(&second).unwrap().len(), 2);
    assert!(relay.is_over());
}

#[test]
fn a_worker_that_goes_on_after_its_log_was_lost_is_followed() {
    let mut relay = Relay::new(LIMITS);
    feed(&mut relay, &[taken(1, "a"), accepted_as(1, 1), tokens(1, 2, 0, 1, "a")]);
    relay.recheck();
    assert!(relay.has_gap());
    let log = [tokens(1, 3, 1, 1, "b"), tokens(1, 4, 2, 1, "c")];
    assert_eq!(feed(&mut relay, &log[1..]), [], "something may be missing before it");
    assert_eq!(text_of(&relay.rebuild(&log).unwrap()), "bc");
    assert!(!relay.has_gap());
}

#[test]
fn an_attempt_waits_for_what_it_goes_on_from() {
    let mut relay = Relay::new(LIMITS);
    let first = [taken(1, "a"), accepted_as(1, 1), tokens(1, 2, 0, 1, "a"), tokens(1, 3, 1, 1, "b")];
    let second = [taken(2, "b"), accepted_as(2, 1), tokens(2, 2, 2, 1, "c")];
    feed(&mut relay, &first[..3]);
    assert_eq!(feed(&mut relay, &second), []);
    // A log with a hole that is filled a moment later.
    let holey = [&first[..3], &second[..]].concat();
    assert_eq!(relay.rebuild(&holey).unwrap(), []);
    assert!(relay.has_gap());
    assert_eq!(text_of(&relay.rebuild(&[&first[..], &second[..]].concat()).unwrap()), "bc");
    assert!(!relay.has_gap());
}

#[test]
fn what_a_replaced_worker_still_writes_does_not_count() {
    let mut relay = Relay::new(LIMITS);
    let log = [
        taken(1, "a"),
        accepted_as(1, 1),
        tokens(1, 2, 0, 1, "a"),
        taken(2, "b"),
        // Another device, another text; and no word of an error is the last.
        tokens(1, 3, 1, 1, "X"),
        failed(1, 4),
        accepted_as(2, 1),
        tokens(2, 2, 1, 1, "b"),
        finish(2, 3),
        done(2, 4),
    ];
    assert_eq!(text_of(&relay.rebuild(&log).unwrap()), "ab");
    assert!(relay.is_over());
}

#[test]
fn a_newer_protocol_is_refused() {
    let json = serde_json::to_vec(&Chunk { v: PROTOCOL_VERSION + 1, ..accepted(1) }).unwrap();
    assert_eq!(read_chunk(&json), Err(Fault::Version(PROTOCOL_VERSION + 1)));
    assert!(matches!(read_chunk(b"{}"), Err(Fault::Unreadable(_))));
    assert_eq!(read_chunk(&serde_json::to_vec(&accepted(1)).unwrap()), Ok(accepted(1)));
}

#[test]
fn a_log_without_its_beginning_is_told_from_one_that_has_only_just_begun() {
    let mut begun = Relay::new(LIMITS);
    assert!(begun.rebuild(&[taken(1, "w")]).unwrap().is_empty());
    assert!(begun.is_taken() && !begun.has_gap());
    let mut beheaded = Relay::new(LIMITS);
    assert!(beheaded.rebuild(&[tokens(1, 2, 5, 1, "x")]).unwrap().is_empty());
    assert!(beheaded.has_gap());
}
