//! When an answer has to be there: by its request's deadline, and before the host cuts the request.

use std::time::Duration;

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::subject::JobId;

use super::stored_request::response_id;
use crate::http::request_timeout::RequestTimeout;
use crate::platform::{Host, add_ns};
use crate::request::{CUT_MARGIN, ClientRequest};

/// Where the host cuts requests after this time or less, the head of a whole answer waits for the end, so that the
/// status tells how the answer goes on.
const STATUS_TIME: Duration = Duration::from_secs(60);

/// When a request is to be answered, on the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    /// When the client's time is over, or the operator's.
    pub(super) deadline_ns: u64,
    head_time: Option<Duration>,
    /// When the answer has to end because of the host.
    cut_ns: Option<u64>,
}

/// How a client gets the rest of an answer that has to end before the host cuts its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// Not at all: the job is stopped.
    None,
    /// By a repeat of the request, which has an `Idempotency-Key`.
    Repeat,
    /// By the id of a background response.
    Resume,
}

/// When the events of jobs are not waited for any longer, and what their client is told.
#[derive(Debug, Clone)]
pub(super) struct StreamEnd {
    /// The time, on the monotonic clock.
    pub(super) at_ns: u64,
    /// The reason.
    pub(super) error: ApiError,
}

impl Schedule {
    /// What a request and the settings say.
    pub(super) fn of(request: &ClientRequest) -> Result<Self, ApiError> {
        let timeout = RequestTimeout::of(&request.headers, request.config.request_timeout())?;
        let deadline_ns = add_ns(request.arrived_ns, timeout.timeout);
        let waits = request.config.request_time_limit.is_some_and(|limit| limit <= STATUS_TIME);
        let head_time = timeout.head_time().filter(|_| !waits);
        Ok(Self { deadline_ns, head_time, cut_ns: request.cut_ns() })
    }

    /// When the head of a whole answer that is begun now is sent though the rest is not complete; `None` if it waits
    /// for the end.
    pub(super) fn head_ns(&self, host: &Host) -> Option<u64> {
        self.head_time.map(|wait| host.after(wait))
    }

    /// How long a job may take that is queued now: until the host cuts its request, unless its answer can be asked
    /// for again. An error if the time is over.
    pub(super) fn job_time(&self, host: &Host, is_stored: bool) -> Result<Duration, ApiError> {
        let before_cut = self.cut_ns.map_or(Duration::MAX, |cut_ns| host.left_until(cut_ns));
        let left = host.left_until(self.deadline_ns);
        if left.is_zero() || before_cut.is_zero() {
            let message = "The time for this request was over before it could be queued. Give it more time.";
            return Err(ApiError::new(ErrorCode::Timeout, message));
        }
        Ok(if is_stored { left } else { left.min(before_cut.saturating_add(CUT_MARGIN)) })
    }
}

impl Rest {
    pub(super) fn of(is_background: bool, is_idempotent: bool) -> Self {
        match (is_background, is_idempotent) {
            (true, _) => Self::Resume,
            (false, true) => Self::Repeat,
            (false, false) => Self::None,
        }
    }

    /// What a client is told whose host cuts requests after `limit`.
    fn message(self, job: &JobId, limit: Duration) -> String {
        let seconds = limit.as_secs();
        match self {
            Self::None => format!(
                "The host ends requests after {seconds} s, and the answer of job {job} was not complete. Ask for \
                 less, or have it go on without this request: with an 'Idempotency-Key', or as a background response."
            ),
            Self::Repeat => format!(
                "The host ends requests after {seconds} s, but job {job} goes on. Send the same request with the \
                 same 'Idempotency-Key' again for its answer."
            ),
            Self::Resume => {
                let id = response_id(job);
                format!(
                    "The host ends requests after {seconds} s, but response {id} goes on. For the rest, GET \
                     /v1/responses/{id}?stream=true&starting_after=N, where N is the sequence_number of this event."
                )
            }
        }
    }
}

impl StreamEnd {
    /// For the job of a request, and others of it: the request's deadline, or a little before the host cuts it.
    pub(super) fn of(request: &ClientRequest, deadline_ns: u64, job: &JobId, rest: Rest) -> Self {
        let cut = request.cut_ns().zip(request.config.request_time_limit);
        Self::earlier(deadline_ns, cut, job, rest)
    }

    /// `cut` is when an answer has to end that its host cuts, and after which time the host does so.
    fn earlier(deadline_ns: u64, cut: Option<(u64, Duration)>, job: &JobId, rest: Rest) -> Self {
        let (at_ns, message) = match cut.filter(|(cut_ns, _)| *cut_ns < deadline_ns) {
            Some((cut_ns, limit)) => (cut_ns, rest.message(job, limit)),
            None => {
                let message = "The answer was not complete in time. Ask for less or try again later.";
                (deadline_ns, message.to_owned())
            }
        };
        Self { at_ns, error: ApiError::new(ErrorCode::Timeout, message) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn end(limit_s: Option<u64>, deadline_s: u64, rest: Rest) -> StreamEnd {
        let cut = limit_s.map(|limit| ((limit - 2) * S, Duration::from_secs(limit)));
        StreamEnd::earlier(deadline_s * S, cut, &JobId::from_random(1), rest)
    }

    #[test]
    fn the_earlier_time_ends_an_answer_and_says_why() {
        let deadline = end(None, 20, Rest::None);
        assert_eq!((deadline.at_ns, deadline.error.code.status()), (20 * S, 504));
        let sooner = end(Some(30), 20, Rest::Resume);
        assert_eq!((sooner.at_ns, sooner.error), (20 * S, deadline.error));
        let cut = end(Some(30), 600, Rest::None);
        assert_eq!((cut.at_ns, cut.error.code.status()), (28 * S, 504));
        assert!(cut.error.message.contains("after 30 s"), "{}", cut.error);
    }

    #[test]
    fn a_client_learns_how_to_go_on() {
        let id = format!("{:032x}", 1);
        for (background, idempotent, way) in [
            (false, false, "Ask for less".to_owned()),
            (false, true, "with the same 'Idempotency-Key' again".to_owned()),
            (true, false, format!("GET /v1/responses/resp_{id}?stream=true&starting_after=N")),
            (true, true, format!("GET /v1/responses/resp_{id}?stream=true&starting_after=N")),
        ] {
            let told = end(Some(30), 600, Rest::of(background, idempotent)).error.message;
            assert!(told.contains(&way) && told.contains(&id), "{told}");
        }
    }
}
