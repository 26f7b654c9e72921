//! An answer on its way to the client.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use emberline_protocol::error::ApiError;
use spin_sdk::wasip3::http::types::{ErrorCode as HttpError, Fields, Response};
use spin_sdk::wasip3::http_compat::BodyWriter;
use spin_sdk::wasip3::spawn;

use super::clock::{Timer, monotonic_ns, until};
use super::context::Answer;
use super::jobs::Jobs;
use super::log;
use super::stream::{ByteWriter, Closed};
use crate::http::reply;
use crate::relay::Output;
use crate::response::sse::Narrator;
use crate::response::whole_response::{Compose, OnePiece};

/// Longest silence while an answer is under way. Writing is also how a client is noticed that has
/// gone: with the next write, or the one after that.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// How long a client may take for the rest of a stream whose job is over.
const LAST_WORDS: Duration = Duration::from_secs(60);

/// Answers in one piece, with `more` headers. If it is not complete when the monotonic clock comes
/// to `head_ns`, the rest is written while the response is under way: nothing tells of a client that
/// has gone before the head.
pub(super) async fn whole(
    mut jobs: Jobs,
    mut answer: impl Compose + 'static,
    head_ns: Option<u64>,
    more: &http::HeaderMap,
) -> Result<Answer, ApiError> {
    let gathering = gather(&mut jobs, &mut answer);
    let gathered = match head_ns {
        Some(head_ns) => until(head_ns, gathering).await,
        None => Some(gathering.await),
    };
    match gathered {
        Some(Ok(json)) => Ok(Answer::Whole(reply::json(200, json))),
        Some(Err(failure)) => {
            jobs.cancel().await;
            Err(failure)
        }
        None => begin(jobs, OnePiece::new(answer), &[("content-type", b"application/json")], more),
    }
}

/// Waits for the whole answer; to stop waiting loses nothing.
async fn gather(jobs: &mut Jobs, answer: &mut impl Compose) -> Result<Bytes, ApiError> {
    loop {
        match jobs.next().await? {
            Output::Failed(failure) => return Err(failure),
            output => {
                if let Some(json) = answer.take(output) {
                    return Ok(json);
                }
            }
        }
    }
}

/// Begins the stream, with `more` headers.
pub(super) fn stream(
    jobs: Jobs,
    narrator: impl Narrator + 'static,
    more: &http::HeaderMap,
) -> Result<Answer, ApiError> {
    let headers = [
        ("content-type", &b"text/event-stream"[..]),
        ("cache-control", b"no-cache"),
        ("x-accel-buffering", b"no"),
    ];
    begin(jobs, narrator, &headers, more)
}

/// Begins an answer that is written while the response is under way.
fn begin(
    jobs: Jobs,
    narrator: impl Narrator + 'static,
    headers: &[(&str, &[u8])],
    more: &http::HeaderMap,
) -> Result<Answer, ApiError> {
    let more = more.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let headers = headers.iter().copied().chain(more);
    let headers: Vec<_> = headers.map(|(name, value)| (name.to_owned(), value.to_vec())).collect();
    let headers = Fields::from_list(&headers).map_err(|error| {
        log("response", error);
        reply::internal_error()
    })?;
    let (body, contents, result) = BodyWriter::new();
    let (response, _transmitted) = Response::new(headers, Some(contents), result);
    spawn(write(jobs, narrator, body));
    Ok(Answer::Streamed(response))
}

