//! Answers that another worker began.

use std::collections::BTreeMap;

use emberline_protocol::job::{Constraint, RawPrompt};

use super::*;
use crate::engine::testing::log_state;

fn resume(runs: &mut Runs, job: Job, written: Vec<ResumedTokens>) -> Vec<EventKind> {
    resume_after(runs, job, written, 0)
}

/// The same for a job of whose prompt so many tokens are written.
fn resume_after(
    runs: &mut Runs,
    job: Job,
    resumed: Vec<ResumedTokens>,
    resumed_prompt: u32,
) -> Vec<EventKind> {
    let (events, mut receiver) = unbounded_channel();
    let prepared = runs.engine.preprocessor().prepare(job, Instant::now()).unwrap();
    runs.engine.submit(PreparedRequest { resumed, resumed_prompt, ..prepared }, events);
    runs.finish();
    std::iter::from_fn(|| receiver.try_recv().ok()).collect()
}

/// By choice and position; what is written twice must be the same.
fn logprobs<'a>(logs: impl IntoIterator<Item = &'a EventKind>) -> BTreeMap<(u32, u32), TokenLogprobs> {
    let mut all = BTreeMap::new();
    for kind in logs {
        if let EventKind::Tokens { choice, position, logprobs, .. } = kind {
            for (token, at) in logprobs.iter().zip(*position..) {
                let known = all.insert((*choice, at), token.clone());
                assert!(known.is_none_or(|known| known == *token));
            }
        }
    }
    all
}

fn usage(log: &[EventKind]) -> Usage {
    let Some(EventKind::Done { usage, .. }) = log.last() else { panic!("no end: {log:?}") };
    Usage { cached_tokens: 0, ..*usage }
}

/// Whatever of a job's log was stored when its worker died, another one writes exactly the rest.
fn goes_on_from_anywhere(job: &Job) {
    // In chunks, so that a prompt is told in several events.
    let engine = || {
        engine_with(|options| {
            options.slots = Some(4);
            options.prefill_budget = Some(9);
        })
    };
    let (mut first, mut second) = (engine(), engine());
    let whole = run(&mut first, job.clone());
    let expected = log_state(&whole, job.request.n);
    assert!(expected.end.is_some());
    for cut in 0..whole.len() {
        let (known, _) = whole.split_at(cut);
        let written = log_state(known, job.request.n);
        let rest = resume_after(&mut second, job.clone(), written.choices.clone(), written.prompt);
        let both = log_state(known.iter().chain(&rest), job.request.n);
        assert_eq!(both.choices, expected.choices, "after {known:?} came {rest:?}");
        assert_eq!(usage(&rest), usage(&whole), "after {known:?}");
        assert_eq!(logprobs(known.iter().chain(&rest)), logprobs(&whole));
        let told: Vec<EventKind> = known.iter().chain(&rest).cloned().collect();
        assert_eq!(super::prompt::prompt(&told), super::prompt::prompt(&whole), "after {known:?}");
        let ends = |log: &[EventKind]| {
            let end = |kind: &&EventKind| matches!(kind, EventKind::EndToken { .. });
            log.iter().filter(end).cloned().collect::<Vec<_>>()
        };
        // Some may be told twice: where the choice's end was lost after them.
        let (told, wanted) = (ends(&told), ends(&whole));
        assert!(told.iter().all(|end| wanted.contains(end)), "after {known:?} came {rest:?}");
        assert!(wanted.iter().all(|end| told.contains(end)), "after {known:?} came {rest:?}");
        let repeated = rest.iter().any(|kind| match kind {
            EventKind::Tokens { choice, position, ids, .. } => {
                !ids.is_empty() && (*position as usize) < written.choices[*choice as usize].ids.len()
            }
            EventKind::Finish { choice, .. } => written.choices[*choice as usize].finish.is_some(),
            _ => false,
        });
        assert!(!repeated, "after {known:?} came {rest:?}");
    }
}

#[test]
fn choices_with_log_probabilities_go_on() {
    let mut job = job(1);
    (job.request.n, job.request.logprobs) = (3, Some(2));
    goes_on_from_anywhere(&job);
}

#[test]
fn prompts_that_are_told_go_on() {
    for (top, ids) in [(Some(2), false), (Some(0), true), (None, true)] {
        let mut job = job(7);
        (job.request.n, job.request.prompt_logprobs, job.request.return_token_ids) = (2, top, ids);
        job.request.max_tokens = Some(4);
        goes_on_from_anywhere(&job);
        job.request.max_tokens = Some(0);
        goes_on_from_anywhere(&job);
    }
}

