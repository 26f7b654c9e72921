//! `/v1/responses`.

mod event;
mod query;
mod state;
mod stream;

pub use event::Event;
pub use query::Query;
pub use state::{Story, job_of, not_found, response_id};
pub use stream::Telling;
