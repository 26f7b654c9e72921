use emberline_protocol::event::Acceptance;
use emberline_protocol::job::{Constraint, GenerationRequest, Message, Role, SamplingOptions, Tool};
use proptest::prelude::*;
use serde_json::Map;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::engine::testing::log_state;

fn job(id: u128, prompt: &str, max_tokens: Option<u32>, stop: &[&str]) -> Job {
    Job {
        v: 1,
        id: JobId::from_random(id),
        model: "simulated-echo".into(),
        created: 0,
        deadline: u64::MAX,
        request: GenerationRequest {
            n: 1,
            logprobs: None,
            messages: vec![Message::new(Role::User, prompt)],
            max_tokens,
            stop: stop.iter().map(|&s| s.to_owned()).collect(),
            sampling: SamplingOptions::default(),
            ..GenerationRequest::default()
        },
        seed: 7,
        background: None,
        account: None,
    }
}

fn engine() -> SimulatedEngine {
    SimulatedEngine::new("simulated-echo".into(), 4, 0.0, 0)
}

/// Submits a job, or has it refused.
fn submit(engine: &mut SimulatedEngine, job: Job) -> UnboundedReceiver<EventKind> {
    let (events, receiver) = unbounded_channel();
    match engine.preprocessor().prepare(job, Instant::now()) {
        Ok(prepared) => engine.submit(prepared, events),
        Err(error) => events.send(EventKind::Error(error.into())).unwrap(),
    }
    receiver
}

/// What was said so far.
fn drain(receiver: &mut UnboundedReceiver<EventKind>) -> Vec<EventKind> {
    std::iter::from_fn(|| receiver.try_recv().ok()).collect()
}

/// Everything a job says, in order, if it is alone.
fn answer(job: Job) -> Vec<EventKind> {
    let mut engine = engine();
    let mut receiver = submit(&mut engine, job);
    while engine.has_work() {
        engine.step().unwrap();
    }
    drain(&mut receiver)
}

fn text(kinds: &[EventKind]) -> String {
    let texts = kinds.iter().map(|kind| match kind {
        EventKind::Tokens { text, .. } => text.as_str(),
        _ => "",
    });
    texts.collect()
}

fn ending(kinds: &[EventKind]) -> (FinishReason, Usage) {
    match kinds {
        [.., EventKind::Finish { reason, .. }, EventKind::Done { usage, .. }] => (*reason, *usage),
        other => panic!("no proper end: {other:?}"),
    }
}

#[test]
fn a_job_is_accepted_says_its_words_and_ends() {
    let kinds = answer(job(1, "three words here", Some(4), &[]));
    assert!(
        matches!(kinds.first(), Some(EventKind::Accepted(Acceptance { prompt_tokens: 3, .. }))),
        "{kinds:?}"
    );
    assert_eq!(text(&kinds), "The quick ember glows");
    let usage = Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 4 };
    assert_eq!(ending(&kinds), (FinishReason::Length, usage));
}

#[test]
fn without_a_limit_it_stops_by_itself() {
    let (reason, usage) = ending(&answer(job(1, "hi", None, &[])));
    assert_eq!((reason, usage.completion_tokens), (FinishReason::Stop, DEFAULT_TOKENS));
}

#[test]
fn a_stop_string_across_words_ends_the_text_before_it() {
    let kinds = answer(job(1, "hi", Some(100), &["ember glow"]));
    assert_eq!(text(&kinds), "The quick ");
    assert_eq!(ending(&kinds).0, FinishReason::Stop);
}

fn word_id(word: &str) -> u32 {
    WORDS.iter().position(|known| *known == word).unwrap() as u32
}

#[test]
fn choices_take_turns_and_each_ends_by_itself() {
    let mut job = job(1, "hi", Some(4), &[" quick ember"]);
    job.request.n = 2;
    job.request.logprobs = Some(2);
    let kinds = answer(job);
    let of = |wanted: u32| {
        let wanted = move |kind: &&EventKind| match kind {
            EventKind::Tokens { choice, .. } | EventKind::Finish { choice, .. } => *choice == wanted,
            _ => false,
        };
        kinds.iter().filter(wanted).cloned().collect::<Vec<_>>()
    };
    assert_eq!(text(&of(0)), "The");
    assert_eq!(text(&of(1)), "");
    assert_eq!(ending(&kinds).1, Usage { prompt_tokens: 1, cached_tokens: 0, completion_tokens: 3 + 2 });
    assert_eq!(of(1).last(), Some(&EventKind::Finish { choice: 1, reason: FinishReason::Stop }));
    let EventKind::Tokens { choice: 1, position: 1, logprobs, .. } = &of(1)[1] else { panic!("{kinds:?}") };
    let token = |word: &str, logprob| TokenLogprob { id: word_id(word), bytes: word.into(), logprob };
    let (ember, the) = (token(" ember", 0.0), token("The", IMPOSSIBLE_LOGPROB));
    assert_eq!(logprobs[..], [TokenLogprobs { token: ember.clone(), top: vec![ember, the] }]);
    let turns = kinds.iter().filter_map(|kind| match kind {
        EventKind::Tokens { choice, .. } => Some(*choice),
        _ => None,
    });
    assert_eq!(turns.collect::<Vec<_>>(), [0, 1, 0, 1, 0]);
}

