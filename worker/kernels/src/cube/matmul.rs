//! Products of rows with a packed matrix.
//!
//! 32 threads, the *lanes*, share an output: lane l sums the units l, l + 32, … of the row in this
//! order, and the 32 sums are added in a fixed order. The number of rows and outputs whose sums a
//! thread holds in registers depends on the shape of the product, but the order of the additions does
//! not. So a row's bits do not depend on the other rows.
//!
//! A norm before the product needs no kernel of its own: the row is multiplied with the norm's weights
//! as it is read, its squares are summed at the same time, and the result is scaled.

use burn::backend::wgpu::CubeTensor;
use burn::cubecl;
use burn::cubecl::prelude::*;

use super::dequant::{F4, second_place, unit_numbers, unit_place};
use super::launch;
use super::pack;
use crate::ggml::GgmlType;
use crate::types::{Activation, MatrixSpec};

/// Threads that share an output.
const LANES: usize = 32;
/// Words of shared memory for the lanes' sums of a column: one more than there are lanes, so that
/// adjacent threads read from different banks.
const COLUMN: usize = LANES + 1;

/// What is applied to a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Epilogue {
    /// Nothing.
    Store,
    /// A residual is added.
    Add,
    /// The activation of the first half of the outputs is multiplied with the second half.
    Gate(Activation),
}

/// How the work is divided. It does not change any result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Tile {
    /// Rows whose sums a thread holds.
    rows: usize,
    /// Matrix rows whose sums a thread holds.
    outputs: usize,
    /// Groups of [`LANES`] threads in a cube.
    groups: usize,
}

/// What is compiled into a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Variant {
    dtype: GgmlType,
    norm: bool,
    epilogue: Epilogue,
    tile: Tile,
}

impl Variant {
    fn gated(&self) -> bool {
        matches!(self.epilogue, Epilogue::Gate(_))
    }

    /// Outputs of a thread for one row.
    fn results(&self) -> usize {
        if self.gated() { self.tile.outputs / 2 } else { self.tile.outputs }
    }

    /// Number of sums that a thread holds.
    fn sums(&self) -> usize {
        self.tile.rows * self.tile.outputs
    }
}

/// The sums of a thread.
#[derive(CubeType)]
struct Sums {
    /// `[rows, outputs]`.
    products: Array<f32>,
    /// `[rows]`.
    squares: Array<f32>,
}

