//! Every operation on the GPU against its reference, and that a row's bits depend on nothing but itself.
//!
//! Runs on a software adapter where there is no GPU: `make test` installs one.

#![allow(clippy::unwrap_used, clippy::expect_used)] // also in the functions that tests call

mod bandwidth;
mod cache;
mod matmul;
mod sampling;
mod support;
