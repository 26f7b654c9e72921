use crate::error::{ApiError, ErrorCode};
use crate::event::{Acceptance, FinishReason, Timings, Usage};
use crate::prompt::PromptToken;
use proptest::prelude::*;

use super::*;

fn event(attempt: u32, index: u32, kind: EventKind) -> Chunk {
    Chunk::of(attempt, index, kind)
}

fn taken() -> EventKind {
    EventKind::Taken { worker: "w".into(), ack: None }
}

/// What a log says of a job that was accepted, and asks for its prompt's tokens.
fn state_of(log: impl IntoIterator<Item = Chunk>, choices: u32) -> LogState {
    // No attempt's own, so that the attempts below need not begin with it.
    let accepted = event(0, 0, EventKind::Accepted(Acceptance::default()));
    let stored: Vec<Chunk> = std::iter::once(accepted).chain(log).collect();
    LogState::of(&stored, choices, true)
}

#[test]
fn the_tokens_of_all_attempts_are_used() {
    let accepted =
        EventKind::Accepted(Acceptance { prompt_tokens: 5, cached_tokens: 2, ..Acceptance::default() });
    let log = [
        event(1, 0, taken()),
        event(1, 1, accepted),
        event(1, 2, tokens(0, 0, 3)),
        event(1, 3, tokens(1, 0, 1)),
        event(2, 0, taken()),
        // It begins at an earlier place than its predecessor came to.
        event(2, 1, tokens(0, 0, 5)),
    ];
    let usage = Usage { prompt_tokens: 5, cached_tokens: 2, completion_tokens: 5 + 1 };
    assert_eq!(LogState::of(&log, 2, false).usage, usage);
    assert_eq!(LogState::of(&[], 2, false).usage, Usage::default());
}

/// Token `n` has the text `n` modulo ten.
fn tokens(choice: u32, position: u32, count: u32) -> EventKind {
    let ids: Vec<u32> = (position..position + count).collect();
    let text = ids.iter().map(|id| (id % 10).to_string()).collect();
    EventKind::Tokens { choice, position, ids, text, logprobs: Vec::new() }
}

fn resumed(count: u32) -> ResumedTokens {
    let ids: Vec<u32> = (0..count).collect();
    let text = ids.iter().map(|id| (id % 10).to_string()).collect();
    ResumedTokens { ids, text, finish: None }
}

#[test]
fn nothing_is_known_of_a_job_that_is_new() {
    assert_eq!(state_of([], 2), LogState { choices: vec![resumed(0); 2], ..LogState::default() });
}

#[test]
fn each_choice_goes_on_where_the_last_attempt_came_to() {
    let finish = EventKind::Finish { choice: 1, reason: FinishReason::Stop };
    let log = [
        event(1, 0, taken()),
        event(1, 1, tokens(0, 0, 2)),
        event(1, 2, tokens(1, 0, 1)),
        event(1, 3, finish),
        event(2, 0, taken()),
        event(2, 1, tokens(0, 2, 3)),
    ];
    let state = state_of(log, 2);
    let ended = ResumedTokens { finish: Some(FinishReason::Stop), ..resumed(1) };
    assert_eq!(state.choices, [resumed(5), ended]);
    assert_eq!((state.attempts, state.fruitless, state.end), (2, 0, None));
}

#[test]
fn what_was_sent_again_counts_and_what_lies_behind_a_hole_does_not() {
    let log = [
        event(1, 0, taken()),
        event(1, 2, tokens(0, 2, 2)),
        event(1, 1, tokens(0, 0, 2)),
        event(1, 4, tokens(0, 6, 1)),
    ];
    assert_eq!(state_of(log, 1).choices, [resumed(4)]);
}

#[test]
fn a_worker_that_does_not_know_of_its_successor_adds_nothing() {
    let log = [
        event(1, 0, taken()),
        event(1, 1, tokens(0, 0, 2)),
        event(2, 0, taken()),
        event(1, 2, tokens(0, 2, 2)),
        event(2, 1, tokens(0, 2, 1)),
    ];
    assert_eq!(state_of(log, 1).choices, [resumed(3)]);
}

