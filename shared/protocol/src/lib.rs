//! What function, worker and command line agree on over NATS.
//!
//! The function publishes a [`job::Job`]. A worker answers with [`chunk::Chunk`]s of events, live and in
//! the job's log, obeys [`control::Control`] messages, and announces the models that it serves in [`heartbeat::Heartbeat`]s,
//! which one worker of each model sums up in a [`model_summary::ModelSummary`].
//! [`log::EventLog`] reads a job's log. [`subject`] and [`streams`] name and configure the subjects, streams
//! and buckets in NATS, and [`error::ApiError`] is the one form of every failure.
//!
//! The crate compiles for wasm and natively and does no I/O. Start with [`job`].

pub mod bytes;
pub mod chunk;
pub mod control;
pub mod counter;
pub mod dead_letter;
pub mod error;
pub mod event;
pub mod heartbeat;
pub mod jetstream_domain;
pub mod job;
pub mod key;
pub mod lane;
pub mod log;
pub mod log_budget;
pub mod logprob;
pub mod malformed;
pub mod measurement;
pub mod model_summary;
pub mod permissions;
pub mod prompt;
pub mod read_index;
pub mod relaxed;
pub mod size;
pub mod stored_request;
pub mod streams;
pub mod subject;
pub mod tokens;
pub mod tools;
pub mod usage;
pub mod versioned;

/// Version of the job, event, control and heartbeat messages. Function and workers refuse each other's messages
/// of any other version: [`upgrade`] says which of them to upgrade.
pub const PROTOCOL_VERSION: u32 = 5;

/// What to do about a message of another version, from the `writer` to the `reader` that has this version.
pub fn upgrade(version: u32, writer: &str, reader: &str) -> String {
    let older = if version < PROTOCOL_VERSION { writer } else { reader };
    format!("it has protocol version {version}, the {reader} has {PROTOCOL_VERSION}: upgrade the {older}")
}
