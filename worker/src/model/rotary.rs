//! Rotary position embeddings: how far each pair of a head's components turns from one position
//! to the next.

use burn::tensor::{Device, Tensor, TensorData};

/// One way of turning queries and keys. Su et al., "RoFormer" (2021).
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// For each pair, in radians a position.
    pub frequencies: Vec<f64>,
    /// What turned components are multiplied with.
    pub magnitude: f64,
}

impl Rotary {
    /// Leading components of a head that are turned.
    pub fn dim(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Divides the frequency of each pair.
    pub(crate) fn slow_down(&mut self, factors: &[f32]) {
        for (frequency, factor) in self.frequencies.iter_mut().zip(factors) {
            *frequency /= f64::from(*factor);
        }
    }

    /// `[positions, 2, dim / 2]`: cosines, then sines.
    pub(crate) fn table(&self, positions: usize, device: &Device) -> Tensor<3> {
        let mut table = Vec::with_capacity(positions * self.dim());
        for position in 0..positions {
            // In double precision: the angle of a late position is a large number of turns.
            let angles = || self.frequencies.iter().map(|frequency| frequency * position as f64);
            table.extend(angles().map(|angle| (angle.cos() * self.magnitude) as f32));
            table.extend(angles().map(|angle| (angle.sin() * self.magnitude) as f32));
        }
        Tensor::from_data(TensorData::new(table, [positions, 2, self.frequencies.len()]), device)
    }
}

/// The frequencies of `dim / 2` pairs, from one turn in 2π positions down to nearly one in
/// 2π `base`.
pub(crate) fn frequencies(base: f64, dim: usize) -> Vec<f64> {
    (0..dim / 2).map(|pair| base.powf(-2.0 * pair as f64 / dim as f64)).collect()
}