#[test]
fn what_does_not_fit_the_context_is_refused_before_anything_is_said() {
    for (prompt, max_tokens) in
        [("hi", Some(CONTEXT_LENGTH)), (&*"w ".repeat(40_000), None), ("hi", Some(u32::MAX))]
    {
        let kinds = answer(job(1, prompt, max_tokens, &[]));
        let [EventKind::Error(error)] = &kinds[..] else { panic!("{kinds:?}") };
        assert_eq!(error.code, ErrorCode::ContextLengthExceeded);
    }
}

#[test]
fn what_ends_an_answer_can_be_put_off() {
    let ending_of = |max_tokens, sampling| {
        let mut job = job(1, "two words", max_tokens, &[]);
        job.request.sampling = sampling;
        let (reason, usage) = ending(&answer(job));
        (reason, usage.completion_tokens)
    };
    let least = SamplingOptions { min_tokens: 100, ..SamplingOptions::default() };
    assert_eq!(ending_of(None, least.clone()), (FinishReason::Stop, 100));
    assert_eq!(ending_of(Some(120), least), (FinishReason::Length, 120));
    let endless = SamplingOptions { ignore_eos: true, ..SamplingOptions::default() };
    assert_eq!(ending_of(Some(3), endless.clone()), (FinishReason::Length, 3));
    assert_eq!(ending_of(None, endless), (FinishReason::Length, CONTEXT_LENGTH - 2));
}

#[test]
fn options_that_it_does_not_honour_are_refused() {
    let default = SamplingOptions::default;
    for (param, code, sampling) in [
        (
            "logit_bias",
            ErrorCode::UnsupportedParameter,
            SamplingOptions { logit_bias: vec![(1, 1.0)], ..default() },
        ),
        (
            "presence_penalty",
            ErrorCode::UnsupportedParameter,
            SamplingOptions { presence_penalty: 0.1, ..default() },
        ),
        (
            "frequency_penalty",
            ErrorCode::UnsupportedParameter,
            SamplingOptions { frequency_penalty: -0.1, ..default() },
        ),
        (
            "repetition_penalty",
            ErrorCode::UnsupportedParameter,
            SamplingOptions { repetition_penalty: 1.1, ..default() },
        ),
        (
            "stop_token_ids",
            ErrorCode::UnsupportedParameter,
            SamplingOptions { stop_token_ids: vec![1], ..default() },
        ),
        (
            "min_tokens",
            ErrorCode::ContextLengthExceeded,
            SamplingOptions { min_tokens: CONTEXT_LENGTH, ..default() },
        ),
    ] {
        let mut job = job(1, "hi", None, &[]);
        job.request.sampling = sampling;
        let kinds = answer(job);
        let [EventKind::Error(error)] = &kinds[..] else { panic!("{kinds:?}") };
        assert_eq!((error.code, error.param.as_deref()), (code, Some(param)));
    }
}

#[test]
fn what_would_need_a_model_is_refused() {
    let tool = Tool { name: "f".into(), description: None, parameters: Map::new(), strict: false };
    let constrained = GenerationRequest { constraint: Some(Constraint::JsonObject), ..Default::default() };
    let tools = GenerationRequest { tools: vec![tool], ..Default::default() };
    let told = GenerationRequest { return_token_ids: true, ..Default::default() };
    let scored = GenerationRequest { prompt_logprobs: Some(0), ..Default::default() };
    let named = GenerationRequest { logprob_token_ids: vec![1], ..Default::default() };
    let continued = GenerationRequest { continue_final_message: true, ..Default::default() };
    let sampling = SamplingOptions { bad_words: vec!["no".into()], ..SamplingOptions::default() };
    let avoiding = GenerationRequest { sampling, ..Default::default() };
    for (param, request) in [
        ("response_format", constrained),
        ("tools", tools),
        ("return_token_ids", told),
        ("prompt_logprobs", scored),
        ("logprob_token_ids", named),
        ("continue_final_message", continued),
        ("bad_words", avoiding),
    ] {
        let kinds = answer(Job { request, ..job(1, "hi", None, &[]) });
        let [EventKind::Error(error)] = &kinds[..] else { panic!("{kinds:?}") };
        assert_eq!((error.code, error.param.as_deref()), (ErrorCode::UnsupportedParameter, Some(param)));
    }
}

