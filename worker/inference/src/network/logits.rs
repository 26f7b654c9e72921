//! The results of a step: logits, and hidden states from which more logits can be computed.

use burn::tensor::{Int, Tensor, TensorData};
use emberline_kernels::SamplingParams;

use super::ComputeError;

/// The rows of logits that a step's spans wanted, still on the device.
#[derive(Debug, Clone)]
pub struct Logits {
    tensor: Tensor<2>,
}

/// The last layer's output for some rows, from which logits can be computed, still on the device.
#[derive(Debug, Clone)]
pub struct Hidden {
    pub(super) tensor: Tensor<2>,
}

impl Hidden {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.tensor.dims()[0]
    }
}

impl Logits {
    pub(crate) fn new(tensor: Tensor<2>) -> Self {
        Self { tensor }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.tensor.dims()[0]
    }

    /// Number of logits in a row.
    pub fn vocabulary(&self) -> usize {
        self.tensor.dims()[1]
    }

    /// These rows, in this order.
    pub fn select(&self, rows: &[usize]) -> Self {
        Self { tensor: select(self.tensor.clone(), rows) }
    }

    /// Samples a token for each row on the device; `rows` has the parameters of each.
    pub fn sample(&self, rows: &[SamplingParams]) -> Result<Vec<u32>, ComputeError> {
        if rows.len() != self.rows() {
            return Err(ComputeError(format!("{} samples for {} rows of logits", rows.len(), self.rows())));
        }
        let ids = emberline_kernels::sample(self.tensor.clone(), rows);
        ids.try_into_vec_as::<u32>().map_err(|error| ComputeError(error.to_string()))
    }

    /// All logits, row by row.
    pub fn into_host(self) -> Result<Vec<f32>, ComputeError> {
        self.tensor.try_into_vec_as::<f32>().map_err(|error| ComputeError(error.to_string()))
    }
}

/// Rows of `x` in the order of `rows`; `x` itself where that is all of them.
pub(crate) fn select(x: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    if rows.len() == x.dims()[0] && rows.iter().enumerate().all(|(at, row)| at == *row) {
        return x;
    }
    let ids: Vec<i32> = rows.iter().map(|row| i32::try_from(*row).unwrap_or(i32::MAX)).collect();
    let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [rows.len()]), &x.device());
    x.select(0, ids)
}
