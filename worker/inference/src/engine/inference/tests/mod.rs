use std::path::Path;

use emberline_kernels::KvType;
use emberline_protocol::error::ErrorCode;
use emberline_protocol::event::{ErrorEvent, FinishReason, IMPOSSIBLE, Timings, TokenLogprobs};
use emberline_protocol::job::{GenerationRequest, Job, Message, Role, SamplingOptions};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::device::ComputeDevice;
use crate::network::testing::{self, CONTEXT};

/// The tiny model's end token.
const END: u32 = 257;
/// Far enough in the future.
const NEVER: u64 = u64::MAX;

fn options(path: &Path) -> LoadOptions {
    LoadOptions { slots: 1, ..LoadOptions::new(path, "tiny", ComputeDevice::cpu()) }
}

/// The tiny model, with whatever else `change` wants.
fn engine_with(change: impl FnOnce(&mut LoadOptions)) -> Runs {
    let (folder, file) = testing::builder(&testing::tensors()).open();
    let mut options = options(file.path());
    change(&mut options);
    Runs { engine: load(&options).unwrap(), receivers: HashMap::new(), logs: Logs::new(), _folder: folder }
}

fn engine(slots: usize) -> Runs {
    engine_with(|options| options.slots = slots)
}

fn job(number: u8) -> Job {
    let content = format!("number {number}");
    Job {
        v: emberline_protocol::PROTOCOL_VERSION,
        id: JobId::from_random(u128::from(number)),
        model: "tiny".to_owned(),
        created: 0,
        deadline: NEVER,
        request: GenerationRequest {
            n: 1,
            logprobs: None,
            messages: vec![Message::new(Role::User, content)],
            max_tokens: Some(12),
            stop: Vec::new(),
            sampling: SamplingOptions::default(),
            ..GenerationRequest::default()
        },
        seed: u64::from(number),
        background: None,
        account: None,
    }
}

type Logs = HashMap<JobId, Vec<EventKind>>;

/// An engine driven step by step, and what its jobs have said so far.
struct Runs {
    engine: BurnEngine,
    receivers: HashMap<JobId, UnboundedReceiver<EventKind>>,
    logs: Logs,
    _folder: TempDir,
}

impl Runs {
    fn submit(&mut self, job: Job) {
        let (events, receiver) = unbounded_channel();
        self.receivers.insert(job.id.clone(), receiver);
        match self.engine.frontend().prepare(job, Instant::now()) {
            Ok(prepared) => self.engine.submit(prepared, events),
            Err(error) => events.send(EventKind::Error(error.into())).unwrap(),
        }
    }

    fn step(&mut self) {
        self.engine.step().unwrap();
        self.read();
    }

    fn read(&mut self) {
        self.engine.settle().unwrap();
        for (job, receiver) in &mut self.receivers {
            let log = self.logs.entry(job.clone()).or_default();
            log.extend(std::iter::from_fn(|| receiver.try_recv().ok()));
        }
    }

    fn cancel(&mut self, number: u8) -> Option<Usage> {
        self.engine.cancel(&job(number).id)
    }

    fn log(&self, number: u8) -> &[EventKind] {
        &self.logs[&job(number).id]
    }

    /// Steps until all is done.
    fn finish(&mut self) {
        while self.engine.has_work() {
            self.step();
        }
        self.read();
        assert_eq!(self.engine.cache_usage().0, 0, "blocks are lost");
        assert!(self.engine.requests.is_empty() && self.engine.numbers.is_empty());
    }
}

fn run_all(runs: &mut Runs, jobs: impl IntoIterator<Item = Job>) -> Logs {
    jobs.into_iter().for_each(|job| runs.submit(job));
    runs.finish();
    runs.receivers.clear();
    std::mem::take(&mut runs.logs)
}

fn run(runs: &mut Runs, job: Job) -> Vec<EventKind> {
    let id = job.id.clone();
    run_all(runs, [job]).remove(&id).unwrap()
}

