//! What computes: a set of running sequences, advanced one step at a time.
//!
//! A job goes through three hands. An engine's [`Frontend`] makes its prompt, on any thread. The
//! [`Engine`] itself is driven by one thread of its own ([`thread`]): [`Engine::submit`] and
//! [`Engine::cancel`] between steps, [`Engine::step`] as long as [`Engine::has_work`]; it never
//! waits for anything but the device. Events go to the job's [`EventSink`], from wherever text is
//! made of tokens.
//!
//! [`burn`] runs models; [`scheduler`] decides what each of its steps computes, and [`blocks`] keeps
//! its cache. [`simulated`] has no model.

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
use emberline_protocol::event::{Acceptance, EventKind, FinishReason, Usage};
use emberline_protocol::heartbeat::ServedModel;
use emberline_protocol::job::Job;
use emberline_protocol::subject::JobId;
use emberline_protocol::tokens::{TokensReply, TokensRequest};
use tokio::sync::mpsc::UnboundedSender;

use crate::constraint::Grammar;
use crate::network::ComputeError;

/// Where a job's events go. `Done` and `Error` are the last of a job; if the sink is closed before,
/// the engine has failed. It is unbounded, for an engine must not wait; the job's own limits bound it.
pub type EventSink = UnboundedSender<EventKind>;

/// What other workers wrote of a choice before this one got the job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// Its tokens, the one that ended it left out if it is not part of the text.
    pub ids: Vec<u32>,
    /// The text that they completed.
    pub text: String,
    /// Why it ended, if it did.
    pub finish: Option<FinishReason>,
}

impl Written {
    /// Whether it was begun.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.finish.is_none()
    }
}

/// A job that can be served, and its prompt.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The job.
    pub job: Job,
    /// When it left the queue.
    pub taken: Instant,
    /// Token ids; not empty.
    pub prompt: Vec<u32>,
    /// Most tokens of an answer; together with the prompt they fit the context.
    pub limit: u32,
    /// What the client is told of the answer as it begins; the engine adds the prompt's length and
    /// its own fingerprint.
    pub acceptance: Acceptance,
    /// What its answers obey; `None` if they may be anything.
    pub grammar: Option<Grammar>,
    /// Words that no answer has, each of which is its tokens.
    pub bad_words: Arc<[Vec<u32>]>,
    /// What is there of each choice; empty if nothing is.
    pub written: Vec<Written>,
    /// Tokens of the prompt that the log has.
    pub prompt_written: u32,
}

/// Makes prompts of jobs, and whatever else is done with text and tokens alone.
pub trait Frontend: Debug + Send + Sync {
    /// Makes a job's prompt and checks that the job can be served, before anything is computed for
    /// it. Takes as long as the prompt is long.
    fn prepare(&self, job: Job, taken: Instant) -> Result<Prepared, ApiError>;

    /// Turns text into tokens or back. Takes as long as the text is long.
    fn convert(&self, request: TokensRequest) -> Result<TokensReply, ApiError>;
}

/// The device or a part of the engine is gone; nothing more can be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The device.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// The thread that makes events of tokens.
    #[error("the thread that publishes tokens has ended; see the log above")]
    Publisher,
}

/// Runs several jobs at once on one device.
pub trait Engine: Send {
    /// What this engine serves.
    fn models(&self) -> Vec<ServedModel>;

    /// `burn` or `simulated`, as the heartbeat shows it.
    fn name(&self) -> &'static str;

    /// The device in words.
    fn device(&self) -> String;

    /// Jobs it can run at once.
    fn capacity(&self) -> usize;

    /// Bytes that it takes at most, where its jobs compute; `None` if it can't tell.
    fn memory(&self) -> Option<u64> {
        None
    }

    /// What prepares its jobs.
    fn frontend(&self) -> Arc<dyn Frontend>;

    /// Takes a job in, to which `Accepted` is the answer. A job whose sink is closed is dropped at
    /// the next step.
    fn submit(&mut self, job: Prepared, events: EventSink);

    /// Drops a job and frees what it held; tells what had been computed for it.
    fn cancel(&mut self, job: &JobId) -> Option<Usage>;

    /// Whether a step would do anything.
    fn has_work(&self) -> bool;

    /// Advances running jobs: a token for those whose prompt is computed, and a part of the others'
    /// prompts.
    fn step(&mut self) -> Result<(), EngineError>;

    /// Closes every job's sink; called once, after the engine has failed.
    fn hang_up(&mut self);
}
