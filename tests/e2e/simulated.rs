//! Promises that the simulated engine is enough to show: what is accepted, refused, queued and charged.

mod availability;
mod background;
mod choices;
mod cors;
mod deadline;
mod examples;
mod hostile;
mod idempotency;
mod keys;
mod leaf_node;
mod limits;
mod long_answers;
mod openapi;
mod queue;
mod requests;
mod scale_from_zero;
mod time_limit;
mod versions;
mod ways;
