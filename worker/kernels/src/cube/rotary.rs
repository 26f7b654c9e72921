//! Bias, head norm and rotary embedding of a step's queries, keys and values, and the store to the
//! cache.

use burn::backend::wgpu::CubeTensor;
use burn::cubecl;
use burn::cubecl::prelude::*;

use super::attention::has_halves;
use super::halves::pack_halves;
use super::launch;
use super::rms_norm::cube_sum;
use crate::types::{BLOCK_SIZE, HeadShape};

/// Threads of a cube.
const THREADS: usize = 64;

/// Constants that are compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    norm: bool,
    bias: bool,
    /// Whether a word of the cache has two f16.
    halves: bool,
}

/// The arguments of [`crate::rotate_and_store`] except the cache.
pub(crate) struct Projections {
    pub(crate) qkv: CubeTensor,
    pub(crate) bias: CubeTensor,
    pub(crate) norms: CubeTensor,
    pub(crate) rotary: CubeTensor,
    pub(crate) rows: CubeTensor,
}

/// Stores keys and values, and returns the queries.
pub(crate) fn rotate_and_store(
    projections: Projections,
    keys: &CubeTensor,
    values: &CubeTensor,
    shape: HeadShape,
) -> CubeTensor {
    let qkv = launch::contiguous(projections.qkv);
    let rows = qkv.meta.shape()[0];
    let queries = launch::empty(&qkv, &[rows, shape.query_width()], qkv.dtype);
    if rows == 0 {
        return queries;
    }
    // An unused tensor may be empty, which is no valid argument.
    let buffer = |used: bool, tensor: CubeTensor| if used { launch::contiguous(tensor) } else { qkv.clone() };
    let heads = Heads {
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        rotary_dim: shape.rotary_dim,
        norm: shape.head_norm.is_some(),
        bias: shape.bias,
        halves: has_halves(keys, shape),
    };
    let positions = projections.rotary.meta.shape()[0];
    let slots = keys.meta.shape()[0] * BLOCK_SIZE;
    launch::count();
    // SAFETY: the kernel stays within the slots of the pool, the positions of the table and the widths
    // of `shape`. Pools are created contiguous and never reshaped.
    #[allow(unsafe_code)]
    unsafe {
        rotate_kernel::launch_unchecked(
            &qkv.client.clone(),
            CubeCount::Static(rows as u32, (shape.heads + 2 * shape.kv_heads) as u32, 1),
            CubeDim::new_1d(THREADS as u32),
            launch::buffer(&qkv),
            launch::buffer(&buffer(shape.bias, projections.bias)),
            launch::buffer(&buffer(shape.head_norm.is_some(), projections.norms)),
            launch::buffer(&buffer(shape.rotary_dim > 0, projections.rotary)),
            launch::buffer(&launch::contiguous(projections.rows)),
            launch::buffer(&queries),
            launch::buffer(keys),
            launch::buffer(values),
            slots,
            positions,
            shape.head_norm.unwrap_or(0.0),
            heads,
        );
    }
    queries
}

/// A cube computes one head of one row.
#[allow(clippy::too_many_arguments)]
#[cube(launch_unchecked)]
fn rotate_kernel(
    qkv: &[f32],
    bias: &[f32],
    norms: &[f32],
    rotary: &[f32],
    rows: &[u32],
    queries: &mut [f32],
    keys: &mut [u32],
    values: &mut [u32],
    slots: usize,
    positions: usize,
    epsilon: f32,
    #[comptime] shape: Heads,
) {
    let Heads { heads, kv_heads, head_dim, norm, bias: biased, halves, .. } = comptime!(shape);
    let unit = UNIT_POS as usize;
    let row = CUBE_POS_X as usize;
    let head = CUBE_POS_Y as usize;
    let is_value = head >= heads + kv_heads;
    let source = row * (heads + 2 * kv_heads) * head_dim + head * head_dim;

    let mut numbers = Shared::<[f32]>::new_slice(head_dim);
    let mut sum = 0.0f32;
    for d in range_stepped(unit, head_dim, THREADS) {
        let mut number = qkv[source + d];
        if comptime!(biased) {
            number += bias[head * head_dim + d];
        }
        numbers[d] = number;
        sum = fma(number, number, sum);
    }
    if comptime!(norm) {
        let mut sums = Shared::<[f32]>::new_slice(THREADS);
        sums[unit] = sum;
        let scale = 1.0 / (cube_sum(&mut sums, THREADS) / f32::cast_from(head_dim) + epsilon).sqrt();
        if !is_value {
            let which = select(head < heads, 0usize, head_dim);
            for d in range_stepped(unit, head_dim, THREADS) {
                numbers[d] = numbers[d] * scale * norms[which + d];
            }
        }
    }
    sync_cube();

    let position = min(rows[3 * row] as usize, positions - 1);
    let slot = rows[3 * row + 2] as usize;
    if head < heads {
        for d in range_stepped(unit, head_dim, THREADS) {
            queries[(row * heads + head) * head_dim + d] = rotated(&numbers, rotary, position, d, shape);
        }
    } else if slot < slots {
        let kv_head = (head - heads) % kv_heads;
        let words = comptime!(if halves { head_dim.div_ceil(2) } else { head_dim });
        let part = (slot / BLOCK_SIZE * kv_heads + kv_head) * comptime!(words * BLOCK_SIZE);
        let offset = slot % BLOCK_SIZE;
        for i in range_stepped(unit, words, THREADS) {
            if is_value {
                let low = numbers[i];
                values[part + offset * words + i] = if comptime!(halves) {
                    pack_halves(low, upper(i + words, numbers[min(i + words, head_dim - 1)], head_dim))
                } else {
                    u32::reinterpret(low)
                };
            } else {
                let low = rotated(&numbers, rotary, position, i, shape);
                keys[part + i * BLOCK_SIZE + offset] = if comptime!(halves) {
                    let at = min(i + words, head_dim - 1);
                    pack_halves(
                        low,
                        upper(i + words, rotated(&numbers, rotary, position, at, shape), head_dim),
                    )
                } else {
                    u32::reinterpret(low)
                };
            }
        }
    }
}

/// Number `d` of a query or key after rotation.
#[cube]
fn rotated(
    numbers: &Shared<[f32]>,
    rotary: &[f32],
    position: usize,
    d: usize,
    #[comptime] shape: Heads,
) -> f32 {
    let rotary_dim = comptime!(shape.rotary_dim);
    let half = comptime!(rotary_dim / 2);
    let mut number = numbers[d];
    if comptime!(rotary_dim > 0) && d < rotary_dim {
        let pair = d % half;
        let cos = rotary[position * rotary_dim + pair];
        let sin = rotary[position * rotary_dim + half + pair];
        let a = numbers[pair];
        let b = numbers[pair + half];
        number = select(d < half, a * cos - b * sin, b * cos + a * sin);
    }
    number
}

/// What the upper half of a word has: `number`, or zero if an odd width leaves nothing for it.
#[cube]
fn upper(d: usize, number: f32, #[comptime] head_dim: usize) -> f32 {
    select(d < head_dim, number, 0.0)
}
