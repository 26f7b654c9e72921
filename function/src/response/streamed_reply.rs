//! An answer on its way from its jobs to its client.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use emberline_protocol::error::ApiError;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::whole_response::{CompleteResponse, ResponseBuilder, WholeResponse};
use super::{Reply, ResponseWriter};
use crate::generation::job_streams::JobStreams;
use crate::http::reply;
use crate::memory::{Held, NoMemory, Reservation};
use crate::platform::{BodySink, Closed, Host, Timer, report};
use crate::relay::Output;

/// Longest time without a write. A write is also how a client that has disconnected is noticed: by the next one, or
/// the one after that.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// How long a client may take to read the rest of a stream whose jobs have ended, and how many bytes a second it has
/// to read besides.
const DRAIN_TIME: Duration = Duration::from_secs(60);
const DRAIN_RATE: usize = 64 * 1024;
/// Size up to which frames that wait are sent in one write.
const WRITE_BYTES: usize = 16 * 1024;
/// How many outputs that are there already are turned into frames before these are written.
const OUTPUTS_PER_WRITE: usize = 64;
/// A whole answer of more bytes is written like a stream, so that its memory counts until its client has read it.
const LARGE: usize = 64 * 1024;
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// A response whose body is written while it is under way.
pub struct StreamedReply {
    /// The headers of the response.
    pub headers: HeaderMap,
    host: Host,
    /// Names its jobs in the log.
    context: String,
    /// Unless they have ended.
    jobs: Option<JobStreams>,
    memory: Rc<Reservation>,
    writer: Box<dyn ResponseWriter>,
}

/// Answers with a whole response. If it is not complete when the monotonic clock comes to `head_ns`, its head is
/// sent, with `headers`, and the rest is written while the response is under way: nothing shows before the head
/// that the client has disconnected.
pub async fn whole(
    host: &Host,
    mut jobs: JobStreams,
    builder: impl ResponseBuilder + 'static,
    head_ns: Option<u64>,
    headers: HeaderMap,
) -> Result<Reply, ApiError> {
    let (context, memory) = (jobs.context(), Rc::clone(jobs.memory()));
    let mut response = WholeResponse::new(builder);
    let gathering = gather(&mut jobs, &mut response);
    let gathered = match head_ns {
        Some(head_ns) => host.until(head_ns, gathering).await,
        None => Some(gathering.await),
    };
    match gathered {
        Some(Ok(json)) if json.len() <= LARGE => Ok(Reply::Whole(reply::json(200, json))),
        Some(Ok(json)) => {
            let length = (CONTENT_LENGTH, HeaderValue::from(json.len()));
            let headers = with(headers, [json_type(), length]);
            let writer = Box::new(CompleteResponse(json));
            let host = host.clone();
            Ok(Reply::Streamed(Box::new(StreamedReply {
                headers,
                host,
                context,
                jobs: None,
                memory,
                writer,
            })))
        }
        Some(Err(failure)) => {
            jobs.cancel().await;
            Err(failure)
        }
        None => Ok(begin(host, jobs, Box::new(response), with(headers, [json_type()]))),
    }
}

/// Waits for the whole response; to stop waiting loses nothing.
async fn gather<B: ResponseBuilder>(
    jobs: &mut JobStreams,
    response: &mut WholeResponse<B>,
) -> Result<Bytes, ApiError> {
    let mut held = jobs.memory().part();
    loop {
        match jobs.next().await? {
            Output::Failed(failure) => return Err(failure),
            output => {
                if let Some(json) = response.push(output) {
                    return Ok(json);
                }
            }
        }
        held.set(response.held_bytes())?;
    }
}

fn json_type() -> (HeaderName, HeaderValue) {
    (CONTENT_TYPE, HeaderValue::from_static("application/json"))
}

/// Headers of a response's own, and `more`.
fn with<const N: usize>(more: HeaderMap, own: [(HeaderName, HeaderValue); N]) -> HeaderMap {
    let mut headers = HeaderMap::from_iter(own);
    headers.extend(more);
    headers
}

