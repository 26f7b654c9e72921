//! Whoever has no valid key is answered before the body is read, and what is left of a refused body does not hold
//! the answer up.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use emberline_function::instance::Instance;
use emberline_function::response::Reply;
use emberline_function::service;
use http::{Request, StatusCode};
use http_body::Frame;
use tokio::sync::Notify;

use crate::generation::{KEY, variables};
use crate::tokio_platform::{TokioPlatform, run};

const CHUNK: usize = 16 * 1024;
/// What is read at most of a request without a valid key.
const SMALL: usize = 64 * 1024;

/// What was read of a body.
#[derive(Clone, Default)]
struct Read {
    bytes: Rc<Cell<usize>>,
    dropped: Rc<Notify>,
}

/// A body of `left` bytes, all of which have arrived.
struct LongBody {
    left: usize,
    read: Read,
}

impl http_body::Body for LongBody {
    type Data = Bytes;
    type Error = String;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        let length = CHUNK.min(self.left);
        self.left -= length;
        self.read.bytes.set(self.read.bytes.get() + length);
        let chunk = (length > 0).then(|| Ok(Frame::data(Bytes::from(vec![b' '; length]))));
        Poll::Ready(chunk)
    }
}

impl Drop for LongBody {
    fn drop(&mut self) {
        self.read.dropped.notify_one();
    }
}

/// Sends a chat request with a body of `bytes` bytes: the status, what was read before it, and what was read in all.
async fn send(key: Option<&str>, bytes: usize) -> (StatusCode, usize, usize) {
    // The discard port: nothing listens there.
    let variables = variables(std::net::SocketAddr::from(([127, 0, 0, 1], 9)));
    let instance = Instance::new(TokioPlatform::host(variables));
    let read = Read::default();
    let body = LongBody { left: bytes, read: read.clone() };
    let mut request = Request::builder().method("POST").uri("/v1/chat/completions");
    request = request.header("content-length", bytes);
    if let Some(key) = key {
        request = request.header("x-api-key", key);
    }
    let Reply::Whole(reply) = service::serve(&instance, request.body(Box::pin(body) as _).unwrap()).await
    else {
        panic!("the reply is streamed")
    };
    let before = read.bytes.get();
    read.dropped.notified().await;
    (reply.status(), before, read.bytes.get())
}

#[test]
fn without_a_key_the_answer_comes_before_the_body() {
    run(async {
        let (status, before, in_all) = send(None, 32 << 20).await;
        assert_eq!((status, before), (StatusCode::UNAUTHORIZED, 0));
        assert!(in_all <= SMALL, "{in_all} bytes were read");
    });
}

#[test]
fn a_small_body_without_a_key_is_read_to_its_end() {
    run(async {
        assert_eq!(send(None, SMALL - 1).await, (StatusCode::UNAUTHORIZED, 0, SMALL - 1));
    });
}

#[test]
fn a_body_that_is_too_large_is_read_after_its_answer() {
    run(async {
        let bytes = 8 << 20;
        assert_eq!(send(Some(KEY), bytes).await, (StatusCode::PAYLOAD_TOO_LARGE, 0, bytes));
    });
}
