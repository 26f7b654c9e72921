//! Dequantises single rows of a packed matrix.

use burn::backend::DType;
use burn::backend::wgpu::CubeTensor;
use burn::cubecl;
use burn::cubecl::prelude::*;

use super::dequant::{second_place, unit_numbers, unit_place};
use super::launch;
use super::pack::{self, UNIT};
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
    let units = pack::units(inputs);
    if rows * units == 0 {
        return out;
    }
    let (quants, scales) = pack::buffers(table, spec);
    launch::count();
    // SAFETY: the kernel clamps ids to `outputs - 1` and stays below `rows` and `inputs`.
    #[allow(unsafe_code)]
    unsafe {
        embedding_kernel::launch_unchecked(
            &ids.client,
            CubeCount::Static(rows as u32, units.div_ceil(THREADS) as u32, 1),
            CubeDim::new_1d(THREADS as u32),
            pack::unit_words(dtype).min(4),
            launch::buffer(&ids),
            quants,
            scales,
            launch::buffer(&out),
            outputs,
            inputs,
            units,
            pack::scale_words(dtype, inputs),
            dtype,
        );
    }
    out
}

#[allow(clippy::too_many_arguments)]
#[cube(launch_unchecked)]
fn embedding_kernel<N: Size>(
    ids: &[u32],
    quants: &[Vector<u32, N>],
    scales: &[u32],
    out: &mut [f32],
    outputs: usize,
    inputs: usize,
    units: usize,
    stride: usize,
    #[comptime] dtype: GgmlType,
) {
    let row = CUBE_POS_X as usize;
    let unit = CUBE_POS_Y as usize * THREADS + UNIT_POS as usize;
    if unit < units {
        let id = min(ids[row] as usize, outputs - 1);
        let numbers = unit_numbers::<N>(quants, scales, id, unit, units, stride, dtype);
        let first = 4 * unit_place(unit, dtype);
        let second = first + comptime!(4 * second_place(dtype));
        #[unroll]
        for i in 0..comptime!(UNIT / 2) {
            if first + i < inputs {
                out[row * inputs + first + i] = numbers.first.extract(i);
            }
            if second + i < inputs {
                out[row * inputs + second + i] = numbers.second.extract(i);
            }
        }
    }
}
