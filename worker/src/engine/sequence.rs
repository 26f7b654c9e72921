//! One job on its way through the engine: from a checked prompt to the last token.

use std::collections::HashSet;
use std::time::Instant;

use emberline_shared::error::{ApiError, ErrorCode};
use emberline_shared::event::{EventKind, FinishReason, Timings, Usage};
use emberline_shared::job::{Job, SamplingOptions};
use emberline_shared::subject::JobId;

use crate::model::{KvCache, Llama};
use crate::sampling::Sampler;
use crate::text::TextAssembler;
use crate::tokenizer::ModelTokenizer;

/// The only choice there is.
const CHOICE: u32 = 0;

/// Tokens of an answer that there is room for from the start; most answers are shorter.
const EXPECTED_ANSWER: usize = 512;

/// A job's prompt, its cache and what it has generated.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) job: JobId,
    /// Unix milliseconds.
    pub(super) deadline: u64,
    pub(super) cache: KvCache,
    prompt: Vec<u32>,
    /// The last sampled token, which has not been computed yet.
    last: Option<u32>,
    /// Most tokens to generate.
    limit: u32,
    sampler: Sampler,
    /// Tokens that end the answer and are not sent.
    ends: HashSet<u32>,
    text: TextAssembler,
    /// Sampled tokens, the one that ends the answer included.
    generated: u32,
    /// Tokens whose text is not complete yet or may begin a stop string.
    held: Vec<u32>,
    clock: Clock,
}

#[derive(Debug)]
struct Clock {
    taken: Instant,
    prefill_began: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Sequence {
    /// Checks that prompt and answer fit into the context and that the model has the tokens that
    /// the options name, before anything is computed.
    pub(super) fn new(
        job: Job,
        taken: Instant,
        prompt: Vec<u32>,
        model: &Llama,
        tokenizer: &ModelTokenizer,
    ) -> Result<Self, ApiError> {
        let sampling = job.request.sampling;
        check_tokens(&sampling, tokenizer.vocab_size())?;
        let context_length = u32::try_from(model.config().context_length).unwrap_or(u32::MAX);
        let prompt_tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        let room = context_length.saturating_sub(prompt_tokens);
        let limit = job.request.max_tokens.unwrap_or(room);
        if room == 0 || limit > room {
            return Err(too_long(&prompt_tokens.to_string(), job.request.max_tokens, context_length));
        }
        if sampling.min_tokens > limit {
            return Err(no_room_for(sampling.min_tokens, limit));
        }
        let mut ends: HashSet<u32> = sampling.stop_token_ids.iter().copied().collect();
        let put_off = ends.iter().copied().chain(tokenizer.end_of_generation()).collect();
        if !sampling.ignore_eos {
            ends.extend(tokenizer.end_of_generation());
        }
        let expected = prompt.len() + (limit as usize).min(EXPECTED_ANSWER);
        Ok(Self {
            job: job.id,
            deadline: job.deadline,
            cache: model.new_cache(expected),
            sampler: Sampler::new(sampling, job.seed, CHOICE, &prompt, put_off),
            prompt,
            last: None,
            limit,
            ends,
            text: TextAssembler::new(&job.request.stop),
            generated: 0,
            held: Vec::new(),
            clock: Clock { taken, prefill_began: None, first_token: None, last_token: None },
        })
    }

    /// Tokens to compute next: at most `block` of the prompt, or the last sampled one.
    pub(super) fn next_tokens(&mut self, block: usize) -> Vec<u32> {
        self.clock.prefill_began.get_or_insert_with(Instant::now);
        match self.last {
            Some(token) => vec![token],
            None => self.prompt.iter().skip(self.cache.len()).take(block).copied().collect(),
        }
    }

    /// Whether the whole prompt has been computed.
    pub(super) fn is_prefilled(&self) -> bool {
        self.cache.len() >= self.prompt.len()
    }

    /// Picks the next token from its logits; tells what happened and whether that was the end.
    pub(super) fn pick(&mut self, logits: &[f32], tokenizer: &ModelTokenizer) -> (Vec<EventKind>, bool) {
        // A padded embedding has rows that are no tokens.
        let logits = logits.get(..tokenizer.vocab_size()).unwrap_or(logits);
        let token = self.sampler.pick(logits);
        self.sampler.record(token);
        let now = Instant::now();
        self.clock.first_token.get_or_insert(now);
        self.clock.last_token = Some(now);
        self.last = Some(token);
        self.generated += 1;

        let mut events = Vec::new();
        let ends = self.ends.contains(&token);
        let finish = if ends {
            Some((FinishReason::Stop, self.text.finish()))
        } else {
            self.held.push(token);
            let pushed = self.text.push(tokenizer.token_bytes(token));
            if pushed.stopped {
                Some((FinishReason::Stop, pushed.text))
            } else if self.generated >= self.limit {
                Some((FinishReason::Length, pushed.text + &self.text.finish()))
            } else {
                if !pushed.text.is_empty() {
                    events.extend(self.release(pushed.text, self.generated));
                }
                None
            }
        };
        let Some((reason, text)) = finish else { return (events, false) };
        let end = if ends { self.generated - 1 } else { self.generated };
        events.extend(self.release(text, end));
        events.push(EventKind::Finish { choice: CHOICE, reason });
        events.push(EventKind::Done { usage: self.usage(), timings: self.timings() });
        (events, true)
    }

    /// An event with everything that was held back; `end` is the position after the last of it.
    fn release(&mut self, text: String, end: u32) -> Option<EventKind> {
        let ids = std::mem::take(&mut self.held);
        if ids.is_empty() && text.is_empty() {
            return None;
        }
        let position = end.saturating_sub(u32::try_from(ids.len()).unwrap_or(u32::MAX));
        Some(EventKind::Tokens { choice: CHOICE, position, ids, text, logprobs: Vec::new() })
    }

    pub(super) fn prompt_tokens(&self) -> u32 {
        u32::try_from(self.prompt.len()).unwrap_or(u32::MAX)
    }

    /// The token that ends an answer counts as generated, as it does in vLLM and OpenAI's API.
    pub(super) fn usage(&self) -> Usage {
        Usage { prompt_tokens: self.prompt_tokens(), cached_tokens: 0, completion_tokens: self.generated }
    }

    fn timings(&self) -> Timings {
        let Clock { taken, prefill_began, first_token, last_token } = self.clock;
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from).as_secs_f64() * 1000.0,
            _ => 0.0,
        };
        Timings {
            queue_ms: between(Some(taken), prefill_began),
            prefill_ms: between(prefill_began, first_token),
            first_token_ms: between(Some(taken), first_token),
            decode_ms: between(first_token, last_token),
        }
    }
}

