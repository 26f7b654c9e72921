//! What Emberline's two sides must agree on, and nothing else.
//!
//! The function turns an HTTP body into a [`chat::ChatRequest`], wraps its
//! [`job::GenerationRequest`] in a [`job::Job`] and publishes that; a worker answers with
//! [`event::Event`]s, is steered by [`control::Control`] messages and tells what it serves in
//! [`heartbeat::Heartbeat`]s. [`subject`] names the places in NATS where each of these lives,
//! and [`error::ApiError`] is the one shape in which anything fails.
//!
//! The crate compiles for wasm and natively and does no I/O. Open [`chat`] first.

pub mod answer;
pub mod bytes;
pub mod chat;
pub mod completions;
pub mod control;
pub mod dead_letter;
pub mod embeddings;
pub mod error;
pub mod event;
pub mod heartbeat;
pub mod hex;
pub mod job;
pub mod key;
pub mod lane;
pub mod limits;
pub mod measurement;
pub mod models;
mod neutral;
mod numbers;
mod offer;
pub mod parameters;
pub mod paths;
pub mod prompt;
pub mod record;
pub mod relaxed;
pub mod responses;
pub mod schema;
pub mod streams;
mod structured;
pub mod subject;
pub mod token_details;
pub mod tokenize;
pub mod tokens;
pub mod tools;
pub mod usage;

/// Version of the job, event, control and heartbeat messages. A reader refuses a higher one.
pub const PROTOCOL_VERSION: u32 = 4;
