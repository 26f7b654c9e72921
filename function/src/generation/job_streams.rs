//! The jobs of one request: one, or one for each prompt.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use emberline_api::paths::Paths;
use emberline_protocol::control::Control;
use emberline_protocol::error::{ApiError, ErrorCode};
use futures::future::join_all;

use super::job_stream::JobStream;
use crate::memory::{Held, Reservation};
use crate::relay::{Acceptance, Joined, Output};

/// JobStreams that run at the same time and make one answer.
pub struct JobStreams {
    /// Those of jobs that have not ended.
    streams: Vec<Option<JobStream>>,
    joined: Joined,
    /// Outputs that came before all jobs were accepted.
    early: VecDeque<Output>,
    /// The job that is polled first next time, so that none starves.
    turn: usize,
    memory: Rc<Reservation>,
    held: Held,
}

impl JobStreams {
    /// The events of published jobs, each with `choices_each` choices. `paths` are the names of their fields in the
    /// client's body, and `memory` is what the answer has reserved.
    pub fn new(streams: Vec<JobStream>, choices_each: u32, paths: &Paths, memory: Rc<Reservation>) -> Self {
        Self {
            joined: Joined::new(streams.len(), choices_each, paths.clone()),
            streams: streams.into_iter().map(Some).collect(),
            early: VecDeque::new(),
            turn: 0,
            held: memory.part(),
            memory,
        }
    }

    /// The memory that the answer has reserved.
    pub fn memory(&self) -> &Rc<Reservation> {
        &self.memory
    }

    /// Waits until workers have accepted all of them, since the first events decide the status; what each worker
    /// said, in the jobs' order. After an error, call [`JobStreams::cancel`]. To stop waiting loses nothing.
    pub async fn accepted(&mut self) -> Result<Vec<Acceptance>, ApiError> {
        loop {
            if let Some(acceptances) = self.joined.acceptances() {
                return Ok(acceptances);
            }
            let output = poll_fn(|cx| self.poll_streams(cx)).await?;
            match output {
                Some(Output::Failed(error)) => return Err(error),
                // All of them have ended: another request has cancelled them.
                Some(Output::Done(_)) => {
                    return Err(ApiError::new(ErrorCode::NotFound, "The response was cancelled."));
                }
                Some(Output::Accepted(_)) => {}
                output => {
                    self.held.add(output.as_ref().map_or(0, Output::bytes))?;
                    self.early.extend(output);
                }
            }
        }
    }

    /// Whether a worker has taken one of them.
    pub fn are_taken(&self) -> bool {
        // A job that has ended was taken, too.
        self.streams.iter().any(|stream| stream.as_ref().is_none_or(JobStream::is_taken))
    }

    /// The next output for the client. After a failure or an error, call [`JobStreams::cancel`].
    pub async fn next(&mut self) -> Result<Output, ApiError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`JobStreams::next`]; stopping to poll loses nothing.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Output, ApiError>> {
        loop {
            if let Some(output) = self.early.pop_front() {
                if self.early.is_empty() {
                    self.held.set(0)?;
                }
                return Poll::Ready(Ok(output));
            }
            match self.poll_streams(cx) {
                Poll::Ready(Ok(Some(output))) => return Poll::Ready(Ok(output)),
                Poll::Ready(Ok(None)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Polls each job in turn; ready with `None` if an output of a job is none for the client.
    fn poll_streams(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Output>, ApiError>> {
        let count = self.streams.len();
        for _ in 0..count {
            let job = self.turn.checked_rem(count).unwrap_or(0);
            self.turn = job.saturating_add(1);
            let Some(slot) = self.streams.get_mut(job) else { continue };
            let Some(stream) = slot else { continue };
            let Poll::Ready(output) = stream.poll_next(cx) else { continue };
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

    /// Names them in the log.
    pub fn context(&self) -> String {
        let names = self.streams.iter().flatten().map(JobStream::context);
        names.collect::<Vec<_>>().join(", ")
    }

    /// Publishes a control message for the worker of each job.
    pub fn send_control(&mut self, control: Control) {
        self.streams.iter_mut().flatten().for_each(|stream| stream.send_control(control));
    }

    /// Ends all of them.
    pub async fn stop(self) {
        join_all(self.streams.into_iter().flatten().map(JobStream::stop)).await;
    }

    /// Ends jobs whose answer nobody waits for here: their workers free their slots.
    pub async fn cancel(self) {
        join_all(self.streams.into_iter().flatten().map(JobStream::cancel)).await;
    }
}
