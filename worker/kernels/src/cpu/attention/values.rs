//! Values, weighted and summed.

use super::inputs::BLOCKS;
use super::softmax::within;
use crate::cpu::kv_element::Stored;
use crate::cpu::simd::{Kernel, LANES, Simd};
use crate::types::BLOCK_SIZE;

/// Adds values to two vectors of each of a group's sums.
#[derive(Clone, Copy)]
pub(super) struct Weigh<'a, E> {
    /// `[BLOCK_SIZE, width]` vectors each.
    pub(super) values: [&'a [[E; LANES]]; BLOCKS],
    pub(super) positions: usize,
    pub(super) width: usize,
    /// Where the two vectors are.
    pub(super) at: usize,
}

impl<E: Stored> Weigh<'_, E> {
    pub(super) fn any<S: Simd>(
        self,
        s: S,
        scores: &[[[f32; LANES]; BLOCKS]],
        corrections: &[f32],
        sums: &mut [[f32; LANES]],
    ) {
        macro_rules! rows {
            ($($rows:literal)+) => {
                match scores.len() {
                    $($rows if $rows <= S::ROWS => {
                        let scores = &scores.as_chunks::<$rows>().0[0];
                        let corrections = &corrections.as_chunks::<$rows>().0[0];
                        if S::PANELS == 2 {
                            s.run(WeighOf::<E, $rows, 2> { weigh: self, scores, corrections, sums });
                        } else {
                            let weigh = self;
                            s.run(WeighOf::<E, $rows, 1> { weigh, scores, corrections, sums: &mut *sums });
                            let weigh = Weigh { at: self.at + 1, ..self };
                            s.run(WeighOf::<E, $rows, 1> { weigh, scores, corrections, sums });
                        }
                    })+
                    _ => unreachable!("a group of more queries than registers hold"),
                }
            };
        }
        rows!(1 2 3 4 5 6 7 8 9 10 11 12);
    }
}

struct WeighOf<'a, E, const ROWS: usize, const N: usize> {
    weigh: Weigh<'a, E>,
    scores: &'a [[[f32; LANES]; BLOCKS]; ROWS],
    corrections: &'a [f32; ROWS],
    sums: &'a mut [[f32; LANES]],
}

impl<E: Stored, const ROWS: usize, const N: usize> Kernel for WeighOf<'_, E, ROWS, N> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Self { weigh: Weigh { values, positions, width, at }, scores, corrections, sums } = self;
        let mut totals = [[s.zero(); N]; ROWS];
        for row in 0..ROWS {
            for n in 0..N {
                totals[row][n] = s.mul(s.load(&sums[row * width + at + n]), s.splat(corrections[row]));
            }
        }
        for block in 0..BLOCKS {
            let count = within(positions, block * BLOCK_SIZE);
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
