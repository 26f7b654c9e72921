//! Drafts change how many steps an answer takes, and nothing of the answer.

use std::collections::BTreeMap;

use emberline_kernels::BLOCK_SIZE;
use emberline_protocol::job::{Constraint, Tool, ToolChoice};
use serde_json::{Value, json};

use super::*;
use crate::scheduler::DraftRequest;
use crate::speculation::{PromptLookup, Speculation};

const REQUESTS: u8 = 200;
/// Tokens of the longest answers.
const MOST_TOKENS: u32 = 120;

fn engine(change: impl FnOnce(&mut LoadOptions)) -> Runs {
    // Room for prompts that describe functions.
    let tensors = testing::tensors();
    let (folder, file) = testing::builder_with(&tensors, &[("llama.context_length", 2048)]).open();
    let mut options = LoadOptions {
        slots: Some(16),
        // Nothing is forgotten, so that as much is computed however the steps fall.
        cache: CacheSize::Blocks(8192),
        speculation: Speculation::PromptLookup,
        ..options(file.path())
    };
    change(&mut options);
    Runs { engine: load(&options).unwrap(), receivers: HashMap::new(), logs: Logs::new(), _folder: folder }
}

fn object() -> Value {
    json!({
        "type": "object",
        "properties": { "a": { "enum": ["x", "yy"] }, "b": { "type": "integer", "minimum": 0, "maximum": 99 } },
        "required": ["a", "b"],
        "additionalProperties": false,
    })
}

/// One of 200 requests: every kind of sampling, constraint and end, and some whose answers repeat themselves.
fn request(number: u8) -> Job {
    let mut job = job(number);
    let words = ["one two three four ", "aaaa bbbb aaaa bbbb ", "x = x + 1; y = y + 1; "];
    job.request.messages[0].content = words[usize::from(number) % words.len()].repeat(3);
    job.request.max_tokens = Some(24 + u32::from(number % 5) * 9);
    let GenerationRequest { sampling, .. } = &mut job.request;
    match number % 14 {
        0 => sampling.temperature = 0.0,
        1 => sampling.temperature = 1.0,
        2 => {
            let schema = json!({ "type": "array", "items": object(), "minItems": 2, "maxItems": 3 });
            job.request.constraint = Some(Constraint::JsonSchema { schema, strict: true });
            job.request.max_tokens = Some(MOST_TOKENS);
        }
        3 => {
            let tool = |name: &str| Tool {
                name: name.to_owned(),
                description: None,
                parameters: object().as_object().unwrap().clone(),
                strict: true,
            };
            job.request.tools = vec![tool("f"), tool("g")];
            job.request.tool_choice = ToolChoice::Required;
            job.request.max_tokens = Some(MOST_TOKENS);
        }
        4 => job.request.n = 2,
        5 => {
            sampling.temperature = 0.8;
            sampling.presence_penalty = 0.3;
            sampling.frequency_penalty = 0.5;
            sampling.repetition_penalty = 1.2;
        }
        6 => {
            sampling.temperature = 0.0;
            job.request.logprobs = Some(3);
        }
        7 => job.request.stop = ["e", "q", "7", "z9"].map(str::to_owned).into(),
        8 => {
            sampling.min_tokens = 10;
            sampling.logit_bias = vec![(END, 10.0)];
            sampling.bad_words = vec!["a".to_owned(), "bc".to_owned()];
        }
        9 => {
            sampling.top_k = 3;
            job.request.n = 3;
            job.request.logprobs = Some(0);
            job.request.return_token_ids = true;
        }
        10 => {
            sampling.temperature = 0.5;
            sampling.logit_bias = vec![(u32::from(b'a'), 12.0), (u32::from(b'b'), 11.0)];
            sampling.stop_token_ids = vec![u32::from(b'k')];
        }
        11 => {
            sampling.temperature = 0.0;
            job.request.constraint = Some(Constraint::Regex("([a-c]{5}-){3}(end|aaaaa)*".to_owned()));
            job.request.n = 2;
        }
        12 => {
            sampling.temperature = 0.0;
            sampling.ignore_eos = true;
            job.request.prompt_logprobs = Some(1);
            job.request.n = 2;
        }
        _ => {
            sampling.temperature = 0.0;
            job.request.stop = vec!["\u{0}\u{0}\u{0}\u{0}".to_owned()];
            job.request.logprobs = Some(1);
            job.request.logprob_token_ids = vec![1, 2];
        }
    }
    job
}

