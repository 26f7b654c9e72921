use emberline_shared::job::{GenerationRequest, Message, Role};
use proptest::prelude::*;

use super::*;

fn job(id: u128, prompt: &str, max_tokens: Option<u32>, stop: &[&str]) -> Job {
    Job {
        v: 1,
        id: JobId::from_random(id),
        model: "simulated-echo".into(),
        created: 0,
        deadline: u64::MAX,
        request: GenerationRequest {
            messages: vec![Message { role: Role::User, content: prompt.into() }],
            max_tokens,
            temperature: 1.0,
            top_p: 1.0,
            stop: stop.iter().map(|&s| s.to_owned()).collect(),
        },
        seed: 7,
    }
}

fn engine() -> SimulatedEngine {
    SimulatedEngine::new("simulated-echo".into(), 4, 0.0, 0)
}

/// Everything a job says, in order.
fn run(engine: &mut SimulatedEngine, id: u128) -> Vec<EventKind> {
    let mut kinds = Vec::new();
    while engine.has_work() {
        kinds.extend(engine.step().into_iter().filter(|e| e.job == JobId::from_random(id)).map(|e| e.kind));
    }
    kinds
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
    let mut engine = engine();
    engine.submit(job(1, "three words here", Some(4), &[]), Instant::now());
    let kinds = run(&mut engine, 1);
    assert!(matches!(kinds.first(), Some(EventKind::Accepted { prompt_tokens: 3, .. })), "{kinds:?}");
    assert_eq!(text(&kinds), "The quick ember glows");
    let usage = Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 4 };
    assert_eq!(ending(&kinds), (FinishReason::Length, usage));
}

#[test]
fn without_a_limit_it_stops_by_itself() {
    let mut engine = engine();
    engine.submit(job(1, "hi", None, &[]), Instant::now());
    let (reason, usage) = ending(&run(&mut engine, 1));
    assert_eq!((reason, usage.completion_tokens), (FinishReason::Stop, DEFAULT_TOKENS));
}

#[test]
fn a_stop_string_across_words_ends_the_text_before_it() {
    let mut engine = engine();
    engine.submit(job(1, "hi", Some(100), &["ember glow"]), Instant::now());
    let kinds = run(&mut engine, 1);
    assert_eq!(text(&kinds), "The quick ");
    assert_eq!(ending(&kinds).0, FinishReason::Stop);
}

#[test]
fn what_does_not_fit_the_context_is_refused_before_anything_is_said() {
    for (prompt, max_tokens) in
        [("hi", Some(CONTEXT_LENGTH)), (&*"w ".repeat(40_000), None), ("hi", Some(u32::MAX))]
    {
        let mut engine = engine();
        engine.submit(job(1, prompt, max_tokens, &[]), Instant::now());
        let kinds = run(&mut engine, 1);
        let [EventKind::Error(error)] = &kinds[..] else { panic!("{kinds:?}") };
        assert_eq!(error.code, ErrorCode::ContextLengthExceeded);
    }
}

#[test]
fn the_pace_is_kept() {
    let mut engine = SimulatedEngine::new("simulated-echo".into(), 1, 100.0, 0);
    let started = Instant::now();
    engine.submit(job(1, "hi", Some(10), &[]), Instant::now());
    run(&mut engine, 1);
    assert!(started.elapsed() >= Duration::from_millis(100));
}

proptest! {
    #[test]
    fn company_changes_nothing(lengths in proptest::collection::vec(1_u32..40, 1..6)) {
        let mut together = engine();
        for (id, &length) in (0..).zip(&lengths) {
            together.submit(job(id, "hi", Some(length), &[]), Instant::now());
        }
        let mut texts = vec![String::new(); lengths.len()];
        while together.has_work() {
            for event in together.step() {
                let id = (0..).position(|id| JobId::from_random(id) == event.job).unwrap();
                texts[id].push_str(&text(&[event.kind]));
            }
        }
        for (length, seen) in lengths.into_iter().zip(texts) {
            let mut alone = engine();
            alone.submit(job(1, "hi", Some(length), &[]), Instant::now());
            prop_assert_eq!(text(&run(&mut alone, 1)), seen);
        }
    }
}
