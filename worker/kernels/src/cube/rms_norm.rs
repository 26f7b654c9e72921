//! The RMS norm of rows.

use burn::backend::wgpu::CubeTensor;
use burn::cubecl;
use burn::cubecl::prelude::*;

use super::launch;

/// Threads of a cube.
const THREADS: usize = 64;

/// See [`crate::rms_norm`].
pub(crate) fn rms_norm(x: CubeTensor, gamma: CubeTensor, epsilon: f32) -> CubeTensor {
    let (x, gamma) = (launch::contiguous(x), launch::contiguous(gamma));
    let shape = x.meta.shape().to_vec();
    let out = launch::empty(&x, &shape, x.dtype);
    let width = shape.last().copied().unwrap_or_default();
    let rows = x.meta.num_elements() / width.max(1);
    if rows == 0 {
        return out;
    }
    launch::count();
    // SAFETY: there is one cube for each row, and it stays within the `width` elements of its row.
    #[allow(unsafe_code)]
    unsafe {
        rms_norm_kernel::launch_unchecked(
            &x.client,
            CubeCount::Static(rows as u32, 1, 1),
            CubeDim::new_1d(THREADS as u32),
            launch::buffer(&x),
            launch::buffer(&gamma),
            launch::buffer(&out),
            width,
            epsilon,
        );
    }
    out
}

#[cube(launch_unchecked)]
fn rms_norm_kernel(x: &[f32], gamma: &[f32], out: &mut [f32], width: usize, epsilon: f32) {
    let base = CUBE_POS_X as usize * width;
    let mut sum = 0.0f32;
    for i in range_stepped(UNIT_POS as usize, width, THREADS) {
        sum = fma(x[base + i], x[base + i], sum);
    }
    let mut sums = Shared::<[f32]>::new_slice(THREADS);
    sums[UNIT_POS as usize] = sum;
    let scale = 1.0 / (cube_sum(&mut sums, THREADS) / f32::cast_from(width) + epsilon).sqrt();
    for i in range_stepped(UNIT_POS as usize, width, THREADS) {
        out[base + i] = x[base + i] * scale * gamma[i];
    }
}

/// The sum of `sums`, which has one element for each of `threads` threads, a power of two.
#[cube]
pub(crate) fn cube_sum(sums: &mut [f32], #[comptime] threads: usize) -> f32 {
    let unit = UNIT_POS as usize;
    sync_cube();
    #[unroll]
    for level in 0..comptime!(threads.ilog2() as usize) {
        let half = comptime!(threads >> (level + 1));
        if unit < half {
            sums[unit] += sums[unit + half];
        }
        sync_cube();
    }
    sums[0]
}
