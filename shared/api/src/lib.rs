//! Request bodies, answers and errors of the HTTP API.
//!
//! A request body is parsed into a request that contains a
//! [`emberline_protocol::job::GenerationRequest`], which the function publishes as a job. Answers are built
//! from the job's event log. The type of a body defines its schema, which `/openapi.json` contains and
//! against which bodies are validated ([`schema`]).
//!
//! The crate compiles for wasm and natively and does no I/O. Start reading at [`chat`].

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
