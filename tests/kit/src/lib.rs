//! Support for the end-to-end tests: a real nats-server, the real function in its host and real
//! workers, started and ended by each test. The tests lie in `tests/`, one file per promise.
//!
//! They need what `make test` prepares: the workspace's binaries, `build/function.wasm`, the
//! model and nats-server in the cache folder. EMBERLINE_TEST_HOST=spin runs them under Spin,
//! EMBERLINE_TEST_LOGS=1 shows the processes' logs.

pub mod both;
pub mod chaos;
pub mod cluster;
pub mod cut;
pub mod emberline;
pub mod event_logs;
pub mod golden;
pub mod nats;
pub mod process;
pub mod proxy;
pub mod seed;
pub mod simulated;
pub mod sse;
pub mod stack;
pub mod workers;
