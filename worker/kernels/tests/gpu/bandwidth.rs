//! The bandwidth measurement. Its unit tests check the copy and the figure.

use emberline_kernels::{copy_bandwidth, traffic};

use crate::support::gpu;

/// The first copy compiles the kernel, eight runs are timed, and each has eight copies.
const COPIES: u64 = (1 + 8) * 8;

#[test]
fn every_copy_of_the_measurement_is_counted() {
    let before = traffic().launches;
    let figure = copy_bandwidth(&gpu(), 32 << 20).unwrap();
    println!("{:.1} GB/s", figure / 1e9);
    assert!(figure.is_normal(), "{figure} bytes/s");
    // Other tests may launch kernels meanwhile.
    assert!(traffic().launches - before >= COPIES);
}
