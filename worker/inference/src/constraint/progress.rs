//! A choice's state in its grammar.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use emberline_protocol::error::{ApiError, ErrorCode};
use llguidance::Matcher;
use rayon::ThreadPool;

use super::{TokenSet, reasons};

/// Why an answer can't continue: no token is allowed, or the grammar takes too long to follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Stuck(String);

impl Stuck {
    pub(super) fn new(error: &str) -> Self {
        // llguidance's words are about the grammar, which the client has not written.
        tracing::debug!(error, "the grammar allows no next token");
        Self(reasons::of_answer(error).to_owned())
    }

    /// None of the allowed tokens has a probability.
    pub fn dead_end() -> Self {
        Self("nothing that is allowed is possible".to_owned())
    }

    /// The error that the client gets.
    pub fn to_api_error(&self) -> ApiError {
        let message = format!(
            "The answer came to a place where no token fits what 'response_format' or 'tools' ask for ({self}). \
             Make the grammar simpler."
        );
        ApiError::new(ErrorCode::InvalidValue, message)
    }
}

/// The tokens that are allowed next.
#[derive(Clone)]
pub struct Mask {
    /// Their ids.
    pub allowed: TokenSet,
    /// Time that computing the mask took.
    pub took: Duration,
}

/// One choice's state in its grammar.
///
/// The mask for the next token is computed in the background as soon as the tokens before it are known.
pub struct Progress {
    matcher: Arc<Mutex<Matcher>>,
    mask: Arc<OnceLock<Result<Mask, Stuck>>>,
    masks: Arc<ThreadPool>,
}

impl Progress {
    pub(super) fn new(matcher: Matcher, masks: &Arc<ThreadPool>) -> Self {
        let progress = Self {
            matcher: Arc::new(Mutex::new(matcher)),
            mask: Arc::new(OnceLock::new()),
            masks: Arc::clone(masks),
        };
        progress.compute_mask();
        progress
    }

    /// The tokens that are allowed next; waits until they are known.
    pub fn mask(&self) -> Result<&Mask, &Stuck> {
        self.mask.wait().as_ref()
    }

    /// Records a token that does not end the answer; returns whether the answer is complete now, so that
    /// nothing can follow.
    pub fn record(&mut self, token: u32) -> Result<bool, Stuck> {
        let mut matcher = lock(&self.matcher);
        matcher.consume_token(token).map_err(|error| Stuck::new(&error.to_string()))?;
        if matcher.is_stopped() {
            return Ok(true);
        }
        drop(matcher);
        self.mask = Arc::new(OnceLock::new());
        self.compute_mask();
        Ok(false)
    }

    /// Whether the answer is complete and nothing can follow.
    pub fn is_complete(&self) -> bool {
        lock(&self.matcher).is_stopped()
    }

    fn compute_mask(&self) {
        let (matcher, mask) = (Arc::clone(&self.matcher), Arc::clone(&self.mask));
        self.masks.spawn(move || {
            let began = Instant::now();
            let allowed = lock(&matcher).compute_mask();
            let found = allowed.map(|allowed| Mask { allowed, took: began.elapsed() });
            // Nobody else sets it.
            let _ = mask.set(found.map_err(|error| Stuck::new(&error.to_string())));
        });
    }
}

/// llguidance itself records that a panic left it unusable.
fn lock(matcher: &Mutex<Matcher>) -> MutexGuard<'_, Matcher> {
    matcher.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").finish_non_exhaustive()
    }
}
