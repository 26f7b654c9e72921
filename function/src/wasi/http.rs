//! Where Spin enters: requests in and responses out, by `wasi:http` 0.3.

use std::rc::Rc;

use http_body_util::{BodyExt, Full};
use spin_sdk::http::{IntoResponse, Request};
use spin_sdk::wasip3::http::types::{ErrorCode as HttpError, Fields, Response};
use spin_sdk::wasip3::http_compat::BodyWriter;
use spin_sdk::wasip3::spawn;

use super::byte_stream::ByteWriter;
use super::platform::SpinPlatform;
use crate::http::reply;
use crate::instance::Instance;
use crate::platform::report;
use crate::response::Reply;
use crate::response::streamed_reply::StreamedReply;
use crate::service;

thread_local! {
    static INSTANCE: Rc<Instance> = Instance::new(Rc::new(SpinPlatform));
}

#[spin_sdk::http_service]
async fn handle(request: Request) -> Result<Response, HttpError> {
    let instance = INSTANCE.with(Rc::clone);
    let request =
        request.map(|body| -> service::IncomingBody { Box::pin(body.map_err(|error| format!("{error:?}"))) });
    match service::serve(&instance, request).await {
        Reply::Whole(reply) => reply.map(Full::new).into_response(),
        Reply::Streamed(reply) => begin(*reply),
    }
}

/// Begins a response whose body is written while it is under way.
fn begin(reply: StreamedReply) -> Result<Response, HttpError> {
    let headers =
        reply.headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()));
    let headers: Vec<_> = headers.collect();
    let headers = match Fields::from_list(&headers) {
        Ok(headers) => headers,
        Err(error) => {
            report("response", error);
            return reply::error(&reply::internal_error()).map(Full::new).into_response();
        }
    };
    let (body, contents, result) = BodyWriter::new();
    let (response, _transmitted) = Response::new(headers, Some(contents), result);
    spawn(async move {
        let BodyWriter { stream_writer, result_writer, .. } = body;
        let written = reply.write(ByteWriter::new(stream_writer)).await;
        let result = written.map(|()| None).map_err(|reason| HttpError::InternalError(Some(reason)));
        // If the client has disconnected, nobody takes the result.
        let _ = result_writer.write(result).await;
    });
    Ok(response)
}
