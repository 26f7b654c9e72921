//! Products of rows with a packed matrix.
//!
//! 32 threads, the *lanes*, share an output: lane l sums the units l, l + 32, … of the row in this
//! order, and the 32 sums are added in a fixed order. The number of rows and outputs whose sums a
//! thread holds in registers depends on the shape of the product, but the order of the additions does
//! not. So a row's bits do not depend on the other rows.
//!
//! A thread reads 16 bytes of each of its outputs at once. The rows' numbers go through shared memory,
//! for a lane multiplies numbers that are not adjacent to those of the next lane.
//!
//! Where a device has matrix units, [they](matrix_units) multiply most formats, in another order.
//!
//! A norm before the product needs no kernel of its own: the row is multiplied with the norm's weights
//! as it is read, its squares are summed at the same time, and the result is scaled.

mod kernel;
pub(crate) mod matrix_units;
mod variant;

use burn::backend::wgpu::CubeTensor;
use burn::cubecl;
use burn::cubecl::prelude::*;

use self::kernel::matmul_kernel;
use self::matrix_units::Layout;
use self::variant::{Epilogue, THREADS, Tile, Variant};
use super::dequant::{MAGIC, unit_vectors};
use super::launch;
use super::pack;
use crate::types::{Activation, MatrixSpec, Precision};

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
    /// Bytes that a cube reads.
    pub(crate) cube_bytes: usize,
    /// Bytes that are read or written before the product, in a launch of its own.
    pub(crate) prepared_bytes: usize,
}

/// A product, except for the rows.
pub(crate) struct Matmul<'a> {
    pub(crate) weight: &'a CubeTensor,
    pub(crate) spec: MatrixSpec,
    /// Weights and epsilon of the RMS norm of the rows, if there is one.
    pub(crate) norm: Option<(&'a CubeTensor, f32)>,
    pub(crate) residual: Option<&'a CubeTensor>,
    pub(crate) activation: Option<Activation>,
    /// Of products on matrix units; others are exact.
    pub(crate) precision: Precision,
}

/// What a kernel reads.
struct Inputs {
    /// `[rows, 4 * vectors]`
    x: CubeTensor,
    rows: usize,
    vectors: usize,
    gamma: Option<CubeTensor>,
    residual: Option<CubeTensor>,
    quants: BufferArg,
    scales: BufferArg,
}

impl<'a> Matmul<'a> {
    /// The plain product.
    pub(crate) fn new(weight: &'a CubeTensor, spec: MatrixSpec, precision: Precision) -> Self {
        Self { weight, spec, norm: None, residual: None, activation: None, precision }
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
        let epilogue = self.epilogue();
        let padded = 4 * pack::units(dtype, inputs) * unit_vectors(dtype);
        let layout = Layout::of(x.client.properties(), self.spec);
        let (quants, scales) = pack::buffers(self.weight, self.spec, layout);
        let inputs = Inputs {
            x: pad(x, padded),
            rows,
            vectors: padded / 4,
            gamma: self.norm.map(|(gamma, _)| pad(launch::contiguous(gamma.clone()), padded)),
            residual: self.residual.map(|residual| launch::contiguous(residual.clone())),
            quants,
            scales,
        };
        match layout {
            Layout::Rows => self.launch_on_lanes(inputs, epilogue, &out),
            Layout::Tiles => self.launch_on_matrix_units(inputs, epilogue, &out),
        }
        out
    }

    fn launch_on_lanes(&self, inputs: Inputs, epilogue: Epilogue, out: &CubeTensor) {
        let MatrixSpec { dtype, inputs: width, .. } = self.spec;
        let Inputs { x, rows, gamma, residual, quants, scales, .. } = inputs;
        let outputs = self.spec.outputs / if self.activation.is_some() { 2 } else { 1 };
        let tile = Tile::new(dtype, rows, self.spec.outputs);
        let variant = Variant { dtype, norm: self.norm.is_some(), epilogue, tile };
        let count =
            CubeCount::Static(rows.div_ceil(tile.rows) as u32, outputs.div_ceil(variant.wide()) as u32, 1);
        launch::count();
        // SAFETY: the kernel stays below `rows` and `outputs`, and the buffers have the sizes that
        // follow from these and the number of units.
        #[allow(unsafe_code)]
        unsafe {
            matmul_kernel::launch_unchecked(
                &x.client.clone(),
                count,
                CubeDim::new_1d(THREADS as u32),
                launch::buffer(&x),
                launch::buffer(gamma.as_ref().unwrap_or(&x)),
                quants,
                scales,
                launch::buffer(residual.as_ref().unwrap_or(&x)),
                launch::buffer(out),
                rows,
                outputs,
                pack::units(dtype, width),
                pack::scale_words(dtype, width),
                MAGIC,
                width as f32,
                self.norm.map_or(0.0, |(_, epsilon)| epsilon),
                variant,
            );
        }
    }

    /// How `rows` rows are multiplied with the matrix.
    #[cfg(feature = "report")]
    pub(crate) fn product(&self, rows: usize, layout: Layout) -> Product {
        let spec = self.spec;
        if layout == Layout::Tiles {
            return matrix_units::product(spec, rows, self.norm.is_some(), self.epilogue());
        }
        let tile = Tile::new(spec.dtype, rows, spec.outputs);
        let variant =
            Variant { dtype: spec.dtype, norm: self.norm.is_some(), epilogue: self.epilogue(), tile };
        let weights = THREADS / variant::LANES * tile.outputs * spec.row_bytes();
        Product {
            spec,
            rows: tile.rows,
            weights: 4 * variant.step_vectors() / variant::LANES * tile.outputs,
            iterations: spec.inputs.div_ceil(4 * variant.step_vectors()),
            cube_bytes: weights + 4 * (tile.rows + usize::from(variant.norm)) * spec.inputs,
            prepared_bytes: 0,
        }
    }

    fn epilogue(&self) -> Epilogue {
        match (self.activation, self.residual) {
            (Some(activation), _) => Epilogue::Gate(activation),
            (None, Some(_)) => Epilogue::Add,
            (None, None) => Epilogue::Store,
        }
    }
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
