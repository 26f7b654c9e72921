//! The engine with the real model: what a job says does not depend on its company, on how its
//! prompt is cut into steps, on what the cache knows, nor on how often it had to start again; and
//! work that was done is not done again.

#![allow(clippy::unwrap_used, clippy::expect_used)] // also in the functions that tests call

use std::collections::HashMap;
use std::time::Instant;

use emberline_inference::device::ComputeDevice;
use emberline_inference::engine::Engine;
use emberline_inference::engine::inference::{CacheSize, InferenceEngine, LoadOptions, load};
use emberline_inference::speculation::Speculation;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::event::{EventKind, TokenLogprobs};
use emberline_protocol::job::{GenerationRequest, Job, Message, RawPrompt, Role, SamplingOptions};
use emberline_protocol::prompt::PromptToken;
use emberline_protocol::subject::JobId;
use emberline_test_kit::golden;
use emberline_test_kit::paths::model_path;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

const BUDGET: usize = 48;

fn options() -> LoadOptions {
    let budget = Some(BUDGET);
    let options = LoadOptions::new(model_path().unwrap(), "real", ComputeDevice::cpu());
    LoadOptions { slots: Some(6), prefill_budget: budget, ..options }
}

/// A choice's tokens and their log-probabilities.
#[derive(Debug, Clone, Default, PartialEq)]
struct Said {
    ids: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
}

type Answers = HashMap<(JobId, u32), Said>;

/// An engine driven step by step.
struct Runs {
    engine: InferenceEngine,
    receivers: HashMap<JobId, UnboundedReceiver<EventKind>>,
    answers: Answers,
    ended: usize,
}

impl Runs {
    fn new(options: &LoadOptions) -> Self {
        let engine = load(options).unwrap();
        Self { engine, receivers: HashMap::new(), answers: Answers::new(), ended: 0 }
    }

    fn submit(&mut self, job: Job) {
        let (events, receiver) = unbounded_channel();
        self.receivers.insert(job.id.clone(), receiver);
        let prepared = self.engine.preprocessor().prepare(job, Instant::now()).unwrap();
        self.engine.submit(prepared, events);
    }

    fn cancel(&mut self, job: &JobId) {
        self.engine.cancel(job).unwrap();
        self.receivers.remove(job);
        self.answers.retain(|(other, _), _| other != job);
    }

    fn step(&mut self) {
        self.engine.step().unwrap();
        self.engine.flush().unwrap();
        for (job, receiver) in &mut self.receivers {
            while let Ok(event) = receiver.try_recv() {
                match event {
                    EventKind::Tokens { choice, position, ids, logprobs, .. } => {
                        let said = self.answers.entry((job.clone(), choice)).or_default();
                        assert_eq!(position as usize, said.ids.len());
                        said.ids.extend(ids);
                        said.logprobs.extend(logprobs);
                    }
                    EventKind::Done { .. } => self.ended += 1,
                    EventKind::Error(error) => panic!("{error:?}"),
                    _ => {}
                }
            }
        }
    }

    fn finish(&mut self) {
        while self.engine.has_work() {
            self.step();
        }
        assert_eq!(self.engine.stats().scheduler.blocks_used, 0, "blocks are lost");
    }

    /// How many tokens a job has said.
    fn said(&self, job: &JobId) -> usize {
        self.answers.iter().filter(|((id, _), _)| id == job).map(|(_, said)| said.ids.len()).sum()
    }
}

fn job(number: u64, system: &str, user: &str, max_tokens: u32) -> Job {
    let message = |role, content: &str| Message::new(role, content);
    Job {
        v: PROTOCOL_VERSION,
        id: JobId::from_random(u128::from(number)),
        model: "real".to_owned(),
        created: 0,
        deadline: u64::MAX,
        request: GenerationRequest {
            messages: vec![message(Role::System, system), message(Role::User, user)],
            max_tokens: Some(max_tokens),
            stop: Vec::new(),
            n: 1,
            logprobs: Some(2),
            sampling: SamplingOptions { ignore_eos: true, ..SamplingOptions::default() },
            ..GenerationRequest::default()
        },
        seed: number,
        background: None,
        account: None,
    }
}