#[test]
fn an_echo_needs_no_tokens() {
    let prompt = Some(RawPrompt::Text("two words".to_owned()));
    let request = GenerationRequest { prompt, echo: true, max_tokens: Some(0), ..Default::default() };
    let kinds = answer(Job { request, ..job(1, "", None, &[]) });
    let [EventKind::Accepted(accepted), EventKind::Finish { reason, .. }, EventKind::Done { usage, .. }] =
        &kinds[..]
    else {
        panic!("{kinds:?}")
    };
    assert_eq!(accepted.prompt_text.as_deref(), Some("two words"));
    assert_eq!((*reason, usage.completion_tokens), (FinishReason::Length, 0));
}

#[test]
fn a_job_that_nobody_listens_to_is_dropped() {
    let mut engine = engine();
    drop(submit(&mut engine, job(1, "hi", Some(100), &[])));
    engine.step().unwrap();
    assert!(!engine.has_work());
}

#[test]
fn its_statistics_count_jobs_and_tokens() {
    let mut engine = engine();
    let _listening = [3, 5].map(|tokens| submit(&mut engine, job(tokens.into(), "hi", Some(tokens), &[])));
    assert_eq!((engine.stats().scheduler.running, engine.stats().generated_tokens), (2, 0));
    while engine.has_work() {
        engine.step().unwrap();
    }
    assert_eq!((engine.stats().scheduler.running, engine.stats().generated_tokens), (0, 8));
}

#[test]
fn a_token_is_written_when_it_is_due_and_the_next_one_pace_later() {
    let mut engine = SimulatedEngine::new("simulated-echo".into(), 1, 100.0, 0);
    let mut events = submit(&mut engine, job(1, "hi", Some(10), &[]));
    drain(&mut events);
    let due = engine.running[0].due;
    // A step may end before the token is due, and then writes nothing.
    while engine.running[0].usage().completion_tokens == 0 {
        assert_eq!(drain(&mut events), []);
        engine.step().unwrap();
    }
    assert!(Instant::now() >= due);
    assert_eq!(engine.running[0].due, due + Duration::from_millis(10));
    assert_eq!(drain(&mut events).len(), 1);
}

proptest! {
    #[test]
    fn company_changes_nothing(lengths in proptest::collection::vec(1_u32..40, 1..6)) {
        let mut together = engine();
        let jobs = (0..).zip(&lengths).map(|(id, &length)| job(id, "hi", Some(length), &[]));
        let mut receivers: Vec<_> = jobs.map(|job| submit(&mut together, job)).collect();
        while together.has_work() {
            together.step().unwrap();
        }
        for (length, receiver) in lengths.into_iter().zip(&mut receivers) {
            let alone = answer(job(1, "hi", Some(length), &[]));
            prop_assert_eq!(text(&alone), text(&drain(receiver)));
        }
    }
}

#[test]
fn whatever_is_written_another_worker_writes_the_rest() {
    for stop in [&[][..], &["quick ember g"][..], &["no such words"][..]] {
        let mut job = job(11, "two words", Some(9), stop);
        (job.request.n, job.request.logprobs) = (2, Some(1));
        let whole = answer(job.clone());
        let expected = log_state(&whole, 2).choices;
        for cut in 0..whole.len() {
            let known = &whole[..cut];
            let written = log_state(known, 2);
            let mut engine = engine();
            let (sender, mut receiver) = unbounded_channel();
            let prepared = engine.preprocessor().prepare(job.clone(), Instant::now()).unwrap();
            engine.submit(PreparedRequest { resumed: written.choices, ..prepared }, sender);
            while engine.has_work() {
                engine.step().unwrap();
            }
            let rest = drain(&mut receiver);
            let both = log_state(known.iter().chain(&rest), 2);
            assert_eq!(both.choices, expected, "{rest:?}");
            let (Some(EventKind::Done { usage, .. }), Some(EventKind::Done { usage: all, .. })) =
                (rest.last(), whole.last())
            else {
                panic!("no end: {rest:?}")
            };
            assert_eq!(usage, all);
        }
    }
}