fn requests() -> impl Iterator<Item = Job> {
    (0..REQUESTS).map(request)
}

/// The events of each choice, in order, and the usage.
fn by_choice(log: &[EventKind]) -> (BTreeMap<u32, Vec<EventKind>>, Option<Usage>) {
    let mut choices: BTreeMap<u32, Vec<EventKind>> = BTreeMap::new();
    let mut usage = None;
    for kind in content(log) {
        match &kind {
            EventKind::Tokens { choice, .. }
            | EventKind::EndToken { choice, .. }
            | EventKind::Finish { choice, .. } => choices.entry(*choice).or_default().push(kind),
            EventKind::Done { usage: total, .. } => usage = Some(*total),
            EventKind::Error(error) => panic!("{error:?}"),
            _ => {}
        }
    }
    (choices, usage)
}

/// What the requests say one token a step.
fn without() -> (Logs, StepCounts, EngineStats) {
    let mut runs = engine(|options| options.speculation = Speculation::Off);
    let logs = run_all(&mut runs, requests());
    let (counts, stats) = (runs.engine.counts(), runs.engine.stats());
    assert_eq!((counts.drafted, counts.accepted), (0, 0));
    (logs, counts, stats)
}

fn assert_same(logs: &Logs, expected: &Logs) {
    assert_eq!(logs.len(), usize::from(REQUESTS));
    for (job, log) in logs {
        assert_eq!(by_choice(log), by_choice(&expected[job]), "{job}");
    }
}

/// A look-up for which rows cost little, however busy the machine is.
#[derive(Debug, Default)]
struct Untimed(PromptLookup);

impl Drafter for Untimed {
    fn draft(&mut self, request: &DraftRequest<'_>) -> Vec<u32> {
        self.0.draft(request)
    }

    fn sampled(&mut self, id: SequenceId, token: u32) {
        self.0.sampled(id, token);
    }

    fn step_ended(&mut self, rows: usize, prompt_rows: usize, _: Duration) {
        self.0.step_ended(rows, prompt_rows, Duration::from_micros(10_000 + 10 * rows as u64));
    }

    fn forget(&mut self, request: u64) {
        self.0.forget(request);
    }
}

/// Drafts that are right, wrong or both, of random lengths, made with the answers.
#[derive(Debug)]
struct Forced {
    /// The length of each request's prompt, by the engine's number.
    prompts: Vec<usize>,
    answers: HashMap<SequenceId, Vec<u32>>,
    random: u64,
}

impl Forced {
    fn new(expected: &Logs, seed: u64) -> Self {
        let mut forced = Self { prompts: Vec::new(), answers: HashMap::new(), random: seed };
        for (request, job) in (0..).zip(requests()) {
            let log = &expected[&job.id];
            forced.prompts.push(usage(log).prompt_tokens as usize);
            for number in 0..job.request.n {
                let answer = choice(log, number).0;
                forced.answers.insert(SequenceId { request, choice: number }, answer);
            }
        }
        forced
    }

    fn below(&mut self, most: usize) -> usize {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % most
    }
}

impl Drafter for Forced {
    fn draft(&mut self, request: &DraftRequest<'_>) -> Vec<u32> {
        let written = request.tokens.len() - self.prompts[request.id.request as usize];
        let (length, right) = (self.below(12), self.below(12));
        let wrong: Vec<u32> = (0..length).map(|_| self.below(testing::VOCABULARY) as u32).collect();
        let rest = self.answers[&request.id].iter().skip(written).copied();
        let right = if right > 8 { length } else { right };
        rest.take(right).chain(wrong).take(length.min(request.most)).collect()
    }

    fn sampled(&mut self, _: SequenceId, _: u32) {}

    fn step_ended(&mut self, _: usize, _: usize, _: Duration) {}

    fn forget(&mut self, _: u64) {}
}

/// Runs all requests with this drafter; where there are few blocks, they start again and again.
fn with(drafter: impl Drafter + 'static, blocks: Option<usize>) -> (Logs, InferenceEngine) {
    let mut runs = engine(|options| {
        if let Some(blocks) = blocks {
            options.slots = Some(9);
            options.cache = CacheSize::Blocks(blocks);
            options.prefill_budget = Some(37);
        }
    });
    runs.engine.drafter = Some(Box::new(drafter));
    let logs = run_all(&mut runs, requests());
    (logs, runs.engine)
}