/// About `tokens` tokens.
fn words(tokens: usize) -> String {
    let words = ["lamp", "river", "stone", "bridge", "winter", "bread", "clock", "song"];
    words.into_iter().cycle().take(tokens).collect::<Vec<_>>().join(" ")
}

/// Jobs that share beginnings, in all kinds.
fn jobs() -> Vec<Job> {
    let systems = [words(60), words(90), "Answer in one line.".to_owned()];
    let jobs = (0..9_u64).map(|number| {
        let user = format!("Tell me about {}.", words(5 + 13 * number as usize % 70));
        let mut job = job(number, &systems[number as usize % 3], &user, 36 + 2 * number as u32);
        job.request.n = if number == 4 { 3 } else { 1 };
        job.request.sampling.temperature = [0.0, 1.0, 0.7][number as usize / 3];
        job
    });
    jobs.collect()
}

#[test]
fn every_answer_is_what_it_is_alone_to_the_last_bit() {
    let mut alone = Runs::new(&options());
    for job in jobs() {
        alone.submit(job);
        alone.finish();
        alone.engine.clear_prefix_cache();
    }

    // So small a cache that sequences crowd each other out.
    let crowded = LoadOptions { cache: CacheSize::Blocks(16), ..options() };
    let mut crowd = Runs::new(&crowded);
    for seed in 0..2 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut coming: Vec<Job> = jobs();
        let mut passing = Vec::new();
        let mut number = 100;
        while crowd.engine.has_work() || !coming.is_empty() {
            if !coming.is_empty() && random.random_bool(0.4) {
                let next = random.random_range(0..coming.len());
                crowd.submit(coming.swap_remove(next));
            }
            // Others come and are cancelled.
            if random.random_bool(0.1) {
                number += 1;
                let other = job(number, &words(90), &words(random.random_range(1..60)), 50);
                passing.push(other.id.clone());
                crowd.submit(other);
            }
            if random.random_bool(0.15)
                && let Some(id) = passing.pop()
            {
                crowd.cancel(&id);
            }
            if coming.is_empty() {
                passing.drain(..).for_each(|id| crowd.cancel(&id));
            }
            crowd.step();
        }
        crowd.finish();
        assert_eq!(crowd.answers.len(), alone.answers.len());
        for ((job, choice), said) in crowd.answers.drain() {
            assert!(said == alone.answers[&(job.clone(), choice)], "choice {choice} of {job}, seed {seed}");
        }
    }
    let stats = crowd.engine.stats();
    assert!(stats.scheduler.preemptions > 0, "{stats:?}: nothing was preempted");
}

#[test]
fn a_repeated_system_prompt_of_1000_tokens_costs_less_than_a_twentieth() {
    let mut runs = Runs::new(&options());
    let system = words(1000);
    let mut rows = |number, user: &str| {
        let before = runs.engine.counts().rows;
        runs.submit(job(number, &system, user, 1));
        runs.finish();
        runs.engine.counts().rows - before
    };
    let first = rows(1, "What is a lamp?");
    let again = rows(2, "Who built the bridge?");
    assert!(first > 1000, "{first}");
    assert!(again * 20 < first, "{again} rows after {first}");
}

#[test]
fn a_long_prompt_delays_running_streams_by_no_more_than_its_chunks() {
    // One token a step.
    let mut runs = Runs::new(&LoadOptions { speculation: Speculation::Off, ..options() });
    let streams: Vec<JobId> = (0..3).map(JobId::from_random).collect();
    for number in 0..3 {
        runs.submit(job(number, "Be brief.", "Tell me a story.", 60));
    }
    while streams.iter().any(|stream| runs.said(stream) < 5) {
        runs.step();
    }
    runs.submit(job(9, &words(600), "Go on.", 1));
    let mut steps = 0;
    while runs.ended == 0 {
        let before: Vec<usize> = streams.iter().map(|stream| runs.said(stream)).collect();
        let rows = runs.engine.counts().rows;
        runs.step();
        steps += 1;
        let rows = runs.engine.counts().rows - rows;
        assert!(rows <= (3 + BUDGET) as u64, "{rows} rows");
        for (stream, before) in streams.iter().zip(before) {
            assert_eq!(runs.said(stream), before + 1, "a stream was left out");
        }
    }
    assert!(steps >= 600 / BUDGET, "{steps} steps");
}

