//! What computes: a set of running jobs, advanced one step at a time.
//!
//! A job goes through three stages. An engine's [`Preprocessor`] renders and encodes its prompt, on any
//! thread. The [`Engine`] itself is driven by one thread of its own ([`thread`]): [`Engine::submit`] and
//! [`Engine::cancel`] between steps, [`Engine::step`] as long as [`Engine::has_work`]; it waits for
//! nothing but the device. Events go to the job's [`EventSink`], from wherever text is made of tokens.
//!
//! [`inference`] runs models; [`simulated`] has no model.

pub mod inference;
mod refusal;
pub mod simulated;
#[cfg(test)]
pub(crate) mod testing;
pub mod thread;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use emberline_protocol::error::ApiError;
use emberline_protocol::event::{Acceptance, EventKind, Usage};
use emberline_protocol::heartbeat::ServedModel;
use emberline_protocol::job::Job;
pub use emberline_protocol::log::ResumedTokens;
use emberline_protocol::subject::JobId;
use emberline_protocol::tokens::{TokensReply, TokensRequest};
use tokio::sync::mpsc::UnboundedSender;

use crate::constraint::Grammar;
use crate::network::ComputeError;
use crate::scheduler::SchedulerStats;

/// Where a job's events go. A job's last event is `Done` or `Error`; if the sink is closed before, the
/// engine has failed. It is unbounded, because an engine must not wait; the job's own limits bound it.
pub type EventSink = UnboundedSender<EventKind>;

/// A job that can be served, with its encoded prompt.
#[derive(Debug, Clone)]
pub struct PreparedRequest {
    /// The job.
    pub job: Job,
    /// When it was taken from the queue.
    pub taken: Instant,
    /// Token ids; not empty.
    pub prompt: Vec<u32>,
    /// Most tokens of each choice; together with the prompt they fit the context.
    pub limit: u32,
    /// The first event's content; the engine adds the prompt's length and its own fingerprint.
    pub acceptance: Acceptance,
    /// The grammar that answers follow; `None` if they are free.
    pub grammar: Option<Grammar>,
    /// Token sequences that must not appear in an answer.
    pub bad_words: Arc<[Vec<u32>]>,
    /// What other workers have generated of each choice; empty for a new job.
    pub resumed: Vec<ResumedTokens>,
    /// How many tokens of the prompt the log has.
    pub resumed_prompt: u32,
}

/// Prepares jobs for an engine, and whatever else needs only text and tokens.
pub trait Preprocessor: Debug + Send + Sync {
    /// Renders and encodes a job's prompt, and checks that the job can be served. Takes time in proportion
    /// to the prompt's length.
    fn prepare(&self, job: Job, taken: Instant) -> Result<PreparedRequest, ApiError>;

    /// Converts text to tokens or back. Takes time in proportion to the text's length.
    fn convert(&self, request: TokensRequest) -> Result<TokensReply, ApiError>;
}

/// The device or a part of the engine has failed; nothing more can be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The device.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// The thread that turns tokens into events.
    #[error("the thread that processes outputs has ended; see the log above")]
    OutputProcessor,
}

/// How busy an engine is, and what it has done since it was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Sequences, cache blocks and preemptions.
    pub scheduler: SchedulerStats,
    /// Tokens computed, of prompts and answers; cached ones and drafted ones that did not follow are not among
    /// them.
    pub computed_tokens: u64,
    /// Tokens sampled, end tokens included.
    pub generated_tokens: u64,
    /// Tokens drafted, and computed before it was known whether they follow.
    pub drafted_tokens: u64,
    /// Of these, the ones that did follow.
    pub accepted_tokens: u64,
}

/// Runs several jobs at once on one device.
pub trait Engine: Send {
    /// The models that this engine serves.
    fn models(&self) -> Vec<ServedModel>;

    /// `burn` or `simulated`, as the heartbeat shows it.
    fn name(&self) -> &'static str;

    /// The device in words.
    fn device(&self) -> String;

    /// Most concurrent jobs.
    fn capacity(&self) -> usize;

    /// Most bytes of memory that it takes on its device; `None` if not known.
    fn memory(&self) -> Option<u64> {
        None
    }

    /// How busy it is, and what it has done so far.
    fn stats(&self) -> EngineStats;

    /// What prepares its jobs.
    fn preprocessor(&self) -> Arc<dyn Preprocessor>;

    /// Adds a job and sends its `Accepted` event. A job whose sink is closed is dropped at the next step.
    fn submit(&mut self, job: PreparedRequest, events: EventSink);

    /// Drops a job and frees its blocks; returns what was computed for it.
    fn cancel(&mut self, job: &JobId) -> Option<Usage>;

    /// Whether a step would do anything.
    fn has_work(&self) -> bool;

    /// Advances running jobs: decodes a token of those whose prompt is computed, and prefills a part of the
    /// others' prompts.
    fn step(&mut self) -> Result<(), EngineError>;

    /// Closes the sinks of all jobs; called once, after the engine has failed.
    fn close_all(&mut self);

    /// Why the device is lost for this process; `None` if it is not. Asked once, after the engine has failed.
    fn lost_device(&mut self) -> Option<String> {
        None
    }

    /// Gives back all that it holds, on the thread that has loaded it.
    fn unload(self: Box<Self>) {}
}
