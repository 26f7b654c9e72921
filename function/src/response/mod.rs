//! How an answer is written: whole ([`whole_response`]) or as server-sent events ([`sse`]). [`streamed_reply`]
//! moves either from its jobs to its client while the response is under way.

pub mod sse;
pub mod streamed_reply;
pub mod usage;
pub mod whole_response;

use bytes::Bytes;
use emberline_protocol::error::ApiError;

use self::streamed_reply::StreamedReply;
use crate::http::reply;
use crate::relay::Output;

/// What an endpoint answers with.
pub enum Reply {
    /// Complete.
    Whole(http::Response<Bytes>),
    /// Its body is written while the response is under way.
    Streamed(Box<StreamedReply>),
}

impl Reply {
    /// A complete answer in JSON.
    pub fn json(body: &impl serde::Serialize) -> Self {
        Self::Whole(reply::json(200, serde_json::to_vec(body).unwrap_or_default()))
    }
}

/// Writes the body of one response, as its endpoint has it. Each frame is to be sent at once.
pub trait ResponseWriter {
    /// The frames before any output of the relay.
    fn begin(&mut self) -> Vec<Bytes>;

    /// The frames for an output of the relay.
    fn on_output(&mut self, output: Output) -> Vec<Bytes>;

    /// The last frames if the relay itself fails.
    fn on_error(&mut self, error: &ApiError) -> Vec<Bytes>;

    /// The frame that is sent when there was nothing to send for a while.
    fn keep_alive(&self) -> Bytes {
        sse::KEEP_ALIVE
    }

    /// Why the transfer is to be broken off, for a body that can't say itself that it failed.
    fn failure(&self) -> Option<&ApiError> {
        None
    }

    /// How many bytes of frames a client may leave unread.
    fn max_backlog(&self) -> usize;

    /// How much memory it takes for what it has gathered.
    fn held_bytes(&self) -> usize {
        0
    }
}