async fn write(jobs: Jobs, mut narrator: impl Narrator, body: BodyWriter) {
    let BodyWriter { stream_writer, result_writer, .. } = body;
    let context = jobs.context();
    let mut client = Client {
        writer: ByteWriter::new(stream_writer),
        backlog: VecDeque::new(),
        bytes: 0,
        max_bytes: narrator.max_backlog(),
        written_ns: monotonic_ns(),
    };
    narrator.begin().into_iter().for_each(|frame| client.push(frame));
    let mut pump = Pump {
        jobs: Some(jobs),
        cancelling: None,
        narrator,
        client,
        keep_alive: Timer::after(KEEP_ALIVE),
        last_words: None,
    };
    let end = poll_fn(|cx| pump.poll(cx)).await;
    pump.cancel_jobs();
    if let Some(cancelling) = pump.cancelling.take() {
        cancelling.await;
    }
    let broken_off = match end {
        End::Written => pump.narrator.broken_off().map(ToString::to_string),
        End::ClientGone => Some("the client has gone".to_owned()),
        End::ClientStuck => Some("the client reads too slowly".to_owned()),
    };
    drop(pump);
    let result = match broken_off {
        None => Ok(None),
        Some(reason) => {
            log(&context, format_args!("the answer broke off: {reason}"));
            Err(HttpError::InternalError(Some(reason)))
        }
    };
    // Nobody is left to hear of a failure to end the body.
    let _ = result_writer.write(result).await;
}

/// The frames that the client has not taken yet.
struct Client {
    writer: ByteWriter,
    backlog: VecDeque<Bytes>,
    bytes: usize,
    max_bytes: usize,
    written_ns: u64,
}

impl Client {
    fn push(&mut self, frame: Bytes) {
        self.bytes = self.bytes.saturating_add(frame.len());
        self.backlog.push_back(frame);
    }

    /// Ready when everything is written. One frame is one write.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let Self { writer, backlog, bytes, written_ns, .. } = self;
        writer.poll_write(cx, || {
            let frame = backlog.pop_front()?;
            *bytes = bytes.saturating_sub(frame.len());
            *written_ns = monotonic_ns();
            Some(frame.into())
        })
    }
}

/// How a stream ends.
enum End {
    Written,
    ClientGone,
    ClientStuck,
}

/// Moves an answer from its jobs to its client, each at its own pace.
struct Pump<N> {
    /// Until they have ended.
    jobs: Option<Jobs>,
    /// Under way once nobody waits for jobs that may still run.
    cancelling: Option<Pin<Box<dyn Future<Output = ()>>>>,
    narrator: N,
    client: Client,
    keep_alive: Timer,
    last_words: Option<Timer>,
}

impl<N: Narrator> Pump<N> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            if self.cancelling.as_mut().is_some_and(|cancelling| cancelling.as_mut().poll(cx).is_ready()) {
                self.cancelling = None;
            }
            let flushed = match self.client.poll_flush(cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(Closed)) => return Poll::Ready(End::ClientGone),
                Poll::Pending => false,
            };
            if let Some(last_words) = &mut self.last_words {
                if flushed {
                    return Poll::Ready(End::Written);
                }
                return last_words.poll(cx).map(|()| End::ClientStuck);
            }
            if self.client.bytes > self.client.max_bytes {
                return Poll::Ready(End::ClientStuck);
            }
            if let Some(jobs) = &mut self.jobs
                && let Poll::Ready(output) = jobs.poll_next(cx)
            {
                self.tell(output);
            } else if self.keep_alive.poll(cx).is_ready() {
                self.on_silence(flushed);
            } else {
                return Poll::Pending;
            }
        }
    }

    fn tell(&mut self, output: Result<Output, ApiError>) {
        let is_last = matches!(output, Ok(Output::Done(_) | Output::Failed(_)) | Err(_));
        let frames = match output {
            Ok(output) => self.narrator.tell(output),
            Err(error) => self.narrator.interrupt(&error),
        };
        frames.into_iter().for_each(|frame| self.client.push(frame));
        if is_last {
            self.cancel_jobs();
            self.last_words = Some(Timer::after(LAST_WORDS));
        }
    }

    /// Cancels what has not ended.
    fn cancel_jobs(&mut self) {
        if let Some(jobs) = self.jobs.take() {
            self.cancelling = Some(Box::pin(jobs.cancel()));
        }
    }

    fn on_silence(&mut self, flushed: bool) {
        let silence = Duration::from_nanos(monotonic_ns().saturating_sub(self.client.written_ns));
        let rest = KEEP_ALIVE.saturating_sub(silence);
        if flushed && rest.is_zero() {
            self.client.push(self.narrator.keep_alive());
        }
        self.keep_alive = Timer::after(if rest.is_zero() { KEEP_ALIVE } else { rest });
    }
}
