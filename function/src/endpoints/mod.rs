//! The endpoints. [`ENDPOINTS`] is the one table of them: routing and `Allow` ([`router`]), the document at
//! `/openapi.json` ([`openapi`]) and dispatch ([`crate::service`]) follow from it.
//!
//! An endpoint is a constant of type [`Endpoint`] beside its handler, in the folder or file that is named after it.
//! To add one, write it and list it here.

pub mod chat;
pub mod completions;
mod embeddings;
pub mod endpoint;
mod models;
mod not_found;
pub mod openapi;
pub mod responses;
pub mod router;
mod status;
mod tokens;

pub use endpoint::Endpoint;

/// All endpoints, in the order in which `/openapi.json` lists them.
pub static ENDPOINTS: &[&Endpoint] = &[
    &chat::CREATE,
    &completions::CREATE,
    &responses::CREATE,
    &tokens::COUNT_INPUT,
    &responses::RETRIEVE,
    &responses::DELETE,
    &responses::CANCEL,
    &embeddings::CREATE,
    &tokens::TOKENIZE,
    &tokens::DETOKENIZE,
    &models::LIST,
    &models::RETRIEVE,
    &status::HEALTH,
    &status::READY,
    &status::VERSION,
    &openapi::OPENAPI,
];