/// Answers with server-sent events, and with `headers`.
pub fn stream(
    host: &Host,
    jobs: JobStreams,
    writer: impl ResponseWriter + 'static,
    headers: HeaderMap,
) -> Reply {
    let own = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (X_ACCEL_BUFFERING, HeaderValue::from_static("no")),
    ];
    begin(host, jobs, Box::new(writer), with(headers, own))
}

fn begin(host: &Host, jobs: JobStreams, writer: Box<dyn ResponseWriter>, headers: HeaderMap) -> Reply {
    let (context, memory) = (jobs.context(), Rc::clone(jobs.memory()));
    let (host, jobs) = (host.clone(), Some(jobs));
    Reply::Streamed(Box::new(StreamedReply { headers, host, context, jobs, memory, writer }))
}

impl StreamedReply {
    /// Writes the body to its end. An error says why the transfer is to be broken off.
    pub async fn write(self, body: impl BodySink) -> Result<(), String> {
        let Self { host, context, jobs, memory, mut writer, .. } = self;
        let mut client = Client {
            body,
            backlog: VecDeque::new(),
            bytes: 0,
            in_flight: 0,
            max_bytes: writer.max_backlog(),
            written_ns: host.monotonic_ns(),
        };
        writer.begin().into_iter().for_each(|frame| client.push(frame));
        let keep_alive = host.timer(KEEP_ALIVE);
        let draining = jobs.is_none().then(|| host.timer(drain_time(client.bytes)));
        let held = memory.part();
        let mut transfer =
            Transfer { host, jobs, cancelling: None, writer, client, keep_alive, draining, held };
        let end = poll_fn(|cx| transfer.poll(cx)).await;
        transfer.cancel_jobs();
        if let Some(cancelling) = transfer.cancelling.take() {
            cancelling.await;
        }
        let failure = match end {
            End::Written => transfer.writer.failure().map(ToString::to_string),
            End::Disconnected => Some("client disconnected".to_owned()),
            End::TooSlow => Some("the client reads too slowly".to_owned()),
            End::NoMemory(error) => Some(format!("the client reads too slowly: {error}")),
        };
        match failure {
            None => Ok(()),
            Some(reason) => {
                report(&context, format_args!("the transfer of the answer was broken off: {reason}"));
                Err(reason)
            }
        }
    }
}

/// The client, and the frames that it has not taken yet.
struct Client<S> {
    body: S,
    backlog: VecDeque<Bytes>,
    bytes: usize,
    /// Size of the frame that is being written.
    in_flight: usize,
    max_bytes: usize,
    written_ns: u64,
}

impl<S: BodySink> Client<S> {
    fn push(&mut self, frame: Bytes) {
        self.bytes = self.bytes.saturating_add(frame.len());
        self.backlog.push_back(frame);
    }

    /// Ready when everything is written. Frames that wait go out in one write: what a write costs does not depend
    /// on how many they are.
    fn poll_flush(&mut self, cx: &mut Context<'_>, host: &Host) -> Poll<Result<(), Closed>> {
        let Self { body, backlog, bytes, in_flight, written_ns, .. } = self;
        body.poll_write(cx, &mut || {
            *in_flight = 0;
            let write = next_write(backlog)?;
            *bytes = bytes.saturating_sub(write.len());
            *in_flight = write.len();
            *written_ns = host.monotonic_ns();
            Some(write)
        })
    }
}

/// The first frames of `backlog`, whole ones, of [`WRITE_BYTES`] in all unless the first one is larger.
fn next_write(backlog: &mut VecDeque<Bytes>) -> Option<Vec<u8>> {
    let mut write: Vec<u8> = backlog.pop_front()?.into();
    while let Some(frame) =
        backlog.pop_front_if(|frame| write.len().saturating_add(frame.len()) <= WRITE_BYTES)
    {
        write.extend_from_slice(&frame);
    }
    Some(write)
}

