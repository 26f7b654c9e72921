//! The inner loop: a group of rows times two panels of weights, with all sums in registers.

use super::kv_element::KvElement;
use super::simd::{Kernel, LANES, Simd};

/// The sums: `[rows, stride]` vectors. The two vectors from `at` on of each row are updated.
pub(crate) struct Sums<'a> {
    pub(crate) vectors: &'a mut [[f32; LANES]],
    pub(crate) stride: usize,
    pub(crate) at: usize,
}

/// Adds the products of `rows` rows with both panels to the sums, input by input in ascending order.
/// With `fresh` the sums start from zero.
///
/// `x` is `[inputs, rows]`, with at most [`Simd::TILE_ROWS`] rows. A panel has a vector for each input.
pub(crate) fn multiply<S: Simd, E: KvElement>(
    s: S,
    panels: [&[[E; LANES]]; 2],
    x: &[f32],
    rows: usize,
    sums: Sums<'_>,
    fresh: bool,
) {
    let Sums { vectors, stride, at } = sums;
    macro_rules! rows {
        ($($rows:literal)+) => {
            match rows {
                $($rows if $rows <= S::TILE_ROWS => {
                    let x = x.as_chunks::<$rows>().0;
                    if S::TILE_PANELS == 2 {
                        let sums = Sums { vectors, stride, at };
                        s.run(Multiply::<E, $rows, 2> { panels, x, sums, fresh });
                    } else {
                        let sums = Sums { vectors: &mut *vectors, stride, at };
                        s.run(Multiply::<E, $rows, 1> { panels: [panels[0]], x, sums, fresh });
                        let sums = Sums { vectors, stride, at: at + 1 };
                        s.run(Multiply::<E, $rows, 1> { panels: [panels[1]], x, sums, fresh });
                    }
                })+
                _ => unreachable!("at most `TILE_ROWS` rows"),
            }
        };
    }
    rows!(1 2 3 4 5 6 7 8 9 10 11 12);
}

struct Multiply<'a, E, const ROWS: usize, const N: usize> {
    panels: [&'a [[E; LANES]]; N],
    x: &'a [[f32; ROWS]],
    sums: Sums<'a>,
    fresh: bool,
}

impl<E: KvElement, const ROWS: usize, const N: usize> Kernel for Multiply<'_, E, ROWS, N> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Self { panels, x, sums: Sums { vectors, stride, at }, fresh } = self;
        let mut sums = [[s.zero(); N]; ROWS];
        if !fresh {
            for row in 0..ROWS {
                for n in 0..N {
                    sums[row][n] = s.load(&vectors[row * stride + at + n]);
                }
            }
        }
        for ((x, first), last) in x.iter().zip(panels[0]).zip(panels[N - 1]) {
            let mut weights = [E::load(s, first); N];
            weights[N - 1] = E::load(s, last);
            for row in 0..ROWS {
                let x = s.splat(x[row]);
                for n in 0..N {
                    sums[row][n] = s.fma(weights[n], x, sums[row][n]);
                }
            }
        }
        for row in 0..ROWS {
            for n in 0..N {
                s.store(&mut vectors[row * stride + at + n], sums[row][n]);
            }
        }
    }
}
