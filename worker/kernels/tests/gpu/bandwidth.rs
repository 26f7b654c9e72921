//! The large copy.

use emberline_kernels::{copy_bandwidth, dispatches};

use crate::support::gpu;

#[test]
fn a_large_copy_takes_a_sane_time_and_is_counted() {
    let before = dispatches();
    let rate = copy_bandwidth(&gpu(), 32 << 20).unwrap();
    println!("{:.1} GB/s", rate / 1e9);
    assert!((1e8..1e14).contains(&rate), "{rate} bytes/s");
    assert!(dispatches() > before);
}
