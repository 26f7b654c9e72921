//! HTTP, apart from what any endpoint says: bodies, headers and complete replies.

pub mod body;
pub mod cors;
pub mod reply;
pub mod request_timeout;
