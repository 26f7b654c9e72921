//! A large copy, to see what the device's memory can do.

use std::time::Instant;

use burn::backend::{CubeDevice, ExecutionError};
use burn::cubecl;
use burn::cubecl::prelude::*;
use burn::tensor::Device;

use super::dequant::F4;
use super::launch;
use crate::timing::{fastest, rate};

const THREADS: usize = 256;
/// Fours that a thread copies.
const EACH: usize = 4;
/// Copies between two looks at the clock, so that waiting for the device doesn't count much.
const COPIES: usize = 8;

/// See [`crate::copy_bandwidth`].
pub(crate) fn copy_bandwidth(
    cube: &CubeDevice,
    device: &Device,
    bytes: usize,
) -> Result<f64, ExecutionError> {
    let client = cube.client();
    let limit = client.properties().memory.max_page_size as usize;
    // A cube's share at a time, and no more cubes than fit into two dimensions.
    let share = THREADS * EACH * 16;
    let cubes = (bytes.min(limit) / share).clamp(1, 65535);
    let from = client.empty(cubes * share);
    let to = client.empty(cubes * share);
    let run = || {
        for _ in 0..COPIES {
            launch::count();
            // SAFETY: `cubes` cubes copy `THREADS * EACH` fours each, as large as both buffers are.
            #[allow(unsafe_code)]
            unsafe {
                copy_kernel::launch_unchecked(
                    &client,
                    CubeCount::Static(cubes as u32, 1, 1),
                    CubeDim::new_1d(THREADS as u32),
                    launch::part(from.clone(), cubes * share / 16),
                    launch::part(to.clone(), cubes * share / 16),
                );
            }
        }
        device.sync()
    };
    run()?;
    let mut failed = None;
    let took = fastest(|| {
        let start = Instant::now();
        failed = run().err().or(failed.take());
        start.elapsed() / COPIES as u32
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(rate(cubes * share, took)),
    }
}

#[cube(launch_unchecked)]
fn copy_kernel(from: &[F4], to: &mut [F4]) {
    let first = CUBE_POS_X as usize * comptime!(THREADS * EACH) + UNIT_POS as usize;
    #[unroll]
    for i in 0..EACH {
        to[first + i * THREADS] = from[first + i * THREADS];
    }
}