/// A log without what depends on clock and cache.
fn content(log: &[EventKind]) -> Vec<EventKind> {
    let timeless = |kind: &EventKind| match kind.clone() {
        EventKind::Done { usage, .. } => EventKind::Done {
            usage: Usage { cached_tokens: 0, ..usage },
            timings: Timings::default(),
            at: None,
        },
        EventKind::Accepted(acceptance) => EventKind::Accepted(Acceptance { cached_tokens: 0, ..acceptance }),
        other => other,
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
    let mut engine = engine(2);
    let log = run(&mut engine, job(1));
    let EventKind::Accepted(Acceptance { prompt_tokens, cached_tokens: 0, fingerprint, .. }) = &log[0] else {
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
    let mut engine = engine(3);
    let together = run_all(&mut engine, (0..7).map(job));
    assert_eq!(together.len(), 7);
    for number in 0..7 {
        let alone = run(&mut engine, job(number));
        assert_eq!(content(&together[&job(number).id]), content(&alone));
    }
}

#[test]
fn the_seed_decides() {
    let mut engine = engine(1);
    let first = ids(&run(&mut engine, job(1)));
    assert_eq!(first, ids(&run(&mut engine, job(1))));
    assert_ne!(first, ids(&run(&mut engine, Job { seed: 99, ..job(1) })));
}

#[test]
fn a_job_that_arrives_while_others_run_is_answered_at_once() {
    let mut runs = engine(1);
    runs.submit(job(1));
    runs.step();
    runs.submit(job(2));
    runs.step();
    assert!(matches!(runs.log(2), [EventKind::Accepted(_)]), "accepted, without a slot");
    assert!(ids(runs.log(1)).len() > 1);
}

#[test]
fn cancelling_frees_the_slot() {
    let mut runs = engine(1);
    (1..=3).for_each(|number| runs.submit(job(number)));
    for _ in 0..3 {
        runs.step();
    }
    let usage = runs.cancel(1).unwrap();
    assert_eq!(usage.completion_tokens, 3);
    assert_eq!(runs.cancel(1), None);
    assert_eq!(runs.cancel(2).unwrap().completion_tokens, 0, "it was waiting");
    let before = runs.log(1).len();
    runs.finish();
    assert_eq!(runs.log(1).len(), before);
    let third = content(runs.log(3));
    runs.logs.clear();
    assert_eq!(third, content(&run(&mut runs, job(3))));
}

#[test]
fn a_job_can_be_cancelled_before_any_step() {
    let mut runs = engine(1);
    runs.submit(job(1));
    assert_eq!(runs.cancel(1).unwrap().completion_tokens, 0);
    runs.finish();
    assert!(runs.receivers.get_mut(&job(1).id).unwrap().is_closed());
}

#[test]
fn a_job_that_nobody_listens_to_is_dropped() {
    let mut runs = engine(1);
    runs.submit(job(1));
    runs.step();
    runs.receivers.clear();
    runs.step();
    assert!(!runs.engine.has_work());
    assert_eq!(runs.cancel(1), None);
}

#[test]
fn what_does_not_fit_the_context_is_refused_with_the_counts() {
    let mut engine = engine(1);
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
    let mut engine = engine(1);
    let mut unlimited = job(4);
    unlimited.request.max_tokens = None;
    let (reason, usage) = ending(&run(&mut engine, unlimited));
    let total = usage.prompt_tokens + usage.completion_tokens;
    match reason {
        FinishReason::Length => assert_eq!(total as usize, CONTEXT),
        FinishReason::Stop => assert!((total as usize) < CONTEXT),
        FinishReason::Cancelled => panic!("nobody cancelled it"),
    }
}

#[test]
fn a_stop_string_ends_the_answer_and_is_not_sent() {
    let mut engine = engine(1);
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
    let mut engine = engine(1);
    // Among many seeds, some soon draw the end token.
    let ended = (0..=255).find_map(|number| {
        let log = run(&mut engine, job(number));
        (ending(&log).0 == FinishReason::Stop).then_some(log)
    });
    let log = ended.expect("no seed draws the end token");
    assert_eq!(ids(&log).len() + 1, ending(&log).1.completion_tokens as usize);
}

/// The first of many seeds whose answer ends by itself before its last token, and that answer.
fn ended_early(engine: &mut Runs) -> (Job, Vec<EventKind>) {
    let ended = (0..=255).find_map(|number| {
        let log = run(engine, job(number));
        let (reason, usage) = ending(&log);
        (reason == FinishReason::Stop && usage.completion_tokens < 8).then_some((job(number), log))
    });
    ended.expect("no seed draws the end token early")
}

#[test]
fn the_least_tokens_come_before_the_end() {
    let mut engine = engine(1);
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
    let mut engine = engine(1);
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
    let mut engine = engine(1);
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
    let mut engine = engine(1);
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
    let mut engine = engine(1);
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
    let mut runs = engine(1);
    let log = run(&mut runs, Job { deadline: 1, ..job(1) });
    let [EventKind::Accepted(_), EventKind::Error(error)] = &log[..] else { panic!("{log:?}") };
    assert_eq!((error.status, error.code), (504, ErrorCode::Timeout));
    runs.submit(job(2));
    runs.step();
    runs.engine.requests.values_mut().for_each(|request| request.deadline = 1);
    runs.step();
    assert!(matches!(runs.log(2).last(), Some(EventKind::Error(e)) if e.code == ErrorCode::Timeout));
    assert!(!runs.engine.has_work());
    runs.finish();
}

#[test]
fn the_fingerprint_is_that_of_the_file() {
    let (folder, file) = testing::builder(&testing::tensors()).open();
    let fingerprint = load::fingerprint;
    let first = fingerprint(file.path(), "tiny").unwrap();
    assert_eq!(first, fingerprint(file.path(), "tiny").unwrap());
    let mut tensors = testing::tensors();
    tensors[1].2[0] += 1.0;
    let (_other_folder, other) = testing::builder(&tensors).open();
    assert_ne!(first, fingerprint(other.path(), "tiny").unwrap());
    drop(folder);
    assert!(fingerprint(file.path(), "tiny").is_err());
}

/// What a choice said: its tokens, its text, and why it ended.
fn choice(log: &[EventKind], number: u32) -> (Vec<u32>, String, FinishReason) {
    let of = |kind: &&EventKind| match kind {
        EventKind::Tokens { choice, .. } => *choice == number,
        _ => false,
    };
    let own: Vec<EventKind> = log.iter().filter(of).cloned().collect();
    let reason = log.iter().find_map(|kind| match kind {
        EventKind::Finish { choice, reason } if *choice == number => Some(*reason),
        _ => None,
    });
    (ids(&own), text(&own), reason.unwrap())
}

fn usage(log: &[EventKind]) -> Usage {
    let Some(EventKind::Done { usage, .. }) = log.last() else { panic!("no end: {log:?}") };
    *usage
}

#[test]
fn choices_share_a_prompt_and_say_what_each_says_alone() {
    let mut runs = engine(4);
    let mut three = job(7);
    three.request.n = 3;
    let log = run(&mut runs, three.clone());
    let rows = runs.engine.counts().rows;
    let texts: Vec<_> = (0..3).map(|number| choice(&log, number)).collect();
    assert!(texts[0].0 != texts[1].0 && texts[1].0 != texts[2].0);
    let tokens = usage(&log);
    assert_eq!(u64::from(tokens.prompt_tokens + tokens.completion_tokens - 3), rows, "the prompt once");
    assert_eq!(tokens.cached_tokens, 0);
    // The first is what the only one would be; all are the same with fewer slots than choices.
    assert_eq!(choice(&run(&mut runs, job(7)), 0), texts[0]);
    let mut narrow = engine(1);
    let log = run(&mut narrow, three);
    assert_eq!((0..3).map(|number| choice(&log, number)).collect::<Vec<_>>(), texts);
}

#[test]
fn each_choice_ends_by_itself() {
    let mut runs = engine(4);
    let mut many = job(5);
    many.request.n = 4;
    let whole = run(&mut runs, many.clone());
    let first = choice(&whole, 0).1;
    let stop: String = first.chars().skip(2).take(2).collect();
    many.request.stop = vec![stop.clone()];
    let log = run(&mut runs, many);
    let mut tokens = 0;
    for number in 0..4 {
        let (ids, text, reason) = choice(&log, number);
        let before = choice(&whole, number);
        if before.1.contains(&stop) {
            assert_eq!((text.as_str(), reason), (before.1.split(&stop).next().unwrap(), FinishReason::Stop));
            tokens += ids.len();
        } else {
            assert_eq!((&ids, &text, reason), (&before.0, &before.1, before.2));
            tokens += ids.len() + usize::from(reason == FinishReason::Stop);
        }
    }
    assert!(first.contains(&stop));
    assert_eq!(usage(&log).completion_tokens as usize, tokens, "what came after a stop does not count");
}

#[test]
fn a_known_beginning_is_reported() {
    let mut runs = engine(1);
    let mut first = job(1);
    first.request.messages[0].content = "x".repeat(40);
    first.request.max_tokens = Some(4);
    let before = run(&mut runs, first.clone());
    let mut second = first.clone();
    second.id = JobId::from_random(99);
    let after = run(&mut runs, second);
    let EventKind::Accepted(Acceptance { prompt_tokens, cached_tokens, .. }) = after[0] else {
        panic!("{after:?}")
    };
    assert_eq!(cached_tokens, (prompt_tokens - 1) / 16 * 16);
    assert!(cached_tokens >= 32);
    assert_eq!(usage(&after).cached_tokens, cached_tokens);
    assert_eq!(usage(&before).cached_tokens, 0);
    assert_eq!(content(&before), content(&after));
}

#[test]
fn a_cache_that_is_too_small_delays_jobs_and_changes_nothing() {
    let mut roomy = engine(6);
    let jobs: Vec<Job> = (0..6)
        .map(|number| {
            let mut job = job(number);
            job.request.max_tokens = Some(60);
            job.request.n = 1 + u32::from(number % 3 == 0);
            job.request.sampling.ignore_eos = true;
            job
        })
        .collect();
    let expected = run_all(&mut roomy, jobs.clone());
    assert_eq!(roomy.engine.counts().preemptions, 0);
    let mut tight = engine_with(|options| {
        options.slots = 6;
        options.cache = CacheSize::Blocks(7);
        options.prefill_budget = Some(5);
    });
    let logs = run_all(&mut tight, jobs);
    assert!(tight.engine.counts().preemptions > 0);
    for (job, log) in logs {
        let wanted = &expected[&job];
        for number in 0..wanted.iter().filter(|kind| matches!(kind, EventKind::Finish { .. })).count() {
            assert_eq!(choice(&log, number as u32), choice(wanted, number as u32));
        }
        assert_eq!(usage(&log).completion_tokens, usage(wanted).completion_tokens);
    }
}

#[test]
fn a_context_that_the_cache_can_not_hold_is_not_promised() {
    let mut runs = engine_with(|options| options.cache = CacheSize::Blocks(2));
    assert_eq!(runs.engine.models()[0].context_length, 32);
    let mut long = job(1);
    long.request.max_tokens = Some(30);
    assert_eq!(error(&run(&mut runs, long)).code, ErrorCode::ContextLengthExceeded);
    let per_block = runs.engine.network.block_bytes(KvType::F16);
    let runs = engine_with(|options| options.cache = CacheSize::Bytes(3 * per_block + 1));
    assert_eq!(runs.engine.cache_usage(), (0, 3));
    let runs = engine_with(|options| options.context_length = Some(50));
    assert_eq!((runs.engine.models()[0].context_length, runs.engine.cache_usage().1), (50, 4));
}

#[test]
fn log_probabilities_come_with_every_token() {
    let mut runs = engine_with(|options| {
        options.slots = 2;
        // What is rounded in the cache is not the reference's.
        options.cache_dtype = CacheDtype::F32;
    });
    let mut scored = job(3);
    scored.request.logprobs = Some(3);
    scored.request.n = 2;
    // They are those of the network: no option changes them.
    scored.request.sampling.temperature = 1.7;
    scored.request.sampling.logit_bias = vec![(7, -5.0)];
    let log = run(&mut runs, scored.clone());
    for kind in &log {
        let EventKind::Tokens { ids, logprobs, .. } = kind else { continue };
        assert_eq!(ids.len(), logprobs.len());
        for scores in logprobs {
            assert_eq!(scores.top.len(), 3);
            assert!(scores.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
            let likeliest = scores.top[0].logprob;
            assert!((IMPOSSIBLE..=likeliest).contains(&scores.token.logprob) && likeliest <= 0.0);
        }
    }
    let first = |log: &[EventKind]| {
        log.iter().find_map(|kind| match kind {
            EventKind::Tokens { ids, logprobs, .. } => Some((ids[0], logprobs[0].clone())),
            _ => None,
        })
    };
    let (id, scores) = first(&log).unwrap();
    // The tiny model's tokens are bytes.
    assert_eq!(scores.token.bytes, [id as u8]);
    let prompt = runs.engine.prompts.prepare(scored.clone(), Instant::now()).unwrap().prompt;
    let logits = testing::reference(&testing::tensors(), &prompt);
    let exact = logits[id as usize] - logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
    assert!((f64::from(scores.token.logprob) - exact).abs() < 1e-3);
    // None but the token's own.
    scored.request.logprobs = Some(0);
    let (_, scores) = first(&run(&mut runs, scored)).unwrap();
    assert!(scores.top.is_empty());
}

#[test]
fn what_the_device_picks_is_what_the_host_picks() {
    // Large differences between logits, so that rounding decides nothing.
    let jobs = || {
        (0..24_u8).map(|number| {
            let mut job = job(number);
            job.request.sampling = SamplingOptions {
                temperature: [0.0, 0.3, 1.0, 1.6][usize::from(number % 4)],
                top_k: [0, 5, 1][usize::from(number % 3)],
                top_p: [1.0, 0.8][usize::from(number % 2)],
                min_p: [0.0, 0.0, 0.1, 0.0, 0.2][usize::from(number % 5)],
                // Some are picked on the host for all that.
                presence_penalty: if number % 7 == 0 { 0.5 } else { 0.0 },
                min_tokens: u32::from(number % 6) / 2,
                ..SamplingOptions::default()
            };
            job.request.logprobs = (number % 8 == 7).then_some(1);
            job.request.n = 1 + u32::from(number % 4 == 1);
            job
        })
    };
    let mut runs = engine(8);
    let on_host = run_all(&mut runs, jobs());
    runs.engine.picker.on_device = true;
    let on_device = run_all(&mut runs, jobs());
    for (job, log) in on_host {
        assert_eq!(content(&log), content(&on_device[&job]));
    }
}

mod constraint;
mod prompt;
mod resume;
