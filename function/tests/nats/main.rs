//! The function, natively, against a real nats-server: its own NATS client over tokio's sockets, admission,
//! generation and the relay. A worker that follows a script takes the jobs.
//!
//! nats-server is EMBERLINE_TEST_NATS, or `nats-server` on the PATH.

#![allow(clippy::expect_used, clippy::unwrap_used)]

mod admission;
mod budgets;
mod generation;
mod heartbeats;
mod messages;
mod offline;
mod refusals;
mod retries;
mod secured;
mod server;
mod stored_requests;
mod tokens;
mod tokio_platform;
mod worker;