/// Refuses ids that are not the model's.
fn check_tokens(options: &SamplingOptions, vocabulary: usize) -> Result<(), ApiError> {
    let biased = options.logit_bias.iter().map(|&(id, _)| (id, format!("logit_bias.{id}")));
    let stops = options.stop_token_ids.iter().enumerate();
    let stops = stops.map(|(index, &id)| (id, format!("stop_token_ids[{index}]")));
    match biased.chain(stops).find(|&(id, _)| id as usize >= vocabulary) {
        None => Ok(()),
        Some((id, path)) => {
            let message = format!(
                "'{path}' names token {id}, but the model's tokens are 0 to {}. Leave it out.",
                vocabulary.saturating_sub(1)
            );
            Err(ApiError::field(ErrorCode::InvalidValue, path, message))
        }
    }
}

/// The refusal of more tokens than there is room for.
pub(super) fn no_room_for(min_tokens: u32, limit: u32) -> ApiError {
    let message = format!(
        "'min_tokens' is {min_tokens}, but the context has room for an answer of {limit} tokens. \
         Lower it or shorten the messages."
    );
    ApiError::field(ErrorCode::ContextLengthExceeded, "min_tokens", message)
}

/// The refusal of a prompt of `prompt` tokens, a count in words.
pub(super) fn too_long(prompt: &str, wanted: Option<u32>, context: u32) -> ApiError {
    let wanted = match wanted {
        Some(wanted) => format!("{wanted} for the answer"),
        None => "at least 1 for the answer".to_owned(),
    };
    let message = format!(
        "The model's context holds {context} tokens, but the request needs {prompt} for the messages and {wanted}. \
         Shorten the messages or lower 'max_tokens'."
    );
    ApiError::field(ErrorCode::ContextLengthExceeded, "messages", message)
}
