//! Jobs for the engine's thread, and the times at which their tokens arrive.

use std::time::Instant;

use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::event::{Acceptance, EventKind, Timings, Usage};
use emberline_protocol::job::{GenerationRequest, Job, Message, Role, SamplingOptions};
use emberline_protocol::subject::JobId;
use tokio::sync::mpsc::UnboundedReceiver;

use super::BenchError;

/// What is asked of the engine.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) system: Option<String>,
    pub(super) user: String,
    /// Exact number of tokens: end tokens are ignored.
    pub(super) tokens: u32,
}

/// A job that runs.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) job: JobId,
    events: UnboundedReceiver<EventKind>,
}

/// An event with tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arrival {
    pub(super) at: Instant,
    /// How many.
    pub(super) tokens: usize,
}

/// What arrived of a job; if it was cancelled, until then.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) prompt_tokens: usize,
    pub(super) cached_tokens: usize,
    pub(super) arrivals: Vec<Arrival>,
    /// `None` if it was cancelled.
    pub(super) end: Option<(Usage, Timings)>,
}

impl Ask {
    /// The job's own id and seed don't matter: it is greedy.
    pub(super) fn job(&self) -> Job {
        let message = |role, content: &str| Message::new(role, content);
        let system = self.system.iter().map(|text| message(Role::System, text));
        let messages = system.chain([message(Role::User, &self.user)]).collect();
        let sampling = SamplingOptions { temperature: 0.0, ignore_eos: true, ..SamplingOptions::default() };
        Job {
            v: PROTOCOL_VERSION,
            id: JobId::from_random(rand::random()),
            model: "bench".to_owned(),
            created: 0,
            deadline: u64::MAX,
            request: GenerationRequest {
                messages,
                max_tokens: Some(self.tokens),
                stop: Vec::new(),
                n: 1,
                logprobs: None,
                sampling,
                ..GenerationRequest::default()
            },
            seed: 0,
            background: None,
            account: None,
        }
    }
}

impl Stream {
    pub(super) fn new(job: JobId, events: UnboundedReceiver<EventKind>) -> Self {
        Self { job, events }
    }

    /// Reads until this many tokens have arrived, or to the stream's end.
    pub(super) async fn read(&mut self, seen: &mut Seen, tokens: usize) -> Result<(), BenchError> {
        while seen.tokens() < tokens {
            let Some(event) = self.events.recv().await else { return Ok(()) };
            let at = Instant::now();
            match event {
                EventKind::Accepted(Acceptance { prompt_tokens, cached_tokens, .. }) => {
                    seen.prompt_tokens = prompt_tokens as usize;
                    seen.cached_tokens = cached_tokens as usize;
                }
                EventKind::Tokens { ids, .. } => seen.arrivals.push(Arrival { at, tokens: ids.len() }),
                EventKind::Taken { .. }
                | EventKind::Prompt { .. }
                | EventKind::EndToken { .. }
                | EventKind::Finish { .. }
                | EventKind::HandedBack => {}
                EventKind::Done { usage, timings, .. } => seen.end = Some((usage, timings)),
                EventKind::Error(error) => return Err(BenchError::Engine(error.message)),
            }
        }
        Ok(())
    }

    /// Reads to the end.
    pub(super) async fn finish(mut self) -> Result<Seen, BenchError> {
        let mut seen = Seen::default();
        self.read(&mut seen, usize::MAX).await?;
        Ok(seen)
    }
}

impl Seen {
    pub(super) fn tokens(&self) -> usize {
        self.arrivals.iter().map(|arrival| arrival.tokens).sum()
    }

    /// Milliseconds that single tokens of this window came after the ones before them.
    ///
    /// Text that was held back comes with the next token; what such an event says of the engine's
    /// pace is unclear, so it is left out.
    pub(super) fn gaps(&self, from: Instant, to: Instant) -> impl Iterator<Item = f64> {
        let pairs = self.arrivals.iter().zip(self.arrivals.iter().skip(1));
        let pairs = pairs.filter(move |(_, next)| next.tokens == 1 && next.at > from && next.at <= to);
        pairs.map(|(last, next)| next.at.saturating_duration_since(last.at).as_secs_f64() * 1e3)
    }
}
