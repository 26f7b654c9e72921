//! The weighted sums of the values.

use super::inputs::TILE_BLOCKS;
use super::softmax::offset_in_block;
use crate::cpu::kv_element::KvElement;
use crate::cpu::simd::{Kernel, LANES, Simd};
use crate::types::BLOCK_SIZE;

/// Adds the weighted values of a tile to two vectors of each query's sums.
#[derive(Clone, Copy)]
pub(super) struct WeightedSum<'a, E> {
    /// `[BLOCK_SIZE, width]` vectors each.
    pub(super) values: [&'a [[E; LANES]]; TILE_BLOCKS],
    /// Positions of the tile that some query attends to.
    pub(super) positions: usize,
    /// Vectors of a head.
    pub(super) width: usize,
    /// The first of the two vectors.
    pub(super) at: usize,
}

impl<E: KvElement> WeightedSum<'_, E> {
    /// Multiplies the sums of each query with its correction, then adds the values.
    pub(super) fn add_to<S: Simd>(
        self,
        s: S,
        scores: &[[[f32; LANES]; TILE_BLOCKS]],
        corrections: &[f32],
        sums: &mut [[f32; LANES]],
    ) {
        macro_rules! rows {
            ($($rows:literal)+) => {
                match scores.len() {
                    $($rows if $rows <= S::TILE_ROWS => {
                        let scores = &scores.as_chunks::<$rows>().0[0];
                        let corrections = &corrections.as_chunks::<$rows>().0[0];
                        if S::TILE_PANELS == 2 {
                            s.run(WeightedSumOf::<E, $rows, 2> { inputs: self, scores, corrections, sums });
                        } else {
                            let inputs = self;
                            s.run(WeightedSumOf::<E, $rows, 1> { inputs, scores, corrections, sums: &mut *sums });
                            let inputs = WeightedSum { at: self.at + 1, ..self };
                            s.run(WeightedSumOf::<E, $rows, 1> { inputs, scores, corrections, sums });
                        }
                    })+
                    _ => unreachable!("at most `TILE_ROWS` queries"),
                }
            };
        }
        rows!(1 2 3 4 5 6 7 8 9 10 11 12);
    }
}

struct WeightedSumOf<'a, E, const ROWS: usize, const N: usize> {
    inputs: WeightedSum<'a, E>,
    scores: &'a [[[f32; LANES]; TILE_BLOCKS]; ROWS],
    corrections: &'a [f32; ROWS],
    sums: &'a mut [[f32; LANES]],
}

impl<E: KvElement, const ROWS: usize, const N: usize> Kernel for WeightedSumOf<'_, E, ROWS, N> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Self { inputs: WeightedSum { values, positions, width, at }, scores, corrections, sums } = self;
        let mut totals = [[s.zero(); N]; ROWS];
        for row in 0..ROWS {
            for n in 0..N {
                totals[row][n] = s.mul(s.load(&sums[row * width + at + n]), s.splat(corrections[row]));
            }
        }
        for block in 0..TILE_BLOCKS {
            let count = offset_in_block(positions, block * BLOCK_SIZE);
            for (position, vectors) in values[block].chunks_exact(width).take(count).enumerate() {
                let vectors = &vectors[at..at + N];
                let mut loaded = [s.zero(); N];
                for n in 0..N {
                    loaded[n] = E::load(s, &vectors[n]);
                }
                for row in 0..ROWS {
                    let weight = s.splat(scores[row][block][position % LANES]);
                    for n in 0..N {
                        totals[row][n] = s.fma(loaded[n], weight, totals[row][n]);
                    }
                }
            }
        }
        for row in 0..ROWS {
            for n in 0..N {
                s.store(&mut sums[row * width + at + n], totals[row][n]);
            }
        }
    }
}
