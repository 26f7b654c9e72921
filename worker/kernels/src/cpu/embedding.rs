//! Single rows of packed weights.

use std::marker::PhantomData;

use super::disjoint::Parts;
use super::format::{self, Format, GROUP, OCTET, each_format};
use super::pack::{PANELS, STRIP, Strips};
use super::simd::{self, Kernel, LANES, Simd, With};
use super::threads;
use crate::ggml::GgmlType;

/// The rows with these numbers; an id that the table doesn't have gives zeros.
pub(crate) fn embedding(table: &Strips<'_>, ids: &[usize]) -> Vec<f32> {
    let width = table.inputs;
    let mut out = vec![0.0; ids.len() * width];
    let parts = Parts::new(&mut out);
    threads::each_of_many(ids.len(), 8, |index| {
        // SAFETY: each row is written once.
        #[allow(unsafe_code)]
        let out = unsafe { parts.part(index * width, width) };
        if ids[index] < table.outputs {
            simd::with(Row { table, row: ids[index], out });
        }
    });
    out
}

struct Row<'a> {
    table: &'a Strips<'a>,
    row: usize,
    out: &'a mut [f32],
}

impl With for Row<'_> {
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

    /// Decodes the panel that has the row, and keeps one lane of it.
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Row { table, row, out } = self.row;
        let bytes = table.strip(row / STRIP);
        let (panel, lane) = (row % STRIP / LANES, row % LANES);
        let mut decoded = [[0.0; LANES]; OCTET];
        for (index, out) in out.chunks_mut(OCTET).enumerate() {
            let (block, group) = (index * OCTET / F::LEN, index * OCTET % F::LEN / GROUP);
            let record = &bytes[(block * PANELS + panel) * F::RECORD..][..F::RECORD];
            let scales = F::scales(s, record, group);
            let weights = F::octet(s, record, group, index % (GROUP / OCTET), scales);
            for i in 0..OCTET {
                s.store(&mut decoded[i], weights[i]);
            }
            for (out, decoded) in out.iter_mut().zip(&decoded) {
                *out = decoded[lane];
            }
        }
    }
}