#[allow(clippy::too_many_arguments)]
#[cube(launch_unchecked)]
fn matmul_kernel<N: Size>(
    x: &[F4],
    gamma: &[F4],
    quants: &[Vector<u32, N>],
    scales: &[u32],
    residual: &[f32],
    out: &mut [f32],
    rows: usize,
    outputs: usize,
    units: usize,
    stride: usize,
    width: f32,
    epsilon: f32,
    #[comptime] variant: Variant,
) {
    let tile = comptime!(variant.tile);
    let sums = comptime!(variant.sums());
    let threads = comptime!(LANES * tile.groups);
    let results = comptime!(variant.results());
    let lane = UNIT_POS as usize % LANES;
    let group = UNIT_POS as usize / LANES;
    let first_row = CUBE_POS_X as usize * tile.rows;
    let first_output = CUBE_POS_Y as usize * (tile.groups * results);

    let mut acc = Sums { products: Array::new(sums), squares: Array::new(tile.rows) };
    #[unroll]
    for i in 0..sums {
        acc.products[i] = 0.0;
    }
    #[unroll]
    for r in 0..tile.rows {
        acc.squares[r] = 0.0;
    }
    let mut matrix_rows = Array::<usize>::new(tile.outputs);
    #[unroll]
    for o in 0..tile.outputs {
        // Outputs beyond the last are computed like the last, but not stored.
        let output = min(first_output + group * results + o % results, outputs - 1);
        matrix_rows[o] = output + (o / results) * outputs;
    }
    for unit in range_stepped(lane, units, LANES) {
        let place = unit_place(unit, variant.dtype);
        let second = comptime!(second_place(variant.dtype));
        let mut weights = Array::<F4>::new(comptime!(2 * tile.outputs));
        #[unroll]
        for o in 0..tile.outputs {
            let numbers =
                unit_numbers::<N>(quants, scales, matrix_rows[o], unit, units, stride, variant.dtype);
            weights[2 * o] = numbers.first;
            weights[2 * o + 1] = numbers.second;
        }
        let mut gammas = Array::<F4>::new(2usize);
        if comptime!(variant.norm) {
            gammas[0] = gamma[place];
            gammas[1] = gamma[place + second];
        }
        #[unroll]
        for r in 0..tile.rows {
            let row = min(first_row + r, rows - 1) * (2 * units);
            let mut first = x[row + place];
            let mut last = x[row + place + second];
            if comptime!(variant.norm) {
                if group == 0 {
                    acc.squares[r] = sum_of_products(first, first, acc.squares[r]);
                    acc.squares[r] = sum_of_products(last, last, acc.squares[r]);
                }
                first *= gammas[0];
                last *= gammas[1];
            }
            #[unroll]
            for o in 0..tile.outputs {
                let at = comptime!(r * tile.outputs + o);
                acc.products[at] = sum_of_products(weights[2 * o], first, acc.products[at]);
                acc.products[at] = sum_of_products(weights[2 * o + 1], last, acc.products[at]);
            }
        }
    }

    let mut shared = Shared::<[f32]>::new_slice(comptime!(tile.groups * sums * COLUMN));
    #[unroll]
    for i in 0..sums {
        shared[(group * sums + i) * COLUMN + lane] = acc.products[i];
    }
    let mut row_scales = Shared::<[f32]>::new_slice(tile.rows);
    if comptime!(variant.norm) {
        let mut squares = Shared::<[f32]>::new_slice(comptime!(tile.rows * COLUMN));
        if group == 0 {
            #[unroll]
            for r in 0..tile.rows {
                squares[r * COLUMN + lane] = acc.squares[r];
            }
        }
        sync_cube();
        if (UNIT_POS as usize) < tile.rows {
            let sum = column_sum(&squares, UNIT_POS as usize);
            let mean = sum / width;
            row_scales[UNIT_POS as usize] = 1.0 / (mean + epsilon).sqrt();
        }
    }
    sync_cube();

    let wide = comptime!(tile.groups * results);
    #[unroll]
    for i in 0..comptime!((tile.rows * wide).div_ceil(threads)) {
        let at = UNIT_POS as usize + i * threads;
        let r = at / wide;
        let o = at % wide;
        let row = first_row + r;
        let output = first_output + o;
        if at < tile.rows * wide && row < rows && output < outputs {
            let column = (o / results) * sums + r * tile.outputs + o % results;
            let mut value = column_sum(&shared, column);
            if comptime!(variant.norm) {
                value *= row_scales[r];
            }
            match variant.epilogue {
                Epilogue::Store => {}
                Epilogue::Add => {
                    value += residual[row * outputs + output];
                }
                Epilogue::Gate(activation) => {
                    let mut up = column_sum(&shared, column + results);
                    if comptime!(variant.norm) {
                        up *= row_scales[r];
                    }
                    value = activate(value, activation) * up;
                }
            }
            out[row * outputs + output] = value;
        }
    }
}

/// `sum` plus the four products, added in order.
#[cube]
fn sum_of_products(a: F4, b: F4, sum: f32) -> f32 {
    let mut sum = sum;
    #[unroll]
    for i in 0..4usize {
        sum = fma(a.extract(i), b.extract(i), sum);
    }
    sum
}

/// The total of the lanes' sums of a column.
#[cube]
fn column_sum(shared: &[f32], column: usize) -> f32 {
    let base = column * COLUMN;
    let mut quarters = Array::<f32>::new(4usize);
    #[unroll]
    for q in 0..4usize {
        quarters[q] = shared[base + q];
    }
    #[unroll]
    for i in 1..comptime!(LANES / 4) {
        #[unroll]
        for q in 0..4usize {
            quarters[q] += shared[base + 4 * i + q];
        }
    }
    (quarters[0] + quarters[1]) + (quarters[2] + quarters[3])
}

#[cube]
fn activate(x: f32, #[comptime] activation: Activation) -> f32 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = 0.797_884_6 * fma(0.044715 * x * x, x, x);
            // Far from zero tanh is ±1, but on some GPUs it overflows.
            0.5 * x * (1.0 + min(max(inner, -15.0), 15.0).tanh())
        }
    }
}

/// How a product goes through its matrix.
#[cfg(feature = "report")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    /// Format and shape of the matrix.
    pub(crate) spec: MatrixSpec,
    /// Rows that a thread multiplies with each weight that it reads.
    pub(crate) rows: usize,
    /// Weights that a thread reads in an iteration of the kernel's loop.
    pub(crate) weights: usize,
    /// Number of iterations.
    pub(crate) iterations: usize,
}

/// A product, except for the rows.
pub(crate) struct Matmul<'a> {
    pub(crate) weight: &'a CubeTensor,
    pub(crate) spec: MatrixSpec,
    /// Weights and epsilon of the RMS norm of the rows, if there is one.
    pub(crate) norm: Option<(&'a CubeTensor, f32)>,
    pub(crate) residual: Option<&'a CubeTensor>,
    pub(crate) activation: Option<Activation>,
}

