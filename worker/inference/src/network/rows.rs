//! Rows of weights on their way from a file to a device, always in ggml's layout.

use emberline_kernels::MatrixSpec;
use emberline_kernels::ggml::{GgmlType, extend_f32};
use half::f16;

/// A matrix in host memory.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WeightRows {
    pub(crate) dtype: GgmlType,
    pub(crate) inputs: usize,
    pub(crate) data: Vec<u8>,
}

impl WeightRows {
    pub(crate) fn spec(&self) -> MatrixSpec {
        let spec = MatrixSpec { dtype: self.dtype, outputs: 0, inputs: self.inputs };
        MatrixSpec { outputs: self.data.len() / spec.row_bytes().max(1), ..spec }
    }

    /// Reorders the rows of each head from rotated pairs side by side (0, 1), (2, 3), … to the
    /// first of each pair, then the second of each.
    ///
    /// Queries and keys are reordered alike, so that their products stay what they were.
    pub(crate) fn pairs_to_halves(self, head_dim: usize) -> Self {
        let row = self.spec().row_bytes();
        let mut data = Vec::with_capacity(self.data.len());
        for head in self.data.chunks(head_dim * row) {
            for half in 0..2 {
                head.chunks(row).skip(half).step_by(2).for_each(|row| data.extend_from_slice(row));
            }
        }
        Self { data, ..self }
    }

    /// Concatenates the rows of `parts`, in as few matrices as their formats allow.
    pub(crate) fn stack(parts: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut stacked: Vec<Self> = Vec::new();
        for part in parts {
            match stacked.last_mut() {
                Some(last) if last.dtype == part.dtype => last.data.extend_from_slice(&part.data),
                _ => stacked.push(part),
            }
        }
        stacked
    }

    /// Concatenates the rows of both `parts` in one matrix; in f16 if their formats differ.
    pub(crate) fn join(parts: [Self; 2]) -> Self {
        let [first, second] = parts;
        let (mut first, second) = match first.dtype == second.dtype {
            true => (first, second),
            false => (first.into_f16(), second.into_f16()),
        };
        first.data.extend_from_slice(&second.data);
        first
    }

    fn into_f16(self) -> Self {
        if self.dtype == GgmlType::F16 {
            return self;
        }
        let row = self.spec().row_bytes().max(1);
        let mut numbers = Vec::with_capacity(self.inputs);
        let mut data = Vec::with_capacity(self.spec().outputs * self.inputs * size_of::<f16>());
        for row in self.data.chunks(row) {
            numbers.clear();
            extend_f32(self.dtype, row, &mut numbers);
            data.extend(numbers.iter().flat_map(|number| f16::from_f32(*number).to_le_bytes()));
        }
        Self { dtype: GgmlType::F16, data, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows whose every byte is the row's number.
    fn rows(dtype: GgmlType, inputs: usize, count: u8) -> WeightRows {
        let row = MatrixSpec { dtype, outputs: 1, inputs }.row_bytes();
        let data = (0..count).flat_map(|number| std::iter::repeat_n(number, row)).collect();
        WeightRows { dtype, inputs, data }
    }

    #[test]
    fn rotated_pairs_become_halves_of_their_head() {
        for dtype in [GgmlType::F32, GgmlType::Q4_1, GgmlType::Q8_0] {
            let turned = rows(dtype, 64, 8).pairs_to_halves(4);
            let row = turned.spec().row_bytes();
            let order: Vec<u8> = turned.data.chunks(row).map(|row| row[0]).collect();
            assert_eq!(order, [0, 2, 1, 3, 4, 6, 5, 7]);
            assert!(turned.data.chunks(row).all(|row| row.iter().all(|byte| *byte == row[0])));
        }
    }

    #[test]
    fn only_rows_of_one_format_share_a_matrix() {
        let (q4, q6) = (GgmlType::Q4_K, GgmlType::Q6_K);
        let stacked = WeightRows::stack([rows(q4, 256, 3), rows(q4, 256, 2), rows(q6, 256, 1)]);
        let outputs: Vec<_> = stacked.iter().map(|rows| (rows.dtype, rows.spec().outputs)).collect();
        assert_eq!(outputs, [(q4, 5), (q6, 1)]);
    }

    #[test]
    fn joined_rows_of_two_formats_keep_their_numbers() {
        let numbers = [0.5_f32, -3.0, 2.25, 0.0];
        let f32 = WeightRows {
            dtype: GgmlType::F32,
            inputs: 4,
            data: numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
        };
        let f16 = f32.clone().into_f16();
        assert_eq!(f16.data.len(), 8);
        let joined = WeightRows::join([f32.clone(), f16]);
        assert_eq!(joined.spec(), MatrixSpec { dtype: GgmlType::F16, outputs: 2, inputs: 4 });
        let mut expanded = Vec::new();
        extend_f32(joined.dtype, &joined.data, &mut expanded);
        assert_eq!(expanded, [numbers, numbers].concat());
        assert_eq!(WeightRows::join([f32.clone(), f32.clone()]).spec().dtype, GgmlType::F32);
    }
}
