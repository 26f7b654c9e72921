//! Runs Emberline's function on this machine the way Spin runs it.
//!
//! For machines without the `spin` binary, and for tests. What works here works on Spin 4.1:
//! the same instance reuse, the same limits on sockets, the same variables. A manifest that Spin
//! refuses is refused; what Spin offers and this host does not is refused by name. What else differs
//! is listed in `docs/design/spin.md`.
//!
//! # Layout
//! - [`manifest`]: reads `spin.toml`, with [`ids`] for its names.
//! - [`variables`]: templates (`{{ name }}`) and the values behind them.
//! - [`allowed_hosts`]: which addresses a component may connect to.
//! - [`routes`]: which component answers a path.
//! - [`function`]: one component on wasmtime: its imports, its instances, their reuse.
//! - [`guest_log`]: what a component prints, as log lines.
//! - [`server`]: HTTP in front of the components, and an orderly end.
//!
//! A request goes from [`server`] through [`routes`] to the [`function`], whose response body
//! is written to the socket frame by frame. A client that leaves makes the component's next
//! body write fail; nothing else tells it.

pub mod allowed_hosts;
pub mod function;
pub mod guest_log;
pub mod ids;
pub mod manifest;
pub mod routes;
pub mod server;
pub mod variables;
