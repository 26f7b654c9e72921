//! Decodes single rows of a packed matrix.

use std::marker::PhantomData;

use super::disjoint::DisjointMut;
use super::format::{self, CHUNK, Format, GROUP, each_format};
use super::pack::{PANELS, PackedMatrix, STRIP_OUTPUTS};
use super::simd::{self, Kernel, LANES, Simd, WithSimd};
use super::threads;
use crate::ggml::GgmlType;

/// The rows `ids` of `table`, `[ids, inputs]`. An id outside the table gives a row of zeros.
pub(crate) fn embedding(table: &PackedMatrix<'_>, ids: &[usize]) -> Vec<f32> {
    let width = table.inputs;
    let mut out = vec![0.0; ids.len() * width];
    let shared = DisjointMut::new(&mut out);
    threads::for_each_if_many(ids.len(), 8, |index| {
        // SAFETY: each row is written once.
        #[allow(unsafe_code)]
        let out = unsafe { shared.slice_mut(index * width, width) };
        if ids[index] < table.outputs {
            simd::dispatch(Row { table, row: ids[index], out });
        }
    });
    out
}

struct Row<'a> {
    table: &'a PackedMatrix<'a>,
    row: usize,
    out: &'a mut [f32],
}

impl WithSimd for Row<'_> {
    fn call<S: Simd>(self, s: S) {
        macro_rules! of {
            ($($dtype:ident: $format:ty,)+) => {
                match self.table.dtype {
                    $(GgmlType::$dtype => s.run(RowOf::<$format> { row: self, format: PhantomData }),)+
                }
            };
        }
        each_format!(of);
    }
}

struct RowOf<'a, F> {
    row: Row<'a>,
    format: PhantomData<F>,
}

impl<F: Format> Kernel for RowOf<'_, F> {
    type Output = ();

    /// Decodes the row's panel and keeps one of its lanes.
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Row { table, row, out } = self.row;
        let bytes = table.strip(row / STRIP_OUTPUTS);
        let (panel, lane) = (row % STRIP_OUTPUTS / LANES, row % LANES);
        let mut decoded = [[0.0; LANES]; CHUNK];
        for (index, out) in out.chunks_mut(CHUNK).enumerate() {
            let (block, group) = (index * CHUNK / F::INPUTS, index * CHUNK % F::INPUTS / GROUP);
            let record = &bytes[(block * PANELS + panel) * F::BYTES..][..F::BYTES];
            let scales = F::scales(s, record, group);
            let weights = F::decode(s, record, group, index % (GROUP / CHUNK), scales);
            for i in 0..CHUNK {
                s.store(&mut decoded[i], weights[i]);
            }
            for (out, decoded) in out.iter_mut().zip(&decoded) {
                *out = decoded[lane];
            }
        }
    }
}
