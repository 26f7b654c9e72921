//! Emberline's worker: takes jobs from NATS, runs the model with burn, publishes events.
//!
//! `models` loads the models that are wanted and lets those go that are not. For each of them
//! `intake` pulls jobs and hands them to the `engine`, which runs on a thread of its own and
//! computes step by step; what comes out is published as the job's event log. The engine's parts:
//! `gguf` and `hf` read a model's files, `tokenizer` and `template` turn messages into token ids,
//! `model` is the network over the operations of emberline-kernels, `sampling` picks tokens that
//! `constraint` allows, `text` assembles them into what may be sent. `tokens` turns text into tokens
//! for whoever asks. Open [`engine`] first.

pub mod bench;
pub mod bus;
mod clock;
pub mod config;
pub mod constraint;
pub mod device;
pub mod engine;
pub mod gguf;
pub mod heartbeat;
pub mod hf;
pub mod intake;
pub mod model;
pub mod models;
pub mod sampling;
pub mod serve;
pub mod template;
pub mod text;
pub mod tokenizer;
pub mod tokens;
