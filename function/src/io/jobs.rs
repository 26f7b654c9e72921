//! The jobs of one request: one, or one for each prompt.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use emberline_api::paths::Paths;
use emberline_protocol::control::Control;
use emberline_protocol::error::{ApiError, ErrorCode};
use futures::future::join_all;

use super::exchange::Exchange;
use crate::relay::{Acceptance, Joined, Output};

/// Jobs that run at the same time and make one answer.
pub(super) struct Jobs {
    /// Of those that have not ended.
    exchanges: Vec<Option<Exchange>>,
    joined: Joined,
    /// Told before all were accepted.
    early: VecDeque<Output>,
    /// The job that is asked first next time, so that none waits for a talkative one.
    turn: usize,
}

impl Jobs {
    /// Jobs that are published, each with so many choices. The client's body calls their fields by
    /// `paths`.
    pub(super) fn new(exchanges: Vec<Exchange>, choices_each: u32, paths: &Paths) -> Self {
        Self {
            joined: Joined::new(exchanges.len(), choices_each, paths.clone()),
            exchanges: exchanges.into_iter().map(Some).collect(),
            early: VecDeque::new(),
            turn: 0,
        }
    }

    /// Waits until workers have accepted all of them, for the first events decide the status. What
    /// is known of each comes in their order. After an error, [`Jobs::cancel`] is in order; to stop
    /// waiting loses nothing.
    pub(super) async fn accepted(&mut self) -> Result<Vec<Acceptance>, ApiError> {
        loop {
            if let Some(acceptances) = self.joined.acceptances() {
                return Ok(acceptances);
            }
            let told = poll_fn(|cx| self.poll_exchanges(cx)).await?;
            match told {
                Some(Output::Failed(error)) => return Err(error),
                // All of them have ended, for another request has cancelled them.
                Some(Output::Done(_)) => {
                    return Err(ApiError::new(ErrorCode::NotFound, "The response was cancelled."));
                }
                Some(Output::Accepted(_)) => {}
                told => self.early.extend(told),
            }
        }
    }

    /// Whether a worker has taken one of them.
    pub(super) fn are_taken(&self) -> bool {
        // One that is over was taken, too.
        self.exchanges.iter().any(|exchange| exchange.as_ref().is_none_or(Exchange::is_taken))
    }

    /// The next thing to tell the client. After a failure or an error, [`Jobs::cancel`] is in order.
    pub(super) async fn next(&mut self) -> Result<Output, ApiError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Jobs::next`]; stopping to poll loses nothing.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Output, ApiError>> {
        loop {
            if let Some(output) = self.early.pop_front() {
                return Poll::Ready(Ok(output));
            }
            match self.poll_exchanges(cx) {
                Poll::Ready(Ok(Some(output))) => return Poll::Ready(Ok(output)),
                Poll::Ready(Ok(None)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Asks each job in turn; ready with nothing where what a job told is nothing for the client.
    fn poll_exchanges(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Output>, ApiError>> {
        let count = self.exchanges.len();
        for _ in 0..count {
            let job = self.turn.checked_rem(count).unwrap_or(0);
            self.turn = job.saturating_add(1);
            let Some(slot) = self.exchanges.get_mut(job) else { continue };
            let Some(exchange) = slot else { continue };
            let Poll::Ready(output) = exchange.poll_next(cx) else { continue };
            let output = output?;
            if matches!(output, Output::Done(_) | Output::Failed(_))
                && let Some(ended) = slot.take()
            {
                ended.release();
            }
            return Poll::Ready(Ok(self.joined.push(job, output)));
        }
        Poll::Pending
    }

    /// What to call them in the log.
    pub(super) fn context(&self) -> String {
        let names = self.exchanges.iter().flatten().map(Exchange::context);
        names.collect::<Vec<_>>().join(", ")
    }

    /// Steers the workers.
    pub(super) fn send_control(&mut self, control: Control) {
        self.exchanges.iter_mut().flatten().for_each(|exchange| exchange.send_control(control));
    }

    /// Ends all of them.
    pub(super) async fn stop(self) {
        join_all(self.exchanges.into_iter().flatten().map(Exchange::stop)).await;
    }

    /// Ends jobs whose answer nobody waits for here: their workers free their slots.
    pub(super) async fn cancel(self) {
        join_all(self.exchanges.into_iter().flatten().map(Exchange::cancel)).await;
    }
}
