//! Every operation on the GPU matches the reference, and a row's bits depend on nothing but the row.
//!
//! Without a GPU the tests run on a software adapter, which `make test` installs.

#![allow(clippy::unwrap_used, clippy::expect_used)] // also in functions that the tests call

mod bandwidth;
mod cache;
mod matmul;
mod sampling;
mod support;