#[test]
fn a_log_that_lost_its_beginning_says_nothing_until_someone_begins_anew() {
    let lost = vec![event(1, 7, tokens(0, 6, 2)), event(1, 8, tokens(0, 8, 2))];
    let state = state_of(lost.clone(), 1);
    assert_eq!((state.attempts, &state.choices[..]), (1, &[resumed(0)][..]));
    let anew = [event(2, 0, taken()), event(2, 1, tokens(0, 0, 4))];
    assert_eq!(state_of(lost.into_iter().chain(anew), 1).choices, [resumed(4)]);
}

#[test]
fn an_attempt_whose_beginning_is_not_known_is_not_counted_in() {
    let log = [
        event(1, 0, taken()),
        event(1, 1, tokens(0, 0, 2)),
        event(2, 0, taken()),
        event(2, 1, tokens(0, 5, 2)),
    ];
    assert_eq!(state_of(log, 1).choices, [resumed(2)]);
}

#[test]
fn attempts_that_add_nothing_are_counted_until_one_does_or_gives_the_job_back() {
    let dead = |attempt| event(attempt, 0, taken());
    let fruitless = |log: &[Chunk]| state_of(log.iter().cloned(), 1).fruitless;
    assert_eq!(fruitless(&[dead(1), dead(2), dead(3)]), 3);
    assert_eq!(fruitless(&[dead(1), dead(2), dead(3), event(3, 1, tokens(0, 0, 1)), dead(4)]), 1);
    assert_eq!(fruitless(&[dead(1), dead(2), event(2, 1, EventKind::HandedBack), dead(3)]), 1);
    // To write the same again is no progress.
    let again = [event(1, 0, tokens(0, 0, 3)), dead(2), event(2, 1, tokens(0, 0, 2)), dead(3)];
    assert_eq!(fruitless(&again), 2);
}

#[test]
fn a_log_tells_its_end() {
    let done = EventKind::Done { usage: Usage::default(), timings: Timings::default(), at: None };
    let log = [event(1, 0, taken()), event(1, 1, done.clone())];
    assert_eq!(state_of(log, 1).end, Some(done));
    let error = EventKind::Error(ApiError::new(ErrorCode::Timeout, "late").into());
    assert_eq!(state_of([event(1, 0, error.clone())], 1).end, Some(error));
}

proptest! {
    /// Workers die anywhere, some of their last events are lost, some come late: what is read is
    /// always a beginning of the answer, and never less than the attempt before had read.
    #[test]
    fn what_is_read_is_a_beginning_of_the_answer(
        attempts in proptest::collection::vec((proptest::collection::vec(1_u32..4, 0..6), 0_usize..3), 1..6),
    ) {
        let mut log = Vec::new();
        let mut late: Vec<Chunk> = Vec::new();
        let mut known = 0;
        for ((events, lost), attempt) in attempts.into_iter().zip(1..) {
            let state = state_of(log.iter().cloned(), 1);
            let count = u32::try_from(state.choices[0].ids.len()).unwrap();
            prop_assert_eq!(&state.choices[0], &resumed(count));
            prop_assert!(count >= known);
            known = count;
            let mut own = vec![event(attempt, 0, taken())];
            let mut position = count;
            for (count, index) in events.into_iter().zip(1..) {
                own.push(event(attempt, index, tokens(0, position, count)));
                position += count;
            }
            let tail = own.split_off(own.len().saturating_sub(lost).max(1));
            log.extend(own);
            log.append(&mut late);
            late = tail;
        }
    }
}

#[test]
fn a_prompt_is_known_as_far_as_it_was_written_without_a_hole() {
    let prompt = |position: u32, count: u32| {
        let token = |id| PromptToken { id, bytes: Vec::new(), score: None };
        EventKind::Prompt { position, tokens: (position..position + count).map(token).collect() }
    };
    let log = [
        event(1, 0, taken()),
        event(1, 1, prompt(0, 3)),
        event(1, 3, prompt(5, 2)),
        event(2, 0, taken()),
        event(2, 1, prompt(3, 1)),
        // From the beginning, as after a log that could not be read.
        event(3, 0, taken()),
        event(3, 1, prompt(0, 2)),
    ];
    let state = state_of(log.clone(), 1);
    assert_eq!((state.prompt, state.fruitless), (4, 3), "only tokens of answers are progress");
    assert_eq!(state_of(log.into_iter().take(2), 1).prompt, 3);
    assert_eq!(state_of([event(1, 0, taken()), event(1, 1, prompt(4, 1))], 1).prompt, 0);
}
