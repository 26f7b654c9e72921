//! Whether a request may run: rate limits, the model's queue, and whether a worker serves the model.

pub mod queue;
pub mod rate_limit;
pub mod served_models;
