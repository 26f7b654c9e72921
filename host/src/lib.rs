//! Runs Emberline's function on this machine the way Spin runs it.
//!
//! It is for tests and for machines without the `spin` binary. What works here works on Spin 4.1: instances
//! are reused in the same way, sockets have the same limits, and variables the same sources. A manifest that
//! Spin refuses is refused; one that asks for something this host lacks is refused by name. The remaining
//! differences are listed in `docs/design/spin.md`.
//!
//! # Layout
//! - [`manifest`]: reads and checks `spin.toml`, with [`ids`] for its names.
//! - [`variables`]: templates (`{{ name }}`) and the values behind them.
//! - [`allowed_hosts`]: which addresses a component may connect to, and [`outbound_http`]: the requests that it sends.
//! - [`routes`]: which component handles a path.
//! - [`function`]: runs one component on wasmtime: its imports, its instances and their reuse.
//! - [`guest_log`]: logs what a component prints.
//! - [`server`]: serves HTTP and shuts down in order.
//!
//! A request goes from [`server`] through [`routes`] to the [`function`], whose response body is written to the
//! socket frame by frame. When a client disconnects, the component's next write to the body fails; there is no
//! other sign.

pub mod allowed_hosts;
mod cut_body;
pub mod function;
pub mod guest_log;
pub mod ids;
pub mod manifest;
pub mod outbound_http;
pub mod routes;
pub mod server;
pub mod variables;
