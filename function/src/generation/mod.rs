//! From a validated request to its jobs.

pub mod job;
pub mod stored_request;
