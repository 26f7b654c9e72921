//! Quantises weights while they are loaded.

use clap::ValueEnum;
use emberline_kernels::MatrixSpec;
use emberline_kernels::ggml::{GgmlType, extend_f32, quantize_q4_0, quantize_q8_0};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};
use serde::Deserialize;

use super::rows::WeightRows;
use super::tensor_names::TensorRole;

/// The format to which weights are quantised that a file stores as floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Quantize {
    /// 8 bits, ggml's Q8_0.
    Q8,
    /// 4 bits, ggml's Q4_0; embedding and head have 8.
    Q4,
}

/// Writes whole rows of numbers as blocks.
type Quantizer = fn(&[f32], &mut [u8]);

impl Quantize {
    fn target(self, part: TensorRole) -> (GgmlType, Quantizer) {
        match (self, part) {
            (Self::Q8, _) | (Self::Q4, TensorRole::Embedding | TensorRole::Head) => {
                (GgmlType::Q8_0, quantize_q8_0)
            }
            (Self::Q4, _) => (GgmlType::Q4_0, quantize_q4_0),
        }
    }

    /// Quantises the `rows` of a tensor; returns them unchanged if they are quantised already, or if a row is not a whole
    /// number of blocks.
    pub(crate) fn apply(self, part: TensorRole, rows: WeightRows) -> WeightRows {
        let (to, quantize) = self.target(part);
        let is_float = matches!(rows.dtype, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16);
        if !is_float || !rows.inputs.is_multiple_of(to.block_len()) {
            return rows;
        }
        let WeightRows { dtype, inputs, data } = rows;
        let row = |dtype| MatrixSpec { dtype, outputs: 1, inputs }.row_bytes();
        let (from_bytes, to_bytes) = (row(dtype), row(to));
        let mut quantized = vec![0; data.len() / from_bytes * to_bytes];
        data.par_chunks(from_bytes).zip(quantized.par_chunks_mut(to_bytes)).for_each_init(
            || Vec::with_capacity(inputs),
            |numbers, (from, into)| {
                numbers.clear();
                extend_f32(dtype, from, numbers);
                quantize(numbers, into);
            },
        );
        WeightRows { dtype: to, inputs, data: quantized }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(inputs: usize, outputs: usize) -> WeightRows {
        let number = |at: usize| ((at * 7919 % 1000) as f32 - 500.0) / 250.0;
        let data = (0..inputs * outputs).flat_map(|at| number(at).to_le_bytes()).collect();
        WeightRows { dtype: GgmlType::F32, inputs, data }
    }

    fn numbers(rows: &WeightRows) -> Vec<f32> {
        let mut numbers = Vec::new();
        extend_f32(rows.dtype, &rows.data, &mut numbers);
        numbers
    }

    #[test]
    fn rows_keep_their_numbers_within_the_formats_step() {
        let plain = rows(64, 37);
        for (quantize, dtype, step) in
            [(Quantize::Q8, GgmlType::Q8_0, 2.0 / 127.0), (Quantize::Q4, GgmlType::Q4_0, 2.0 / 8.0)]
        {
            let small = quantize.apply(TensorRole::Down, plain.clone());
            assert_eq!((small.dtype, small.spec().outputs), (dtype, 37));
            for (got, wanted) in numbers(&small).iter().zip(numbers(&plain)) {
                assert!((got - wanted).abs() <= step * 1.01, "{dtype}: {got} for {wanted}");
            }
        }
    }

    #[test]
    fn embeddings_keep_eight_bits() {
        for part in [TensorRole::Embedding, TensorRole::Head] {
            assert_eq!(Quantize::Q4.apply(part, rows(32, 1)).dtype, GgmlType::Q8_0);
        }
    }

    #[test]
    fn what_can_not_be_quantised_stays() {
        assert_eq!(Quantize::Q8.apply(TensorRole::Down, rows(48, 2)), rows(48, 2));
        let four = Quantize::Q4.apply(TensorRole::Down, rows(64, 2));
        assert_eq!(Quantize::Q8.apply(TensorRole::Down, four.clone()), four);
    }
}
