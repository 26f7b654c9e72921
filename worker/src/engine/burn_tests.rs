use std::collections::HashMap;

use emberline_shared::event::{ErrorEvent, FinishReason};
use emberline_shared::job::{GenerationRequest, Message, Role, SamplingOptions};
use tempfile::TempDir;

use super::*;
use crate::model::testing::{self, CONTEXT};

/// The tiny model's end token.
const END: u32 = 257;
/// Far enough in the future.
const NEVER: u64 = u64::MAX;

fn engine(slots: usize) -> (TempDir, BurnEngine) {
    let (folder, file) = testing::builder(&testing::tensors()).open();
    let options = LoadOptions {
        path: file.path().to_owned(),
        name: "tiny".to_owned(),
        backend: Backend::Cpu,
        adapter: None,
        slots,
    };
    (folder, load(&options).unwrap())
}

fn job(number: u8) -> Job {
    let content = format!("number {number}");
    Job {
        v: emberline_shared::PROTOCOL_VERSION,
        id: JobId::from_random(u128::from(number)),
        model: "tiny".to_owned(),
        created: 0,
        deadline: NEVER,
        request: GenerationRequest {
            n: 1,
            logprobs: None,
            messages: vec![Message { role: Role::User, content }],
            max_tokens: Some(12),
            stop: Vec::new(),
            sampling: SamplingOptions::default(),
        },
        seed: u64::from(number),
    }
}

type Logs = HashMap<JobId, Vec<EventKind>>;

fn step_into(engine: &mut BurnEngine, logs: &mut Logs) {
    for event in engine.step() {
        logs.entry(event.job).or_default().push(event.kind);
    }
}

fn run_all(engine: &mut BurnEngine, jobs: impl IntoIterator<Item = Job>) -> Logs {
    let mut logs = Logs::new();
    jobs.into_iter().for_each(|job| engine.submit(job, Instant::now()));
    while engine.has_work() {
        step_into(engine, &mut logs);
    }
    logs
}

fn run(engine: &mut BurnEngine, job: Job) -> Vec<EventKind> {
    let id = job.id.clone();
    run_all(engine, [job]).remove(&id).unwrap()
}

/// A log without what depends on the clock.
fn content(log: &[EventKind]) -> Vec<EventKind> {
    let timeless = |kind: &EventKind| match kind {
        EventKind::Done { usage, .. } => EventKind::Done { usage: *usage, timings: Default::default() },
        other => other.clone(),
    };
    log.iter().map(timeless).collect()
}

fn text(log: &[EventKind]) -> String {
    log.iter()
        .filter_map(|kind| if let EventKind::Tokens { text, .. } = kind { Some(text.as_str()) } else { None })
        .collect()
}

/// Sent tokens, after checking that each event goes on where the one before ended.
fn ids(log: &[EventKind]) -> Vec<u32> {
    let mut all = Vec::new();
    for kind in log {
        if let EventKind::Tokens { position, ids, .. } = kind {
            assert_eq!(*position as usize, all.len());
            all.extend(ids);
        }
    }
    all
}

fn ending(log: &[EventKind]) -> (FinishReason, Usage) {
    let [.., EventKind::Finish { choice: 0, reason }, EventKind::Done { usage, .. }] = log else {
        panic!("no proper end: {log:?}")
    };
    (*reason, *usage)
}

fn error(log: &[EventKind]) -> &ErrorEvent {
    let [EventKind::Error(error)] = log else { panic!("not one error: {log:?}") };
    error
}

#[test]
fn a_job_is_accepted_generates_and_ends() {
    let (_folder, mut engine) = engine(2);
    let log = run(&mut engine, job(1));
    let EventKind::Accepted { prompt_tokens, cached_tokens: 0, fingerprint } = &log[0] else {
        panic!("{log:?}")
    };
    assert!(fingerprint.starts_with(concat!("emberline-", env!("CARGO_PKG_VERSION"), "-")), "{fingerprint}");
    let (reason, usage) = ending(&log);
    assert_eq!((reason, usage.completion_tokens), (FinishReason::Length, 12));
    assert_eq!(usage.prompt_tokens, *prompt_tokens);
    assert_eq!(ids(&log).len(), 12);
}

#[test]
fn interleaved_jobs_equal_their_solo_runs() {
    let (_folder, mut engine) = engine(3);
    let together = run_all(&mut engine, (0..7).map(job));
    assert_eq!(together.len(), 7);
    for number in 0..7 {
        let alone = run(&mut engine, job(number));
        assert_eq!(content(&together[&job(number).id]), content(&alone));
    }
}

#[test]
fn the_seed_decides() {
    let (_folder, mut engine) = engine(1);
    let first = ids(&run(&mut engine, job(1)));
    assert_eq!(first, ids(&run(&mut engine, job(1))));
    assert_ne!(first, ids(&run(&mut engine, Job { seed: 99, ..job(1) })));
}

