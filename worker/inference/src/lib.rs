//! Emberline's inference: runs language models with burn, for many requests at once.
//!
//! [`engine`] is what a worker drives: jobs of `emberline-protocol` go in, events come out. Its parts:
//! [`checkpoint`] reads a model's files, [`tokenizer`] and [`template`] turn messages into token ids,
//! [`scheduler`] decides what each step computes, [`network`] computes it over the operations of
//! emberline-kernels, [`sampling`] chooses tokens among those that [`constraint`] allows, and
//! [`detokenizer`] turns them into text that may be sent. [`bench`] measures all of it. Nothing here
//! knows NATS. Open [`engine`] first.

pub mod bench;
pub mod checkpoint;
pub mod clock;
pub mod constraint;
pub mod detokenizer;
pub mod device;
pub mod engine;
pub mod memory;
pub mod network;
pub mod sampling;
pub mod scheduler;
pub mod speculation;
pub mod template;
pub mod tokenizer;
