//! Promises that the simulated engine is enough to show: what is accepted, refused, queued and charged.

mod availability;
mod background;
mod bad_requests;
mod cors;
mod deadline;
mod idempotency;
mod keys;
mod limits;
mod long_answers;
mod openapi;
mod queue;
mod scale_from_zero;
