//! What the tests start and measure with.
//!
//! A [`stack::Stack`] is the whole of Emberline on ports that the system chose: nats-server, workers and
//! the function's host. [`load`] keeps clients asking and checks every answer, [`proxy`] breaks or counts
//! what goes over a connection, [`network`] puts processes on two hosts, [`cases`] runs several tests against one stack.
//!
//! The tests need what `make test` prepares: the workspace's programs, `build/function.wasm`, the model
//! and nats-server in the cache folder. EMBERLINE_TEST_HOST=spin runs the function under Spin,
//! EMBERLINE_TEST_BUS=tls or edge has it reach NATS on another way ([`bus_way`]), and EMBERLINE_TEST_LOGS=1 shows what
//! the processes log.

pub mod background;
pub mod bus_way;
pub mod cases;
pub mod certificates;
pub mod cli;
pub mod cluster;
pub mod compare;
pub mod event_logs;
pub mod event_watcher;
pub mod events;
pub mod golden;
mod host;
pub mod jwt;
pub mod leaf_node;
pub mod load;
pub mod nats;
pub mod network;
pub mod options;
pub mod paths;
pub mod process;
pub mod proxy;
pub mod random;
pub mod simulated;
pub mod sse;
pub mod stack;
pub mod wait;
pub mod workers;
