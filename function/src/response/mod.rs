//! How an answer is written: as server-sent events, or whole.

pub mod sse;
pub mod usage;
pub mod whole_response;
