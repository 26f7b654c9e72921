//! Promises about what the real model says, on the CPU.

mod background;
mod bad_requests;
mod cancel;
mod chat;
mod choices;
mod completions;
mod concurrency;
mod models;
mod parameters;
mod response_format;
mod responses;
mod sampling;
mod schemathesis;
mod token_details;
mod tools;

/// How many cases ask the model at the same time, on a stack that they share.
const AT_ONCE: usize = 4;
