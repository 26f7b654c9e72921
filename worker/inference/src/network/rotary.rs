//! Rotary position embeddings: how far each pair of a head's components rotates from one position
//! to the next.

use std::f64::consts::PI;

use burn::tensor::{Device, Tensor, TensorData};

/// One way of rotating queries and keys. Su et al., "RoFormer" (2021).
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// For each pair, in radians per position.
    pub frequencies: Vec<f64>,
    /// Factor of rotated components.
    pub magnitude: f64,
    /// Other frequencies for long contexts, if the model has any.
    pub long: Option<LongContext>,
}

/// The frequencies for contexts longer than some length.
///
/// All positions of a sequence must be rotated alike, or its cache is wrong once it
/// grows. So the served context length decides, not a sequence's length.
#[derive(Debug, Clone, PartialEq)]
pub struct LongContext {
    /// The longest context that does not use them.
    pub beyond: usize,
    /// For each pair, in radians per position.
    pub frequencies: Vec<f64>,
}

/// How frequencies are scaled for a longer context than a model was first trained for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scaling<'a> {
    /// Not at all.
    None,
    /// All frequencies are divided by the factor.
    Linear { factor: f64 },
    /// Llama 3.1: low frequencies are divided by the factor, high ones are kept.
    Llama3 { factor: f64, low: f64, high: f64, original: f64 },
    /// Peng et al., "YaRN" (2023): the same with a linear ramp between, and a larger magnitude.
    Yarn { factor: f64, fast: f64, slow: f64, original: f64, truncate: bool, magnitude: f64 },
    /// Each frequency is divided by a factor of its own.
    Each { factors: &'a [f64] },
    /// Ding et al., "LongRoPE" (2024): with other factors in a long context, and a larger magnitude.
    Long { short: &'a [f64], long: &'a [f64], beyond: usize, magnitude: f64 },
}

impl Rotary {
    /// Turns `dim` components: from one turn in 2π positions for the first pair down to nearly
    /// one in 2π `base` for the last, before they are changed.
    pub(crate) fn new(base: f64, dim: usize, scaling: Scaling<'_>) -> Self {
        let frequency = |pair: usize| base.powf(-2.0 * pair as f64 / dim as f64);
        let mut frequencies: Vec<f64> = (0..dim / 2).map(frequency).collect();
        let (mut magnitude, mut long_context) = (1.0, None);
        let divide = |frequencies: &mut [f64], factors: &[f64]| {
            frequencies.iter_mut().zip(factors).for_each(|(f, factor)| *f /= factor);
        };
        match scaling {
            Scaling::None => {}
            Scaling::Linear { factor } => frequencies.iter_mut().for_each(|f| *f /= factor),
            Scaling::Llama3 { factor, low, high, original } => {
                for frequency in &mut frequencies {
                    let turns = original * *frequency / (2.0 * PI);
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    *frequency *= kept + (1.0 - kept) / factor;
                }
            }
            Scaling::Yarn { factor, fast, slow, original, truncate, magnitude: louder } => {
                magnitude = louder;
                // The pair that makes this many turns within the original context.
                let pair = |turns: f64| dim as f64 * (original / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
                let (first, last) = match truncate {
                    true => (pair(fast).floor(), pair(slow).ceil()),
                    false => (pair(fast), pair(slow)),
                };
                let (first, last) = (first.max(0.0), last.min(dim as f64 - 1.0));
                let width = if first == last { 0.001 } else { last - first };
                for (pair, frequency) in frequencies.iter_mut().enumerate() {
                    let squeezed = ((pair as f64 - first) / width).clamp(0.0, 1.0);
                    *frequency *= (1.0 - squeezed) + squeezed / factor;
                }
            }
            Scaling::Each { factors } => divide(&mut frequencies, factors),
            Scaling::Long { short, long, beyond, magnitude: louder } => {
                magnitude = louder;
                let mut others = frequencies.clone();
                divide(&mut others, long);
                divide(&mut frequencies, short);
                long_context = Some(LongContext { beyond, frequencies: others });
            }
        }
        Self { frequencies, magnitude, long: long_context }
    }

    /// Number of leading components of a head that are rotated.
    pub fn dim(&self) -> usize {
        2 * self.frequencies.len()
    }

    fn frequencies_for(&self, context_length: usize) -> &[f64] {
        match &self.long {
            Some(long) if context_length > long.beyond => &long.frequencies,
            _ => &self.frequencies,
        }
    }

    /// The first positions of a context: `[positions, 2, dim / 2]`, cosines, then sines.
    pub(crate) fn table(&self, context_length: usize, positions: usize, device: &Device) -> Tensor<3> {
        let frequencies = self.frequencies_for(context_length);
        let mut table = Vec::with_capacity(positions * self.dim());
        for position in 0..positions {
            // In double precision: the angle of a late position is a large number of turns.
            let angles = || frequencies.iter().map(|frequency| frequency * position as f64);
            table.extend(angles().map(|angle| (angle.cos() * self.magnitude) as f32));
            table.extend(angles().map(|angle| (angle.sin() * self.magnitude) as f32));
        }
        Tensor::from_data(TensorData::new(table, [positions, 2, self.frequencies.len()]), device)
    }
}

/// YaRN's magnitude for a context `factor` times as long.
pub(crate) fn yarn_magnitude(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_fall_from_one_to_nearly_the_inverse_of_the_base() {
        let plain = Rotary::new(10_000.0, 8, Scaling::None);
        assert_eq!(plain.dim(), 8);
        for (frequency, wanted) in plain.frequencies.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((frequency - wanted).abs() < 1e-12, "{plain:?}");
        }
        let linear = Rotary::new(10_000.0, 8, Scaling::Linear { factor: 4.0 });
        assert!((linear.frequencies[1] - 0.025).abs() < 1e-12, "{linear:?}");
    }

