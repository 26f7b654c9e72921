//! What a worker promises on NATS, shown with a real nats-server, the real binary and the
//! simulated engine.

// What fails in here fails the test.
#![allow(clippy::unwrap_used)]

mod background;
mod budgets;
mod charges;
mod jobs;
mod lanes;
mod lifecycle;
mod log;
mod models;
mod permissions;
mod probes;
mod summaries;
mod support;
mod swaps;
mod takeover;
mod tokens;