impl<'a> Matmul<'a> {
    /// The plain product.
    pub(crate) fn new(weight: &'a CubeTensor, spec: MatrixSpec) -> Self {
        Self { weight, spec, norm: None, residual: None, activation: None }
    }

    /// Multiplies the rows of `x`.
    pub(crate) fn launch(&self, x: CubeTensor) -> CubeTensor {
        let MatrixSpec { dtype, inputs, .. } = self.spec;
        let rows = x.meta.shape()[0];
        let outputs = self.spec.outputs / if self.activation.is_some() { 2 } else { 1 };
        let x = launch::contiguous(x);
        let out = launch::empty(&x, &[rows, outputs], x.dtype);
        if rows == 0 || outputs == 0 {
            return out;
        }
        let epilogue = match (self.activation, self.residual) {
            (Some(activation), _) => Epilogue::Gate(activation),
            (None, Some(_)) => Epilogue::Add,
            (None, None) => Epilogue::Store,
        };
        let tile = tile(rows, self.spec.outputs);
        let variant = Variant { dtype, norm: self.norm.is_some(), epilogue, tile };
        let count = CubeCount::Static(
            rows.div_ceil(tile.rows) as u32,
            outputs.div_ceil(tile.groups * variant.results()) as u32,
            1,
        );
        let units = pack::units(inputs);
        let x = pad(x, units * pack::UNIT);
        let gamma = self.norm.map(|(gamma, _)| pad(launch::contiguous(gamma.clone()), units * pack::UNIT));
        let residual = self.residual.map(|residual| launch::contiguous(residual.clone()));
        let (quants, scales) = pack::buffers(self.weight, self.spec);
        launch::count();
        // SAFETY: the kernel stays below `rows` and `outputs`, and the buffers have the sizes that
        // follow from these and `units`.
        #[allow(unsafe_code)]
        unsafe {
            matmul_kernel::launch_unchecked(
                &x.client.clone(),
                count,
                CubeDim::new_1d((LANES * tile.groups) as u32),
                pack::unit_words(dtype).min(4),
                launch::buffer(&x),
                launch::buffer(gamma.as_ref().unwrap_or(&x)),
                quants,
                scales,
                launch::buffer(residual.as_ref().unwrap_or(&x)),
                launch::buffer(&out),
                rows,
                outputs,
                units,
                pack::scale_words(dtype, inputs),
                inputs as f32,
                self.norm.map_or(0.0, |(_, epsilon)| epsilon),
                variant,
            );
        }
        out
    }

    /// How `rows` rows are multiplied with a matrix.
    #[cfg(feature = "report")]
    pub(crate) fn product(spec: MatrixSpec, rows: usize) -> Product {
        let tile = tile(rows, spec.outputs);
        Product {
            spec,
            rows: tile.rows,
            weights: tile.outputs * pack::UNIT,
            iterations: pack::units(spec.inputs).div_ceil(LANES),
        }
    }
}

/// For few rows and outputs, enough threads to fill a GPU; for more, more sums in registers.
fn tile(rows: usize, outputs: usize) -> Tile {
    let tile_rows = match rows {
        1 => 1,
        2 => 2,
        3 | 4 => 4,
        _ => 8,
    };
    // With a gate, half of them are rows of gate and half are rows of up.
    let outputs = if outputs >= 4096 || tile_rows == 8 { 4 } else { 2 };
    Tile { rows: tile_rows, outputs, groups: 4 }
}

/// Rows padded with zeros to `width`. Only matrices of plain floats need it.
fn pad(x: CubeTensor, width: usize) -> CubeTensor {
    let row_width = x.meta.shape().last().copied().unwrap_or(width);
    if row_width == width {
        return x;
    }
    let rows = x.meta.num_elements() / row_width.max(1);
    let out = launch::empty(&x, &[rows, width], x.dtype);
    launch::count();
    // SAFETY: the kernel stays within the `rows * width` elements of `out` and the rows of `x`.
    #[allow(unsafe_code)]
    unsafe {
        pad_kernel::launch_unchecked(
            &x.client,
            CubeCount::Static((rows * width).div_ceil(64) as u32, 1, 1),
            CubeDim::new_1d(64),
            launch::buffer(&x),
            launch::buffer(&out),
            rows,
            row_width,
            width,
        );
    }
    out
}

#[cube(launch_unchecked)]
fn pad_kernel(x: &[f32], out: &mut [f32], rows: usize, row_width: usize, width: usize) {
    let row = ABSOLUTE_POS / width;
    let column = ABSOLUTE_POS % width;
    if row < rows {
        let inside = min(column, row_width - 1);
        out[ABSOLUTE_POS] = select(column < row_width, x[row * row_width + inside], 0.0);
    }
}