#[test]
fn bad_words_go_on_that_begin_in_one_worker_and_end_in_another() {
    let mut job = super::prompt::in_letters(5);
    let said = text(&run(&mut engine(1), job.clone()));
    let pair: String = said.chars().skip(3).take(2).collect();
    job.request.sampling.bad_words = vec![pair.clone(), said.chars().skip(1).take(3).collect()];
    assert!(!text(&run(&mut engine(1), job.clone())).contains(&pair));
    goes_on_from_anywhere(&job);
}

#[test]
fn named_tokens_and_salts_go_on() {
    let mut job = job(8);
    (job.request.logprobs, job.request.logprob_token_ids) = (Some(0), vec![65, 90]);
    job.request.cache_salt = Some("s".to_owned());
    goes_on_from_anywhere(&job);
}

#[test]
fn answers_to_raw_and_open_prompts_go_on() {
    let mut raw = job(9);
    raw.request.prompt = Some(RawPrompt::Text("once".to_owned()));
    raw.request.messages.clear();
    goes_on_from_anywhere(&raw);
    let mut open = job(9);
    open.request.messages.push(Message::new(Role::Assistant, "well, "));
    (open.request.add_generation_prompt, open.request.continue_final_message) = (false, true);
    goes_on_from_anywhere(&open);
}

#[test]
fn penalties_and_least_tokens_go_on() {
    let mut job = job(2);
    job.request.sampling.frequency_penalty = 1.5;
    job.request.sampling.repetition_penalty = 1.3;
    job.request.sampling.min_tokens = 6;
    job.request.sampling.logit_bias = vec![(END, 4.0)];
    goes_on_from_anywhere(&job);
}

#[test]
fn answers_that_end_with_a_token_go_on() {
    for seed in 0..6 {
        let mut job = job(3);
        (job.seed, job.request.n) = (seed, 2);
        job.request.sampling.logit_bias = vec![(END, 6.0)];
        goes_on_from_anywhere(&job);
    }
}

#[test]
fn tokens_that_end_an_answer_are_told_by_whoever_ends_it() {
    let mut ended = 0;
    for seed in 0..6 {
        let mut job = job(3);
        (job.seed, job.request.n, job.request.return_token_ids) = (seed, 2, true);
        job.request.sampling.logit_bias = vec![(END, 6.0)];
        goes_on_from_anywhere(&job);
        // Behind text that is held back because it may begin a stop string.
        let said = text(&run(
            &mut engine(1),
            Job { request: GenerationRequest { n: 1, ..job.request.clone() }, ..job.clone() },
        ));
        ended += usize::from(!said.is_empty());
        if let Some(last) = said.chars().last() {
            job.request.stop = vec![format!("{last}¡")];
            goes_on_from_anywhere(&job);
        }
        job.request.prompt = Some(RawPrompt::Text("once".to_owned()));
        (job.request.logprobs, job.request.return_token_ids) = (Some(1), false);
        goes_on_from_anywhere(&job);
    }
    assert!(ended > 0);
}

#[test]
fn stop_strings_go_on_that_begin_in_one_worker_and_end_in_another() {
    let mut job = job(4);
    let said = text(&run(&mut engine(1), job.clone()));
    let letters: Vec<char> = said.chars().collect();
    assert!(letters.len() > 8, "{said}");
    job.request.stop = vec![letters[3..7].iter().collect(), letters[2..5].iter().chain(&['¡']).collect()];
    goes_on_from_anywhere(&job);
}

#[test]
fn what_obeys_a_grammar_goes_on_obeying() {
    let mut job = job(5);
    job.request.constraint = Some(Constraint::Regex("(ab|cd){2}[x-z]{3}".to_owned()));
    job.request.n = 2;
    goes_on_from_anywhere(&job);
    job.request.max_tokens = Some(5);
    goes_on_from_anywhere(&job);
}

#[test]
fn an_answer_of_another_model_is_not_continued() {
    let mut runs = engine(1);
    let other = ResumedTokens { ids: vec![u32::from(b'a')], text: "b".to_owned(), finish: None };
    let error = resume(&mut runs, job(6), vec![other]);
    assert_eq!(super::error(&error).code, ErrorCode::WorkerFailed);
    let mut constrained = job(6);
    constrained.request.constraint = Some(Constraint::Regex("b*".to_owned()));
    let other = ResumedTokens { ids: vec![u32::from(b'a')], text: "a".to_owned(), finish: None };
    let error = resume(&mut runs, constrained, vec![other]);
    assert_eq!(super::error(&error).code, ErrorCode::WorkerFailed);
}
