//! The results of a step: logits, and hidden states from which more logits can be computed.

use burn::tensor::{Int, Tensor, TensorData};
use emberline_kernels::traffic::{self, Traffic};
use emberline_kernels::{SamplingParams, StepSamples};

use super::ComputeError;

/// The rows of logits that a step's spans wanted, still on the device.
#[derive(Debug, Clone)]
pub struct Logits {
    tensor: Tensor<2>,
    /// What the step was told to sample.
    samples: Option<StepSamples>,
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
        Self { tensor, samples: None }
    }

    pub(super) fn with_samples(tensor: Tensor<2>, samples: StepSamples) -> Self {
        Self { tensor, samples: Some(samples) }
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
        Self::new(select(self.tensor.clone(), rows))
    }

    /// The tokens that the step was told to sample, in that order; sampled on the device and read in one go.
    pub fn sampled(&self) -> Result<Vec<u32>, ComputeError> {
        match &self.samples {
            Some(samples) if !samples.is_empty() => {
                read_ids(emberline_kernels::sample_rows(self.tensor.clone(), samples))
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Samples a token for each row on the device; `rows` has the parameters of each.
    pub fn sample(&self, rows: &[SamplingParams]) -> Result<Vec<u32>, ComputeError> {
        if rows.len() != self.rows() {
            return Err(ComputeError(format!("{} samples for {} rows of logits", rows.len(), self.rows())));
        }
        read_ids(emberline_kernels::sample(self.tensor.clone(), rows))
    }

    /// All logits, row by row.
    pub fn into_host(self) -> Result<Vec<f32>, ComputeError> {
        traffic::count(&self.tensor.device(), Traffic::READ_BACK);
        self.tensor.try_into_vec_as::<f32>().map_err(|error| ComputeError(error.to_string()))
    }
}

fn read_ids(ids: Tensor<1, Int>) -> Result<Vec<u32>, ComputeError> {
    traffic::count(&ids.device(), Traffic::READ_BACK);
    ids.try_into_vec_as::<u32>().map_err(|error| ComputeError(error.to_string()))
}

/// Whether `rows` are all of `count`, in order.
pub(super) fn are_all(rows: &[usize], count: usize) -> bool {
    rows.len() == count && rows.iter().enumerate().all(|(at, row)| at == *row)
}

/// Rows of `x` in the order of `rows`; `x` itself where that is all of them.
pub(crate) fn select(x: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    if are_all(rows, x.dims()[0]) {
        return x;
    }
    let ids: Vec<i32> = rows.iter().map(|row| i32::try_from(*row).unwrap_or(i32::MAX)).collect();
    traffic::count(&x.device(), Traffic::UPLOAD);
    let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [rows.len()]), &x.device());
    select_uploaded(x, ids)
}

/// Rows of `x` whose numbers are on the device.
pub(super) fn select_uploaded(x: Tensor<2>, rows: Tensor<1, Int>) -> Tensor<2> {
    traffic::count(&x.device(), Traffic::LAUNCH);
    x.select(0, rows)
}
