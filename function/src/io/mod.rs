//! All of the function's I/O, on WASIp3 as Spin offers it.
//!
//! [`service`] receives a request, finds out who sent it ([`context`]) and calls the endpoint
//! ([`chat`], [`responses`] and their like), which calls the rest: [`generation`] makes jobs of it
//! or finds those that it repeats, [`limits`] counts them, [`kept`] keeps what can be asked for
//! again, [`bus`] hands out NATS connections and knows what is served, [`exchange`] carries one job
//! from its publication to its last event and [`jobs`] several, [`answer`] writes what comes to the
//! client. [`stream`], [`socket`] and [`connection`] are the layers below.
//!
//! Nothing here waits for another request of the same instance: component-model tasks can't
//! wake each other. What requests share ([`bus`]'s connections and cache) is plain data.

mod answer;
mod bus;
mod chat;
mod clock;
mod completions;
mod connection;
mod context;
mod embeddings;
mod exchange;
mod generation;
mod jobs;
mod kept;
mod limits;
mod responses;
mod service;
mod socket;
mod stream;
mod tokens;

/// Writes to the instance's standard error, which Spin keeps as the component's log.
fn log(context: &str, reason: impl std::fmt::Display) {
    eprintln!("emberline-function: {context}: {reason}");
}

/// Where Spin enters.
#[spin_sdk::http_service]
async fn handle(
    request: spin_sdk::http::Request,
) -> Result<spin_sdk::wasip3::http::types::Response, spin_sdk::wasip3::http::types::ErrorCode> {
    service::serve(request).await
}
