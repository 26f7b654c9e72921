//! What clients send and get: bodies, answers and errors of the HTTP API.
//!
//! A body is read into a request whose [`emberline_protocol::job::GenerationRequest`] the function
//! publishes as a job; answers are made of what the job's log says. A body's type is both its schema in
//! `/openapi.json` and what bodies are held against ([`schema`]).
//!
//! The crate compiles for wasm and natively and does no I/O. Open [`chat`] first.

pub mod answer;
pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod error;
pub mod models;
mod neutral;
mod numbers;
mod offer;
pub mod parameters;
pub mod paths;
mod prompt_logprobs;
pub mod responses;
pub mod schema;
mod structured;
pub mod token_details;
pub mod tokenize;
