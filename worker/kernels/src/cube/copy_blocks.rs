//! Copies whole cache blocks.

use std::collections::HashSet;

use burn::backend::wgpu::CubeTensor;
use burn::cubecl;
use burn::cubecl::prelude::*;

use super::launch;
use crate::traffic::{self, Traffic};

/// Threads of a cube.
const THREADS: usize = 256;

/// Copies blocks `(from, to)` of both pools, with the result of copying them in order.
pub(crate) fn copy_blocks(keys: &CubeTensor, values: &CubeTensor, pairs: &[(u32, u32)]) {
    let written: HashSet<u32> = pairs.iter().map(|&(_, to)| to).collect();
    let independent = written.len() == pairs.len() && pairs.iter().all(|(from, _)| !written.contains(from));
    let pairs_per_launch = if independent { pairs.len() } else { 1 };
    for pairs in pairs.chunks(pairs_per_launch.max(1)) {
        copy(keys, values, pairs);
    }
}

/// Copies `pairs` in one launch, in no particular order.
fn copy(keys: &CubeTensor, values: &CubeTensor, pairs: &[(u32, u32)]) {
    let shape = keys.meta.shape();
    let (blocks, size) = (shape[0], shape.iter().skip(1).product::<usize>());
    let bytes: Vec<u8> =
        pairs.iter().flat_map(|(from, to)| [*from, *to]).flat_map(u32::to_le_bytes).collect();
    let table = keys.client.create_from_slice(&bytes);
    traffic::add(Traffic::UPLOAD);
    launch::count();
    // SAFETY: the kernel stays within the `blocks` blocks of `size` words of both pools.
    #[allow(unsafe_code)]
    unsafe {
        copy_kernel::launch_unchecked(
            &keys.client,
            CubeCount::Static(pairs.len() as u32, size.div_ceil(THREADS) as u32, 1),
            CubeDim::new_1d(THREADS as u32),
            launch::slice(table, 2 * pairs.len()),
            launch::buffer(keys),
            launch::buffer(values),
            blocks,
            size,
        );
    }
}

#[cube(launch_unchecked)]
fn copy_kernel(pairs: &[u32], keys: &mut [u32], values: &mut [u32], blocks: usize, size: usize) {
    let from = pairs[2 * CUBE_POS_X as usize] as usize;
    let to = pairs[2 * CUBE_POS_X as usize + 1] as usize;
    let at = CUBE_POS_Y as usize * THREADS + UNIT_POS as usize;
    if at < size && from < blocks && to < blocks {
        keys[to * size + at] = keys[from * size + at];
        values[to * size + at] = values[from * size + at];
    }
}
