use emberline_protocol::event::{EventKind, FinishReason, Timings, TokenLogprob, Usage};
use emberline_protocol::prompt::PromptScore;

use super::*;
use crate::relay::{Acceptance, Output, OutputLimits, Relay};

const SCORED: PromptLimits = PromptLimits { logprobs: Some(1) };

fn event(attempt: u32, index: u32, kind: EventKind) -> Chunk {
    Chunk::of(attempt, index, kind)
}

fn accepted(attempt: u32, prompt_tokens: u32) -> Chunk {
    event(attempt, 0, EventKind::Accepted(Acceptance { prompt_tokens, ..Acceptance::default() }))
}

/// The token at a position of a prompt with log-probabilities.
fn token(position: u32) -> PromptToken {
    let top = vec![TokenLogprob { id: 9, bytes: b"x".to_vec(), logprob: -0.5 }];
    let score = PromptScore { logprob: -1.0, rank: 2, top };
    PromptToken { id: 100 + position, bytes: b"a".to_vec(), score: (position > 0).then_some(score) }
}

fn prompt(attempt: u32, index: u32, positions: std::ops::Range<u32>) -> Chunk {
    let position = positions.start;
    event(attempt, index, EventKind::Prompt { position, tokens: positions.map(token).collect() })
}

fn text(attempt: u32, index: u32) -> Chunk {
    let (ids, text) = (vec![1], "a".to_owned());
    event(attempt, index, EventKind::Tokens { choice: 0, position: 0, ids, text, logprobs: Vec::new() })
}

fn finish(attempt: u32, index: u32, reason: FinishReason) -> Chunk {
    event(attempt, index, EventKind::Finish { choice: 0, reason })
}

fn done(attempt: u32, index: u32) -> Chunk {
    event(attempt, index, EventKind::Done { usage: Usage::default(), timings: Timings::default(), at: None })
}

fn relay(limits: PromptLimits) -> Relay {
    Relay::new(OutputLimits { choices: 1, tokens: 9, prompt: Some(limits), ..OutputLimits::default() })
}

fn feed(relay: &mut Relay, events: &[Chunk]) -> Vec<Output> {
    events.iter().flat_map(|event| relay.on_chunk(event.clone()).unwrap()).collect()
}

fn told(positions: std::ops::Range<u32>) -> Output {
    Output::Prompt { first: 0, choices: 1, tokens: positions.map(token).collect() }
}

#[test]
fn a_prompt_is_told_once_it_is_complete_and_before_the_text() {
    let mut relay = relay(SCORED);
    let log = [accepted(1, 5), prompt(1, 1, 0..1), prompt(1, 2, 1..4), prompt(1, 3, 4..5), text(1, 4)];
    assert_eq!(feed(&mut relay, &log[..3]).len(), 1, "accepted, and nothing of the prompt");
    assert_eq!(feed(&mut relay, &log[3..4]), [told(0..5)]);
    assert!(matches!(feed(&mut relay, &log[4..])[..], [Output::Text { .. }]));
    assert_eq!(feed(&mut relay, &log), [], "nothing is told twice");
}

#[test]
fn another_worker_goes_on_with_it_or_writes_it_again() {
    let first = [accepted(1, 5), prompt(1, 1, 0..1), prompt(1, 2, 1..3)];
    for second in [
        vec![accepted(2, 5), prompt(2, 1, 3..5), text(2, 2)],
        vec![accepted(2, 5), prompt(2, 1, 0..2), prompt(2, 2, 2..5), text(2, 3)],
    ] {
        let mut relay = relay(SCORED);
        assert_eq!(feed(&mut relay, &first[..2]).len(), 1);
        // What was missed is in the log.
        assert_eq!(feed(&mut relay, &second), []);
        assert!(relay.has_gap());
        let outputs = relay.rebuild(&[&first[..], &second[..]].concat()).unwrap();
        assert_eq!(outputs[0], told(0..5));
        assert!(matches!(outputs[1..], [Output::Text { .. }]), "{outputs:?}");
        assert!(!relay.has_gap());
    }
}

#[test]
fn what_a_prompt_goes_on_from_is_read_before_it_counts() {
    let mut relay = relay(SCORED);
    let log = [accepted(1, 3), prompt(1, 1, 0..3), accepted(2, 3), text(2, 1)];
    assert_eq!(relay.rebuild(&log[2..]).unwrap().len(), 1);
    assert!(relay.has_gap(), "the text's prompt is not known");
    let outputs = relay.rebuild(&log).unwrap();
    assert!(matches!(&outputs[..], [prompt, Output::Text { .. }] if *prompt == told(0..3)), "{outputs:?}");
}

