//! What function, worker and command line agree on over NATS.
//!
//! The function publishes a [`job::Job`]; a worker answers with [`event::Event`]s in the job's log, is
//! steered by [`control::Control`] messages and announces what it serves in [`heartbeat::Heartbeat`]s. What a log says is read by [`log::EventLog`].
//! [`subject`] and [`streams`] name the places in NATS where each of these lives, and
//! [`error::ApiError`] is the one shape in which anything fails.
//!
//! The crate compiles for wasm and natively and does no I/O. Open [`job`] first.

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
