//! `emberline doctor` and faults that are planted in real servers: each is found by name, with a remedy, and nothing
//! is changed by looking.

#![allow(clippy::unwrap_used, reason = "a step of a test that fails ends the test")]

mod bus;
mod function;
mod servers;
mod support;
