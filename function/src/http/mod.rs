//! HTTP, apart from what any endpoint says: bodies in, headers and complete replies out.

pub mod body;
pub mod cors;
pub mod reply;
pub mod request_timeout;
pub mod response_headers;
