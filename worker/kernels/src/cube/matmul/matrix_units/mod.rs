//! Products on matrix units (NVIDIA calls them tensor cores), for any number of rows.
//!
//! One instruction multiplies 16 outputs with 16 inputs of 8 rows: weights as f16 integers, rows as pairs of f16, sums in
//! f32. Each row is a column of its own, so its bits do not depend on the other rows. The inputs are divided into
//! [four parts](variant::PARTS); each is summed group by group in order, and then the parts in order, however planes and
//! cubes share the work.
//!
//! Up to four rows, each cube makes the [`fragments`](rows) of its rows itself, as it needs them. With more, a kernel of
//! its own does so once for all.

mod kernel;
mod layout;
mod rows;
mod variant;
mod weights;

use burn::backend::DType;
use burn::backend::wgpu::CubeTensor;
use burn::cubecl::prelude::*;

use self::kernel::matrix_unit_kernel;
use self::layout::{GROUP, LANES};
use self::rows::{COLUMNS, fragments_kernel};
use self::variant::{Shape, Variant};
use super::variant::Epilogue;
use super::{Inputs, Matmul};
use crate::cube::launch;
use crate::cube::pack;
use crate::types::{MatrixSpec, Precision};

pub(crate) use self::layout::{Layout, in_tiles, unit_words};

/// Rows as fragments, and what their results are multiplied with.
struct Fragments {
    words: CubeTensor,
    after: CubeTensor,
}

impl Matmul<'_> {
    pub(super) fn launch_on_matrix_units(&self, inputs: Inputs, epilogue: Epilogue, out: &CubeTensor) {
        let MatrixSpec { dtype, outputs, inputs: width } = self.spec;
        let gated = matches!(epilogue, Epilogue::Gate(_));
        let shape = Shape::new(dtype, inputs.rows, gated);
        let exact = self.precision == Precision::Exact;
        let variant = Variant { dtype, norm: self.norm.is_some(), exact, epilogue, shape };
        let outputs = outputs / if gated { 2 } else { 1 };
        let units = pack::units(dtype, width);
        let fragments = (shape.own_rows == 0).then(|| self.fragments(&inputs, shape, units));
        let x = &inputs.x;
        let (words, after) = fragments.as_ref().map_or((x, x), |made| (&made.words, &made.after));
        let count = CubeCount::Static(
            inputs.rows.div_ceil(shape.rows()) as u32,
            outputs.div_ceil(variant.wide()) as u32,
            1,
        );
        launch::count();
        // SAFETY: the kernel stays below `rows` and `outputs`, and the buffers have the sizes that
        // follow from these and `units`.
        #[allow(unsafe_code)]
        unsafe {
            matrix_unit_kernel::launch_unchecked(
                &x.client,
                count,
                CubeDim::new_1d(shape.threads() as u32),
                launch::buffer(x),
                launch::buffer(inputs.gamma.as_ref().unwrap_or(x)),
                launch::buffer(words),
                launch::buffer(after),
                inputs.quants,
                inputs.scales,
                launch::buffer(inputs.residual.as_ref().unwrap_or(x)),
                launch::buffer(out),
                inputs.rows,
                outputs,
                inputs.vectors,
                units,
                pack::scale_words(dtype, width),
                width as f32,
                self.norm.map_or(0.0, |(_, epsilon)| epsilon),
                variant,
            );
        }
    }

    fn fragments(&self, inputs: &Inputs, shape: Shape, units: usize) -> Fragments {
        let MatrixSpec { dtype, inputs: width, .. } = self.spec;
        let groups = units.div_ceil(GROUP);
        let eights = inputs.rows.div_ceil(shape.rows()) * shape.eights;
        let count = eights * groups * weights::steps(dtype) * LANES;
        let x = &inputs.x;
        let words = launch::empty(x, &[count, 4], DType::I32);
        let after = launch::empty(x, &[eights * COLUMNS], DType::F32);
        launch::count();
        // SAFETY: there is one cube for each row, which writes the row's fragments and its place in `after`.
        #[allow(unsafe_code)]
        unsafe {
            fragments_kernel::launch_unchecked(
                &x.client,
                CubeCount::Static(inputs.rows as u32, 1, 1),
                CubeDim::new_1d(rows::THREADS as u32),
                launch::buffer(x),
                launch::buffer(inputs.gamma.as_ref().unwrap_or(x)),
                launch::buffer(&words),
                launch::buffer(&after),
                inputs.rows,
                inputs.vectors,
                groups,
                width as f32,
                self.norm.map_or(0.0, |(_, epsilon)| epsilon),
                self.norm.is_some(),
                dtype,
            );
        }
        Fragments { words, after }
    }
}

/// How a plane of `rows` rows goes through its matrix.
#[cfg(feature = "report")]
pub(super) fn product(spec: MatrixSpec, rows: usize, norm: bool, epilogue: Epilogue) -> super::Product {
    let shape = Shape::new(spec.dtype, rows, matches!(epilogue, Epilogue::Gate(_)));
    let variant = Variant { dtype: spec.dtype, norm, exact: true, epilogue, shape };
    let groups = pack::units(spec.dtype, spec.inputs).div_ceil(GROUP);
    let planes = if shape.divided { variant::PARTS } else { 1 };
    super::Product {
        spec,
        rows: rows.min(shape.rows()),
        weights: variant.batch_weights(),
        iterations: groups.div_ceil(planes).div_ceil(variant.batch()),
        cube_bytes: variant.cube_bytes(spec),
        // Rows are read, and their fragments written.
        prepared_bytes: if shape.own_rows == 0 { 8 * rows * spec.inputs } else { 0 },
    }
}