#[test]
fn ids_alone_have_nothing_else() {
    let ids = |score: bool| EventKind::Prompt {
        position: 0,
        tokens: vec![
            PromptToken { id: 1, bytes: Vec::new(), score: None },
            PromptToken { score: token(1).score.filter(|_| score), ..token(1) },
        ],
    };
    let limits = PromptLimits { logprobs: None };
    let mut plain = relay(limits);
    let outputs = feed(&mut plain, &[accepted(1, 2), event(1, 1, ids(false))]);
    assert!(matches!(&outputs[1], Output::Prompt { tokens, .. } if tokens.len() == 2));
    let mut scored = relay(limits);
    feed(&mut scored, &[accepted(1, 2)]);
    let fault = Fault::Logprobs { attempt: 1, index: 1 };
    assert_eq!(scored.on_chunk(event(1, 1, ids(true))), Err(fault));
    // Nobody has asked.
    let mut silent = Relay::new(OutputLimits { choices: 1, tokens: 9, ..OutputLimits::default() });
    assert_eq!(feed(&mut silent, &[accepted(1, 3), prompt(1, 1, 0..3)]).len(), 1);
}

#[test]
fn what_no_worker_should_write_is_a_fault() {
    let of = |change: &dyn Fn(&mut PromptToken)| {
        let mut tokens = vec![token(0), token(1)];
        change(&mut tokens[1]);
        event(1, 1, EventKind::Prompt { position: 0, tokens })
    };
    let score = |change: &dyn Fn(&mut PromptScore)| of(&|token| change(token.score.as_mut().unwrap()));
    for wrong in [
        of(&|token| token.score = None),
        of(&|token| token.bytes = vec![b'a'; 2000]),
        score(&|score| score.logprob = f32::NAN),
        score(&|score| score.top.push(score.top[0].clone())),
        score(&|score| score.top[0].logprob = f32::NEG_INFINITY),
        event(1, 1, EventKind::Prompt { position: 0, tokens: vec![token(1)] }),
    ] {
        let mut relay = relay(SCORED);
        feed(&mut relay, &[accepted(1, 2)]);
        assert_eq!(relay.on_chunk(wrong), Err(Fault::Logprobs { attempt: 1, index: 1 }));
    }
    let mut long = relay(SCORED);
    let most = u32::try_from(MAX_PROMPT_LOGPROBS / 2).unwrap();
    feed(&mut long, &[accepted(1, u32::MAX), prompt(1, 1, 0..most)]);
    assert_eq!(long.on_chunk(prompt(1, 2, most..most + 1)), Err(Fault::TooLong(1)));
    let mut unfinished = relay(SCORED);
    feed(&mut unfinished, &[accepted(1, 2), prompt(1, 1, 0..1)]);
    assert_eq!(unfinished.on_chunk(done(1, 2)), Err(Fault::Unfinished));
    let mut other = relay(SCORED);
    feed(&mut other, &[accepted(1, 3), prompt(1, 1, 0..2)]);
    let differs = EventKind::Prompt { position: 1, tokens: vec![PromptToken { id: 7, ..token(1) }] };
    let log = [accepted(1, 3), prompt(1, 1, 0..2), accepted(2, 3), event(2, 1, differs)];
    assert_eq!(other.rebuild(&log), Err(Conflict::Differs { attempt: 2, position: 1 }.into()));
}

#[test]
fn a_cancelled_job_ends_without_its_prompt() {
    let mut relay = relay(SCORED);
    let log = [accepted(1, 3), prompt(1, 1, 0..1), finish(1, 2, FinishReason::Cancelled), done(1, 3)];
    assert!(matches!(feed(&mut relay, &log)[..], [_, Output::Finish { .. }, Output::Done(_)]));
}

#[test]
fn an_answer_of_no_tokens_is_its_prompt() {
    let mut relay = relay(SCORED);
    let log = [accepted(1, 2), prompt(1, 1, 0..2), finish(1, 2, FinishReason::Length), done(1, 3)];
    let outputs = feed(&mut relay, &log);
    assert_eq!(outputs[1], told(0..2));
    assert!(matches!(outputs[2..], [Output::Finish { .. }, Output::Done(_)]));
}
