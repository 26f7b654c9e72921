//! Promises about the text itself, shown with the real model on the CPU.

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
mod tokens_told;
mod tools;
