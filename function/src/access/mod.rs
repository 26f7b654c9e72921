//! Who sends a request, and which models they may use.

pub mod caller;
