//! Emberline's worker: takes jobs from NATS, has them run by emberline-inference, publishes events.
//!
//! [`registry`] loads the models that are wanted and unloads those that are not. For each of them
//! [`intake`] pulls jobs and hands them to the model's engine, which runs on a thread of its own;
//! what comes out is published as the job's event log. [`tokens`] turns text into tokens for whoever
//! asks, [`stored_request`] says whether a background job is still wanted and erases what is not,
//! [`heartbeat`] says what this worker serves and how busy it is, [`summary`] sums up what all workers of
//! its models say, and [`health`] answers probes. [`serve`] brings them together.

pub mod config;
pub mod direct_get;
pub mod health;
pub mod heartbeat;
pub mod intake;
pub mod logging;
pub mod nats;
pub mod registry;
pub mod serve;
pub mod shader_cache;
pub mod stored_request;
pub mod summary;
pub mod tokens;