    #[test]
    fn only_slow_pairs_are_squeezed_for_a_long_context() {
        let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 2000.0 };
        let scaled = Rotary::new(10_000.0, 8, scaling).frequencies;
        // 318, 32, 3.2 and 0.3 turns in 2000 positions.
        assert_eq!(scaled[..2], Rotary::new(10_000.0, 8, Scaling::None).frequencies[..2]);
        assert!(scaled[2] < 0.01 && scaled[2] > 0.01 / 8.0, "{scaled:?}");
        assert!((scaled[3] - 0.001 / 8.0).abs() < 1e-12, "{scaled:?}");
    }

    #[test]
    fn a_table_has_cosines_before_sines() {
        let rotary = Rotary { frequencies: vec![0.5, 0.25], magnitude: 2.0, long: None };
        let table = rotary.table(100, 3, &Device::flex()).try_into_vec_as::<f32>().unwrap();
        let wanted = [1.0_f64.cos(), 0.5_f64.cos(), 1.0_f64.sin(), 0.5_f64.sin()].map(|x| (2.0 * x) as f32);
        assert_eq!(table[..4], [2.0, 2.0, 0.0, 0.0]);
        assert_eq!(table[8..], wanted);
    }

    #[test]
    fn a_long_context_turns_otherwise_from_its_beginning() {
        let scaling = Scaling::Long { short: &[1.0, 2.0], long: &[4.0, 8.0], beyond: 50, magnitude: 1.5 };
        let rotary = Rotary::new(100.0, 4, scaling);
        assert_eq!(rotary.magnitude, 1.5);
        for (context_length, wanted) in [(50, [1.0, 0.05]), (51, [0.25, 0.0125])] {
            let got = rotary.frequencies_for(context_length);
            assert!(got.iter().zip(wanted).all(|(got, wanted)| (got - wanted).abs() < 1e-12), "{got:?}");
        }
    }
}
