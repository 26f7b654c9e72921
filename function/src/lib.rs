//! Emberline's HTTP front: a WebAssembly function for Spin (WASIp3).
//!
//! A request passes through these modules, in this order: [`cors`], [`route`], [`config`],
//! [`auth`], [`body`], [`patience`] (how long does the client wait?), [`models`] (who serves it?),
//! [`limits`] and [`queue`] (is there room?), [`job`] (what is queued), [`kept`] (if its answer can be asked for
//! again), [`relay`] (what comes back) and [`sse`], [`responses`], [`piece`] or [`reply`] (how the
//! client is told). [`openapi`] describes
//! it all. [`nats`] is the protocol to the
//! message bus. All of them are free of I/O and are tested natively; `io`, which exists for
//! wasm only, connects them to sockets, clocks and bodies. Open `io/service.rs` first.
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
pub mod nats;
pub mod relay;
pub mod response;

#[cfg(target_family = "wasm")]
mod io;
