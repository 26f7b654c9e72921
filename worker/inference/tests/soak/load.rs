//! Random requests: a catalogue of jobs that differ in everything that a request can differ in.

use emberline_kernels::BLOCK_SIZE;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::job::{GenerationRequest, Job, Message, Role, SamplingOptions};
use emberline_protocol::subject::JobId;
use rand::RngExt;
use rand::rngs::StdRng;

const WORDS: [&str; 16] = [
    "river", "stone", "lamp", "boat", "winter", "cat", "bell", "bread", "hill", "storm", "clock", "song",
    "bridge", "window", "friend", "story",
];

/// Beginnings that requests share, of some hundred tokens.
const SYSTEM_PROMPTS: usize = 3;

/// A request and its seed; jobs made of it differ in nothing but their id.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    request: GenerationRequest,
    seed: u64,
}

impl Ask {
    /// A long one has a prompt of several chunks; others may write more, and so need blocks as they go.
    pub(crate) fn random(random: &mut StdRng, is_long: bool) -> Self {
        let message = |role, content| Message::new(role, content);
        let mut messages = Vec::new();
        if random.random_bool(0.7) {
            let number = random.random_range(0..SYSTEM_PROMPTS);
            messages.push(message(Role::System, system_prompt(number)));
        }
        let words = match random.random_range(0..9) {
            _ if is_long => random.random_range(350..450),
            0..3 => random.random_range(50..200),
            _ => random.random_range(1..20),
        };
        messages.push(message(Role::User, text(random, words)));
        let n = *pick(random, &[1, 1, 1, 1, 2, 3]);
        let max_tokens = random.random_range(1..if is_long { 12 } else { 96 });
        let request = GenerationRequest {
            messages,
            max_tokens: Some(max_tokens),
            stop: if random.random_bool(0.2) { vec![" the".to_owned()] } else { Vec::new() },
            n,
            logprobs: random.random_bool(0.2).then(|| random.random_range(0..=5)),
            sampling: sampling(random, max_tokens),
            ..GenerationRequest::default()
        };
        Self { request, seed: random.random() }
    }

    /// Blocks of the cache that it may need, all choices together.
    pub(crate) fn blocks(&self, prompt_tokens: u32) -> usize {
        let answer = self.request.max_tokens.unwrap_or(0) as usize;
        let each = (prompt_tokens as usize + answer).div_ceil(BLOCK_SIZE);
        each + (self.request.n as usize - 1) * (answer.div_ceil(BLOCK_SIZE) + 1)
    }

    pub(crate) fn job(&self, id: JobId) -> Job {
        Job {
            v: PROTOCOL_VERSION,
            id,
            model: "soak".to_owned(),
            created: 0,
            deadline: u64::MAX,
            request: self.request.clone(),
            seed: self.seed,
            background: None,
            account: None,
        }
    }
}

fn sampling(random: &mut StdRng, max_tokens: u32) -> SamplingOptions {
    let mut options = SamplingOptions {
        temperature: *pick(random, &[0.0, 0.0, 0.7, 1.0, 1.5]),
        ignore_eos: random.random_bool(0.5),
        ..SamplingOptions::default()
    };
    if random.random_bool(0.4) {
        options.top_p = 0.9;
    }
    if random.random_bool(0.3) {
        options.top_k = random.random_range(1..100);
    }
    if random.random_bool(0.2) {
        options.min_p = 0.05;
    }
    if random.random_bool(0.2) {
        options.repetition_penalty = 1.2;
        options.presence_penalty = 0.5;
        options.frequency_penalty = -0.3;
    }
    if random.random_bool(0.15) {
        options.logit_bias =
            vec![(random.random_range(100..40_000), 3.0), (random.random_range(100..40_000), -50.0)];
    }
    if random.random_bool(0.15) {
        options.min_tokens = max_tokens / 2;
    }
    if random.random_bool(0.15) {
        options.stop_token_ids = vec![random.random_range(100..1000)];
    }
    options
}

fn system_prompt(number: usize) -> String {
    let turned = WORDS.iter().cycle().skip(number);
    let words: Vec<&str> = turned.take(150 + 40 * number).copied().collect();
    format!("You are storyteller {number}. Use these words: {}.", words.join(" "))
}

fn text(random: &mut StdRng, words: usize) -> String {
    let words: Vec<&str> = (0..words).map(|_| *pick(random, &WORDS)).collect();
    format!("Tell me of the {}.", words.join(" "))
}

pub(crate) fn pick<'a, T>(random: &mut StdRng, of: &'a [T]) -> &'a T {
    &of[random.random_range(0..of.len())]
}
