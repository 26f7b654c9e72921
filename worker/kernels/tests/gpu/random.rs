//! Random numbers and weights, for tests on a GPU and for those on a simulated one.

use half::f16;

use super::{GgmlType, MatrixSpec};

/// A pseudorandom generator: Marsaglia, "Xorshift RNGs" (2003).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end
    }

    /// In [-1, 1).
    pub(crate) fn number(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }

    fn half(&mut self) -> [u8; 2] {
        f16::from_f32(self.number() / 16.0).to_le_bytes()
    }

    /// Rows in ggml's layout, with random bits and scales of a realistic size.
    pub(crate) fn blocks(&mut self, spec: MatrixSpec) -> Vec<u8> {
        let bytes = spec.outputs * spec.row_bytes();
        let mut blocks: Vec<u8> = (0..bytes).map(|_| self.next() as u8).collect();
        for block in blocks.chunks_exact_mut(spec.dtype.block_bytes()) {
            match spec.dtype {
                GgmlType::F32 => block.copy_from_slice(&self.number().to_le_bytes()),
                GgmlType::F16 => block.copy_from_slice(&self.half()),
                GgmlType::BF16 => block.copy_from_slice(&half::bf16::from_f32(self.number()).to_le_bytes()),
                GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => block[..2].copy_from_slice(&self.half()),
                GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => {
                    block[..2].copy_from_slice(&self.half());
                    block[2..4].copy_from_slice(&self.half());
                }
                GgmlType::Q6_K => block[208..].copy_from_slice(&self.half()),
            }
        }
        blocks
    }
}