/// How a transfer ends.
enum End {
    Written,
    Disconnected,
    TooSlow,
    NoMemory(NoMemory),
}

/// How long a client may take to read the last `bytes`.
fn drain_time(bytes: usize) -> Duration {
    let seconds = u64::try_from(bytes.div_euclid(DRAIN_RATE)).unwrap_or(u64::MAX);
    DRAIN_TIME.saturating_add(Duration::from_secs(seconds))
}

/// Moves an answer from its jobs to its client, each at its own pace.
struct Transfer<S> {
    host: Host,
    /// Until they have ended.
    jobs: Option<JobStreams>,
    /// Under way once nobody waits for jobs that may still run.
    cancelling: Option<Pin<Box<dyn Future<Output = ()>>>>,
    writer: Box<dyn ResponseWriter>,
    client: Client<S>,
    keep_alive: Timer,
    /// Runs once the last frame is in the backlog.
    draining: Option<Timer>,
    /// What the writer has gathered, and what the client has not read.
    held: Held,
}

impl<S: BodySink> Transfer<S> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            if self.cancelling.as_mut().is_some_and(|cancelling| cancelling.as_mut().poll(cx).is_ready()) {
                self.cancelling = None;
            }
            let has_moved = self.take_outputs(cx);
            let flushed = match self.client.poll_flush(cx, &self.host) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(Closed)) => return Poll::Ready(End::Disconnected),
                Poll::Pending => false,
            };
            if let Err(error) = self.count() {
                return Poll::Ready(End::NoMemory(error));
            }
            if let Some(draining) = &mut self.draining {
                if flushed {
                    return Poll::Ready(End::Written);
                }
                return draining.poll(cx).map(|()| End::TooSlow);
            }
            if self.client.bytes > self.client.max_bytes {
                return Poll::Ready(End::TooSlow);
            }
            if !has_moved {
                if self.keep_alive.poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.on_silence(flushed);
            }
        }
    }

    /// Takes the outputs that are there; whether there were any.
    fn take_outputs(&mut self, cx: &mut Context<'_>) -> bool {
        let mut has_moved = false;
        for _ in 0..OUTPUTS_PER_WRITE {
            let Some(Poll::Ready(output)) = self.jobs.as_mut().map(|jobs| jobs.poll_next(cx)) else { break };
            has_moved = true;
            self.write_output(output);
        }
        has_moved
    }

    /// Counts what is held for the client.
    fn count(&mut self) -> Result<(), NoMemory> {
        let unread = self.client.bytes.saturating_add(self.client.in_flight);
        self.held.set(unread.saturating_add(self.writer.held_bytes()))
    }

    fn write_output(&mut self, output: Result<Output, ApiError>) {
        let is_last = matches!(output, Ok(Output::Done(_) | Output::Failed(_)) | Err(_));
        let frames = match output {
            Ok(output) => self.writer.on_output(output),
            Err(error) => self.writer.on_error(&error),
        };
        frames.into_iter().for_each(|frame| self.client.push(frame));
        if is_last {
            self.cancel_jobs();
            self.draining = Some(self.host.timer(drain_time(self.client.bytes)));
        }
    }

    /// Cancels jobs that have not ended.
    fn cancel_jobs(&mut self) {
        if let Some(jobs) = self.jobs.take() {
            self.cancelling = Some(Box::pin(jobs.cancel()));
        }
    }

    fn on_silence(&mut self, flushed: bool) {
        let silence = Duration::from_nanos(self.host.monotonic_ns().saturating_sub(self.client.written_ns));
        let rest = KEEP_ALIVE.saturating_sub(silence);
        if flushed && rest.is_zero() {
            self.client.push(self.writer.keep_alive());
        }
        self.keep_alive = self.host.timer(if rest.is_zero() { KEEP_ALIVE } else { rest });
    }
}
