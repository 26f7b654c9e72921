//! Finds infinities and NaN in stored weights.

use half::{bf16, f16};
use rayon::iter::ParallelIterator;
use rayon::slice::ParallelSlice;

use super::GgmlType;

/// Blocks that a thread looks at before it takes the next.
const BLOCKS_OF_A_TASK: usize = 1 << 14;

/// Whether all weights of `bytes`, which are whole blocks of `dtype`, are finite.
///
/// Of quantised blocks only the scales are checked; the rest are integers.
pub fn all_finite(dtype: GgmlType, bytes: &[u8]) -> bool {
    bytes.par_chunks(dtype.block_bytes() * BLOCKS_OF_A_TASK).all(|bytes| are_finite(dtype, bytes))
}

fn are_finite(dtype: GgmlType, bytes: &[u8]) -> bool {
    let halves = |places: &[usize]| {
        bytes.chunks_exact(dtype.block_bytes()).all(|block| {
            let half = |at: &usize| f16::from_le_bytes([block[*at], block[at + 1]]);
            places.iter().map(half).all(f16::is_finite)
        })
    };
    match dtype {
        GgmlType::F32 => bytes.as_chunks::<4>().0.iter().all(|four| f32::from_le_bytes(*four).is_finite()),
        GgmlType::BF16 => bytes.as_chunks::<2>().0.iter().all(|two| bf16::from_le_bytes(*two).is_finite()),
        GgmlType::F16 | GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => halves(&[0]),
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => halves(&[0, 2]),
        GgmlType::Q6_K => halves(&[208]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::extend_f32;
    use super::*;

    /// An infinity is reported in exactly those bytes of a block where it makes a weight infinite or NaN.
    #[test]
    fn infinities_are_found_where_they_count() {
        for dtype in GgmlType::ALL {
            let step = if dtype == GgmlType::F32 { 4 } else { 2 };
            let infinity = match dtype {
                GgmlType::F32 => f32::INFINITY.to_le_bytes().to_vec(),
                GgmlType::BF16 => bf16::INFINITY.to_le_bytes().to_vec(),
                _ => f16::INFINITY.to_le_bytes().to_vec(),
            };
            for place in (0..3 * dtype.block_bytes()).step_by(step) {
                // Not 0, so that an infinite scale makes weights infinite.
                let mut bytes = vec![1; 3 * dtype.block_bytes()];
                bytes[place..place + step].copy_from_slice(&infinity);
                let mut numbers = Vec::new();
                extend_f32(dtype, &bytes, &mut numbers);
                let finite = numbers.iter().all(|number| number.is_finite());
                assert_eq!(all_finite(dtype, &bytes), finite, "{dtype}, byte {place}");
            }
        }
    }
}
