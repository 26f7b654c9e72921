//! The endpoints.

pub mod chat;
pub mod completions;
mod not_found;
pub mod openapi;
pub mod responses;
pub mod router;