/// A job with this prompt, one token of whose answer is of no interest.
fn raw(number: u64, tokens: &[u32]) -> Job {
    let mut job = job(number, "", "", 1);
    job.request.messages.clear();
    job.request.prompt = Some(RawPrompt::Tokens(tokens.to_vec()));
    job.request.sampling.temperature = 0.0;
    job
}

/// What is told of a prompt beside others that come with it.
fn told(runs: &mut Runs, job: Job, others: impl IntoIterator<Item = Job>) -> Vec<PromptToken> {
    let (events, mut receiver) = unbounded_channel();
    let prepared = runs.engine.preprocessor().prepare(job, Instant::now()).unwrap();
    runs.engine.submit(prepared, events);
    others.into_iter().for_each(|other| runs.submit(other));
    runs.finish();
    let mut tokens = Vec::new();
    while let Ok(event) = receiver.try_recv() {
        if let EventKind::Prompt { position, tokens: more } = event {
            assert_eq!(position as usize, tokens.len());
            tokens.extend(more);
        }
    }
    tokens
}

#[test]
fn a_prompts_tokens_are_as_probable_as_when_they_are_generated() {
    let case = golden::cases().unwrap().remove(0);
    let prompt = [&case.prompt_token_ids[..], &case.greedy_token_ids].concat();
    let mut scored = raw(2001, &prompt);
    scored.request.prompt_logprobs = Some(2);
    let mut runs = Runs::new(&options());
    let whole = told(&mut runs, scored.clone(), []);
    assert_eq!(whole.iter().map(|token| token.id).collect::<Vec<_>>(), prompt);
    let score = |position: usize| whole[position].score.as_ref().unwrap();

    // As an independent implementation has it.
    for (position, wanted) in (case.prompt_token_ids.len()..).zip(&case.greedy_logprobs) {
        let logprob = f64::from(score(position).logprob);
        assert!((logprob - wanted).abs() < 0.02, "position {position}: {logprob} instead of {wanted}");
    }
    // To the bit, what each of them has when it is generated.
    for position in (1..prompt.len()).step_by(5) {
        let mut forced = raw(1000 + position as u64, &prompt[..position]);
        forced.request.sampling.logit_bias = vec![(prompt[position], 100.0)];
        let id = forced.id.clone();
        runs.submit(forced);
        runs.finish();
        let said = &runs.answers[&(id, 0)];
        assert_eq!(said.ids, [prompt[position]]);
        assert_eq!(said.logprobs[0].token.logprob.to_bits(), score(position).logprob.to_bits());
        assert_eq!(said.logprobs[0].top.len(), score(position).top.len());
        for (said, told) in said.logprobs[0].top.iter().zip(&score(position).top) {
            assert_eq!((said.id, said.logprob.to_bits()), (told.id, told.logprob.to_bits()));
        }
    }
    // However it is cut, whatever the cache knows, whoever else comes, and however crowded it is.
    for (budget, blocks) in [(7, None), (300, None), (48, Some(16))] {
        let cache = blocks.map_or(CacheSize::Auto, CacheSize::Blocks);
        let mut runs = Runs::new(&LoadOptions { prefill_budget: Some(budget), cache, ..options() });
        runs.submit(raw(2000, &prompt));
        runs.finish();
        assert_eq!(told(&mut runs, scored.clone(), jobs()), whole, "budget {budget}, {blocks:?} blocks");
    }
}
