//! A byte stream through an edge, over `wasi:http` 0.3: one request, whose body goes out while the response's comes in.

use std::mem;
use std::task::{Context, Poll};

use spin_sdk::wasip3::http::client;
use spin_sdk::wasip3::http::types::{
    ErrorCode, Fields, Method, Request, RequestOptions, Response, Scheme as WasiScheme,
};
use spin_sdk::wasip3::wit_bindgen::{FutureReader, FutureWriter};
use spin_sdk::wasip3::{wit_future, wit_stream};

use super::byte_stream::{ByteReader, ByteWriter};
use crate::nats::address::{Scheme, ServerUrl};
use crate::platform::{BodySink, ByteStream, Closed};

type Trailers = Result<Option<Fields>, ErrorCode>;

/// How much of an edge's refusal is read.
const MAX_REFUSAL: usize = 300;

/// A request under way.
pub(super) struct Exchange {
    reader: ByteReader,
    writer: ByteWriter,
    // Nobody waits for these, but dropping one would end a direction.
    _transmitted: FutureReader<Result<(), ErrorCode>>,
    _request_trailers: FutureWriter<Trailers>,
    _response_trailers: FutureReader<Trailers>,
    _received: FutureWriter<Result<(), ErrorCode>>,
}

impl Exchange {
    /// Sends the request's head, and waits for the response's.
    pub(super) async fn begin(edge: &ServerUrl) -> Result<Self, String> {
        let headers = [("content-type".to_owned(), b"application/octet-stream".to_vec())];
        let headers = Fields::from_list(&headers).map_err(|error| format!("{error:?}"))?;
        let (writer, contents) = wit_stream::new();
        let (request_trailers, trailers) = wit_future::new(|| Ok(None));
        let options = RequestOptions::new();
        let (request, transmitted) = Request::new(headers, Some(contents), trailers, Some(options));
        let scheme = if edge.scheme == Scheme::Https { WasiScheme::Https } else { WasiScheme::Http };
        let set = request.set_method(&Method::Post).is_ok()
            && request.set_scheme(Some(&scheme)).is_ok()
            && request.set_authority(Some(&edge.authority())).is_ok()
            && request.set_path_with_query(Some(&edge.path)).is_ok();
        if !set {
            return Err("its address can't be used".to_owned());
        }
        let response = client::send(request).await.map_err(|code| format!("{code:?}"))?;
        let status = response.get_status_code();
        let (received, result) = wit_future::new(|| Ok(()));
        let (incoming, response_trailers) = Response::consume_body(response, result);
        if status != 200 {
            return Err(format!("the edge answers {status}: {}", refusal(ByteReader::new(incoming)).await));
        }
        Ok(Self {
            reader: ByteReader::new(incoming),
            writer: ByteWriter::new(writer),
            _transmitted: transmitted,
            _request_trailers: request_trailers,
            _response_trailers: response_trailers,
            _received: received,
        })
    }
}

/// What an edge says instead of passing bytes on.
async fn refusal(mut reader: ByteReader) -> String {
    let mut text = Vec::new();
    while text.len() < MAX_REFUSAL {
        let read =
            std::future::poll_fn(|cx| reader.poll_read(cx, &mut |bytes| text.extend_from_slice(bytes)));
        if read.await.is_err() {
            break;
        }
    }
    text.truncate(MAX_REFUSAL);
    String::from_utf8_lossy(&text).trim().to_owned()
}

impl ByteStream for Exchange {
    fn poll_flush(&mut self, cx: &mut Context<'_>, unsent: &mut Vec<u8>) -> Poll<Result<(), Closed>> {
        self.writer.poll_write(cx, &mut || (!unsent.is_empty()).then(|| mem::take(unsent)))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, sink: &mut dyn FnMut(&[u8])) -> Poll<Result<(), Closed>> {
        self.reader.poll_read(cx, sink)
    }

    fn park(&mut self, sink: &mut dyn FnMut(&[u8])) -> Result<(), Closed> {
        if self.writer.is_idle() { self.reader.park(sink) } else { Err(Closed) }
    }
}
