//! What function, worker and command line agree on over NATS.
//!
//! The function publishes a [`job::Job`]. A worker answers with [`event::Event`]s in the job's log, obeys
//! [`control::Control`] messages, and announces the models that it serves in [`heartbeat::Heartbeat`]s.
//! [`log::EventLog`] reads a job's log. [`subject`] and [`streams`] name and configure the subjects, streams
//! and buckets in NATS, and [`error::ApiError`] is the one form of every failure.
//!
//! The crate compiles for wasm and natively and does no I/O. Start with [`job`].

pub mod bytes;
pub mod control;
pub mod counter;
pub mod dead_letter;
pub mod error;
pub mod event;
pub mod heartbeat;
pub mod job;
pub mod key;
pub mod lane;
pub mod log;
pub mod logprob;
pub mod measurement;
pub mod prompt;
pub mod relaxed;
pub mod stored_request;
pub mod streams;
pub mod subject;
pub mod tokens;
pub mod tools;
pub mod usage;

/// Version of the job, event, control and heartbeat messages. A reader refuses a higher one.
pub const PROTOCOL_VERSION: u32 = 4;