#[test]
fn prompt_look_up_changes_no_answer_and_saves_steps() {
    let (expected, before, stats_before) = without();
    let (logs, engine) = with(Untimed::default(), None);
    assert_same(&logs, &expected);
    let (counts, stats) = (engine.counts(), engine.stats());
    assert!(counts.accepted > 1000, "{counts:?}");
    assert!(counts.steps < before.steps, "{} steps of {}", counts.steps, before.steps);
    assert_eq!((stats.drafted_tokens, stats.accepted_tokens), (counts.drafted, counts.accepted));
    assert_computed_once(stats, stats_before);
}

/// Nothing is computed twice that is right. After a stop string a draft may go on to the end of the step.
fn assert_computed_once(stats: EngineStats, without: EngineStats) {
    let beyond = stats.generated_tokens - without.generated_tokens;
    assert_eq!(stats.computed_tokens, without.computed_tokens + beyond);
    assert!(beyond < u64::from(REQUESTS), "{beyond} tokens after stop strings");
}

#[test]
fn any_drafts_change_no_answer() {
    let (expected, _, stats_before) = without();
    // Just enough for the longest prompt and its answer.
    let longest = expected.values().map(|log| usage(log).prompt_tokens as usize + MOST_TOKENS as usize).max();
    let few = longest.unwrap().div_ceil(BLOCK_SIZE);
    for (seed, is_crowded) in [(1, false), (2, true), (3, true)] {
        let (logs, engine) = with(Forced::new(&expected, seed), is_crowded.then_some(few));
        assert_same(&logs, &expected);
        let counts = engine.counts();
        assert!(counts.accepted > 1000 && counts.drafted - counts.accepted > 1000, "{counts:?}");
        assert_eq!(engine.stats().scheduler.preemptions > 0, is_crowded);
        if !is_crowded {
            assert_computed_once(engine.stats(), stats_before);
        }
    }
}

#[test]
fn the_measured_times_change_no_answer() {
    let (expected, ..) = without();
    let mut runs = engine(|_| {});
    assert_same(&run_all(&mut runs, requests()), &expected);
}

#[test]
fn what_is_cancelled_has_said_the_beginning() {
    let (expected, ..) = without();
    let mut runs = engine(|_| {});
    runs.engine.drafter = Some(Box::new(Forced::new(&expected, 4)));
    requests().for_each(|job| runs.submit(job));
    let is_cancelled = |number: u8| number % 5 < 2;
    for number in (0..REQUESTS).filter(|number| is_cancelled(*number)) {
        runs.step();
        runs.cancel(number);
    }
    runs.finish();
    let mut cut = 0;
    for number in 0..REQUESTS {
        let id = job(number).id;
        let (said, wanted) = (by_choice(&runs.logs[&id]), by_choice(&expected[&id]));
        if said.1.is_some() {
            assert_eq!(said, wanted, "{id}");
            continue;
        }
        assert!(is_cancelled(number));
        cut += usize::from(!said.0.is_empty());
        for (choice, events) in said.0 {
            assert_eq!(events[..], wanted.0[&choice][..events.len()], "{id}");
        }
    }
    assert!(cut > 3, "{cut} were cancelled within their answers");
}

#[test]
fn an_answer_that_is_taken_over_goes_on_the_same() {
    let (expected, ..) = without();
    let mut runs = engine(|_| {});
    for number in (0..REQUESTS).filter(|number| number % 7 == 2) {
        let job = request(number);
        let whole = &expected[&job.id];
        let half: Vec<EventKind> = whole[..whole.len() / 2].to_vec();
        let state = crate::engine::testing::log_state(&half, job.request.n);
        let (events, mut receiver) = unbounded_channel();
        let prepared = runs.engine.preprocessor().prepare(job.clone(), Instant::now()).unwrap();
        runs.engine.submit(
            PreparedRequest { resumed: state.choices, resumed_prompt: state.prompt, ..prepared },
            events,
        );
        runs.finish();
        let rest = std::iter::from_fn(|| receiver.try_recv().ok());
        let all: Vec<EventKind> = half.into_iter().chain(rest).collect();
        for number in 0..job.request.n {
            assert_eq!(choice(&all, number), choice(whole, number), "{}", job.id);
        }
        assert_eq!(usage(&all).completion_tokens, usage(whole).completion_tokens);
    }
}