#[test]
fn a_job_that_arrives_while_others_run_is_answered_at_the_next_step() {
    let (_folder, mut engine) = engine(1);
    let mut logs = Logs::new();
    engine.submit(job(1), Instant::now());
    step_into(&mut engine, &mut logs);
    engine.submit(job(2), Instant::now());
    step_into(&mut engine, &mut logs);
    assert!(matches!(logs[&job(2).id][..], [EventKind::Accepted { .. }]), "accepted, without a slot");
    assert!(ids(&logs[&job(1).id]).len() > 1);
}

#[test]
fn cancelling_frees_the_slot() {
    let (_folder, mut engine) = engine(1);
    let mut logs = Logs::new();
    (1..=3).for_each(|number| engine.submit(job(number), Instant::now()));
    for _ in 0..3 {
        step_into(&mut engine, &mut logs);
    }
    let usage = engine.cancel(&job(1).id).unwrap();
    assert_eq!(usage.completion_tokens, 3);
    assert_eq!(engine.cancel(&job(1).id), None);
    assert_eq!(engine.cancel(&job(2).id).unwrap().completion_tokens, 0, "it was waiting");
    let before = logs[&job(1).id].len();
    while engine.has_work() {
        step_into(&mut engine, &mut logs);
    }
    assert_eq!(logs[&job(1).id].len(), before);
    assert_eq!(content(&logs[&job(3).id]), content(&run(&mut engine, job(3))));
}

#[test]
fn a_job_can_be_cancelled_before_any_step() {
    let (_folder, mut engine) = engine(1);
    engine.submit(job(1), Instant::now());
    assert_eq!(engine.cancel(&job(1).id), Some(Usage::default()));
    assert!(!engine.has_work());
}

#[test]
fn what_does_not_fit_the_context_is_refused_with_the_counts() {
    let (_folder, mut engine) = engine(1);
    let mut long = job(1);
    long.request.messages[0].content = "x".repeat(CONTEXT);
    let mut greedy = job(2);
    greedy.request.max_tokens = Some(CONTEXT as u32);
    for job in [long.clone(), greedy] {
        let log = run(&mut engine, job);
        let error = error(&log);
        assert_eq!((error.status, error.code), (400, ErrorCode::ContextLengthExceeded));
        assert_eq!(error.param.as_deref(), Some("messages"));
        assert!(error.message.contains("96 tokens"), "{}", error.message);
    }
    long.request.max_tokens = None;
    assert_eq!(error(&run(&mut engine, long)).code, ErrorCode::ContextLengthExceeded);
    // So long that its tokens are not even counted.
    let mut huge = job(1);
    huge.request.messages[0].content = "x".repeat(1 << 20);
    let message = error(&run(&mut engine, huge)).message.clone();
    assert!(message.contains("at least") && message.contains("96 tokens"), "{message}");
}

#[test]
fn without_a_limit_the_answer_may_fill_the_context() {
    let (_folder, mut engine) = engine(1);
    let mut unlimited = job(4);
    unlimited.request.max_tokens = None;
    let (reason, usage) = ending(&run(&mut engine, unlimited));
    let total = usage.prompt_tokens + usage.completion_tokens;
    match reason {
        FinishReason::Length => assert_eq!(total as usize, CONTEXT),
        FinishReason::Stop => assert!((total as usize) < CONTEXT),
    }
}

#[test]
fn a_stop_string_ends_the_answer_and_is_not_sent() {
    let (_folder, mut engine) = engine(1);
    let whole = text(&run(&mut engine, job(5)));
    let stop: String = whole.chars().skip(3).take(2).collect();
    let mut stopped = job(5);
    stopped.request.stop = vec![stop.clone()];
    let log = run(&mut engine, stopped);
    let (reason, usage) = ending(&log);
    assert_eq!(reason, FinishReason::Stop);
    assert!(usage.completion_tokens < 12);
    assert_eq!(text(&log), whole.split(&stop).next().unwrap());
    assert_eq!(ids(&log).len(), usage.completion_tokens as usize);
}

#[test]
fn the_end_token_counts_but_is_not_sent() {
    let (_folder, mut engine) = engine(1);
    // Among many seeds, some soon draw the end token.
    let ended = (0..=255).find_map(|number| {
        let log = run(&mut engine, job(number));
        (ending(&log).0 == FinishReason::Stop).then_some(log)
    });
    let log = ended.expect("no seed draws the end token");
    assert_eq!(ids(&log).len() + 1, ending(&log).1.completion_tokens as usize);
}

/// The first of many seeds whose answer ends by itself before its last token, and that answer.
fn ended_early(engine: &mut BurnEngine) -> (Job, Vec<EventKind>) {
    let ended = (0..=255).find_map(|number| {
        let log = run(engine, job(number));
        let (reason, usage) = ending(&log);
        (reason == FinishReason::Stop && usage.completion_tokens < 8).then_some((job(number), log))
    });
    ended.expect("no seed draws the end token early")
}

