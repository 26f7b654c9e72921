//! The body of a response that is cut when the time of its request is over, as some hosts do it: the transfer breaks
//! off, and the component's next write fails.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use wasmtime_wasi_http::{Error as HttpError, WasiBody};

/// A body until a time.
pub(crate) struct CutBody {
    body: WasiBody,
    cut: Pin<Box<Sleep>>,
}

impl CutBody {
    /// `body` until `cut`.
    pub(crate) fn new(body: WasiBody, cut: Instant) -> Self {
        Self { body, cut: Box::pin(sleep_until(cut)) }
    }
}

impl Body for CutBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(HttpError::HttpResponseTimeout)));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
