//! Dequantises single rows of a packed matrix.

use burn::backend::DType;
use burn::backend::wgpu::CubeTensor;
use burn::cubecl;
use burn::cubecl::prelude::*;

use super::dequant::{
    F4, MAGIC, U4, factor_sets, load_side, side_words, unit_factors, unit_place, unit_vector, unit_vectors,
    vector_place,
};
use super::launch;
use super::matmul::matrix_units::{Layout, unit_words};
use super::pack;
use crate::ggml::GgmlType;
use crate::types::MatrixSpec;

/// Threads of a cube.
const THREADS: usize = 64;

/// Rows `ids` of `table`: `[ids, inputs]`.
pub(crate) fn embedding(ids: CubeTensor, table: &CubeTensor, spec: MatrixSpec) -> CubeTensor {
    let MatrixSpec { dtype, outputs, inputs } = spec;
    let ids = launch::contiguous(ids);
    let rows = ids.meta.num_elements();
    let out = launch::empty(&ids, &[rows, inputs], DType::F32);
    let units = pack::units(dtype, inputs);
    if rows * units == 0 {
        return out;
    }
    let layout = Layout::of(ids.client.properties(), spec);
    let (quants, scales) = pack::buffers(table, spec, layout);
    launch::count();
    // SAFETY: the kernel clamps ids to `outputs - 1` and stays below `rows` and `inputs`.
    #[allow(unsafe_code)]
    unsafe {
        embedding_kernel::launch_unchecked(
            &ids.client,
            CubeCount::Static(rows as u32, units.div_ceil(THREADS) as u32, 1),
            CubeDim::new_1d(THREADS as u32),
            launch::buffer(&ids),
            quants,
            scales,
            launch::buffer(&out),
            outputs,
            inputs,
            units,
            layout.padded(units),
            pack::scale_words(dtype, inputs),
            MAGIC,
            dtype,
            layout,
        );
    }
    out
}

/// A thread expands one unit.
#[allow(clippy::too_many_arguments)]
#[cube(launch_unchecked)]
fn embedding_kernel(
    ids: &[u32],
    quants: &[U4],
    scales: &[u32],
    out: &mut [f32],
    outputs: usize,
    inputs: usize,
    units: usize,
    padded: usize,
    stride: usize,
    magic: u32,
    #[comptime] dtype: GgmlType,
    #[comptime] layout: Layout,
) {
    let row = CUBE_POS_X as usize;
    let unit = CUBE_POS_Y as usize * THREADS + UNIT_POS as usize;
    if unit < units {
        let id = min(ids[row] as usize, outputs - 1);
        let words = unit_words(quants, id, unit, padded, layout);
        let mut side = Array::<u32>::new(comptime!(side_words(dtype).max(1)));
        load_side(&mut side, 0usize, scales, id * stride, unit, units, dtype);
        let factors = unit_factors(&side, 0usize, unit, magic, dtype);
        let first = unit_place(unit, dtype);
        #[unroll]
        for index in 0..comptime!(unit_vectors(dtype)) {
            let mut numbers = unit_vector(words, &side, 0usize, unit, index, magic, dtype);
            if comptime!(factor_sets(dtype) > 0) {
                let own = comptime!(factor_sets(dtype) == 2 && index >= 4);
                let scale = if comptime!(own) { factors.scale_1 } else { factors.scale_0 };
                let offset = if comptime!(own) { factors.offset_1 } else { factors.offset_0 };
                numbers = fma(numbers, F4::new(scale), F4::new(offset));
            }
            let place = 4 * (first + comptime!(vector_place(dtype, index)));
            #[unroll]
            for i in 0..4usize {
                if place + i < inputs {
                    out[row * inputs + place + i] = numbers.extract(i);
                }
            }
        }
    }
}