#[test]
fn the_least_tokens_come_before_the_end() {
    let (_folder, mut engine) = engine(1);
    let (mut job, early) = ended_early(&mut engine);
    let before = ids(&early);
    job.request.sampling.min_tokens = before.len() as u32;
    assert_eq!(content(&run(&mut engine, job.clone())), content(&early), "just as many are enough");
    job.request.sampling.min_tokens += 1;
    let later = run(&mut engine, job.clone());
    assert_eq!(ids(&later)[..before.len()], before);
    assert!(ids(&later).len() > before.len());
    job.request.sampling.min_tokens = 12;
    assert_eq!(ids(&run(&mut engine, job)).len(), 12);
}

#[test]
fn an_ignored_end_token_is_a_token_without_text() {
    let (_folder, mut engine) = engine(1);
    let (mut job, early) = ended_early(&mut engine);
    job.request.sampling.ignore_eos = true;
    let log = run(&mut engine, job);
    let (reason, usage) = ending(&log);
    assert_eq!((reason, usage.completion_tokens), (FinishReason::Length, 12));
    let before = ids(&early);
    assert_eq!(ids(&log)[..before.len()], before);
    assert_eq!(ids(&log)[before.len()], END);
    assert!(text(&log).starts_with(&text(&early)) && !text(&log).contains("<|im_end|>"));
}

#[test]
fn a_stop_token_ends_the_answer_and_is_not_sent() {
    let (_folder, mut engine) = engine(1);
    let whole = ids(&run(&mut engine, job(5)));
    let stop = whole[4];
    let mut stopped = job(5);
    stopped.request.sampling.stop_token_ids = vec![END, stop];
    stopped.request.sampling.ignore_eos = true;
    let log = run(&mut engine, stopped.clone());
    let before: Vec<u32> = whole.iter().copied().take_while(|&id| id != stop).collect();
    assert_eq!(ids(&log), before);
    let (reason, usage) = ending(&log);
    assert_eq!((reason, usage.completion_tokens as usize), (FinishReason::Stop, before.len() + 1));
    stopped.request.sampling.min_tokens = 12;
    let log = run(&mut engine, stopped);
    assert_eq!(ending(&log).0, FinishReason::Length);
    assert!(!ids(&log).contains(&stop) && !ids(&log).contains(&END));
}

#[test]
fn a_repetition_penalty_knows_the_prompt() {
    let (_folder, mut engine) = engine(1);
    let mut weakened = job(6);
    weakened.request.messages[0].content = "zzzz".to_owned();
    weakened.request.sampling.logit_bias = vec![(u32::from(b'z'), 20.0)];
    weakened.request.max_tokens = Some(1);
    assert_eq!(ids(&run(&mut engine, weakened.clone())), [u32::from(b'z')]);
    weakened.request.sampling.repetition_penalty = 1e6;
    assert_ne!(ids(&run(&mut engine, weakened)), [u32::from(b'z')]);
}

#[test]
fn options_that_the_model_can_not_honour_are_refused() {
    let (_folder, mut engine) = engine(1);
    let vocabulary = testing::VOCABULARY as u32;
    let mut good = job(1);
    good.request.sampling.logit_bias = vec![(0, 1.0), (vocabulary - 1, 1.0)];
    good.request.sampling.stop_token_ids = vec![vocabulary - 1];
    ending(&run(&mut engine, good));

    let mut biased = job(1);
    biased.request.sampling.logit_bias = vec![(0, 1.0), (vocabulary, 1.0)];
    let mut stopped = job(1);
    stopped.request.sampling.stop_token_ids = vec![0, u32::MAX];
    let mut long = job(1);
    long.request.max_tokens = None;
    long.request.sampling.min_tokens = CONTEXT as u32;
    for (job, code, param) in [
        (biased, ErrorCode::InvalidValue, "logit_bias.258"),
        (stopped, ErrorCode::InvalidValue, "stop_token_ids[1]"),
        (long, ErrorCode::ContextLengthExceeded, "min_tokens"),
    ] {
        let log = run(&mut engine, job);
        let error = error(&log);
        assert_eq!((error.status, error.code, error.param.as_deref()), (400, code, Some(param)));
    }
}

#[test]
fn a_job_past_its_deadline_is_given_up() {
    let (_folder, mut engine) = engine(1);
    let log = run(&mut engine, Job { deadline: 1, ..job(1) });
    assert_eq!((error(&log).status, error(&log).code), (504, ErrorCode::Timeout));
    engine.submit(job(2), Instant::now());
    engine.step();
    engine.running[0].deadline = 1;
    let events = engine.step();
    assert!(
        matches!(&events[..], [EngineEvent { kind: EventKind::Error(e), .. }] if e.code == ErrorCode::Timeout)
    );
    assert!(!engine.has_work());
}

#[test]
fn the_fingerprint_is_that_of_the_file() {
    let (folder, file) = testing::builder(&testing::tensors()).open();
    let first = fingerprint(file.path(), "tiny").unwrap();
    assert_eq!(first, fingerprint(file.path(), "tiny").unwrap());
    let mut tensors = testing::tensors();
    tensors[1].2[0] += 1.0;
    let (_other_folder, other) = testing::builder(&tensors).open();
    assert_ne!(first, fingerprint(other.path(), "tiny").unwrap());
    drop(folder);
    assert!(fingerprint(file.path(), "tiny").is_err());
}
