//! Emberline's HTTP front: a WebAssembly function for Spin (WASIp3).
//!
//! [`service`] takes a request: it finds the endpoint in the table ([`endpoints`]), identifies the sender
//! ([`access`]), reads the body ([`http`]) and calls the endpoint's handler. A handler that generates text asks for
//! admission ([`admission`]), queues jobs in NATS ([`generation`], [`nats`]), follows their event logs ([`relay`])
//! and writes the answer ([`response`]). [`request`] and [`instance`] are what handlers and requests share, [`memory`]
//! says how much of it they hold, and [`config`] are the settings.
//!
//! All of this is the same in WebAssembly and natively, where it is tested: what it needs of its host is the trait
//! [`platform::Platform`], and `wasi`, which exists for WebAssembly only, is its implementation on Spin.
//!
//! A panic in one request would end every stream of its instance, so nothing here may panic:
//! the lints below refuse what could.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unreachable,
    clippy::unwrap_used
)]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unwrap_used
    )
)]

pub mod access;
pub mod admission;
pub mod cache;
pub mod config;
pub mod endpoints;
pub mod generation;
pub mod http;
pub mod instance;
pub mod memory;
pub mod nats;
pub mod platform;
pub mod relay;
pub mod request;
pub mod response;
pub mod service;

#[cfg(target_family = "wasm")]
mod wasi;
