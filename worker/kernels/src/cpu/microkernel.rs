//! The inner loop: a group of rows times two panels of numbers, all in registers.

use super::kv_element::Stored;
use super::simd::{Kernel, LANES, Simd};

/// Where sums are kept: `[rows, stride]` vectors, of which two from `at` on are added to.
pub(crate) struct Sums<'a> {
    pub(crate) lines: &'a mut [[f32; LANES]],
    pub(crate) stride: usize,
    pub(crate) at: usize,
}

/// Adds, for each of `rows` rows and each input in ascending order, the product of the row's
/// number and both panels' vectors; `fresh` starts sums from zero.
///
/// `x` has for each input the numbers of all rows, at most [`Simd::ROWS`].
pub(crate) fn multiply<S: Simd, E: Stored>(
    s: S,
    panels: [&[[E; LANES]]; 2],
    x: &[f32],
    rows: usize,
    sums: Sums<'_>,
    fresh: bool,
) {
    let Sums { lines, stride, at } = sums;
    macro_rules! rows {
        ($($rows:literal)+) => {
            match rows {
                $($rows if $rows <= S::ROWS => {
                    let x = x.as_chunks::<$rows>().0;
                    if S::PANELS == 2 {
                        let sums = Sums { lines, stride, at };
                        s.run(Multiply::<E, $rows, 2> { panels, x, sums, fresh });
                    } else {
                        let sums = Sums { lines: &mut *lines, stride, at };
                        s.run(Multiply::<E, $rows, 1> { panels: [panels[0]], x, sums, fresh });
                        let sums = Sums { lines, stride, at: at + 1 };
                        s.run(Multiply::<E, $rows, 1> { panels: [panels[1]], x, sums, fresh });
                    }
                })+
                _ => unreachable!("a group of more rows than registers hold"),
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

impl<E: Stored, const ROWS: usize, const N: usize> Kernel for Multiply<'_, E, ROWS, N> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Self { panels, x, sums: Sums { lines, stride, at }, fresh } = self;
        let mut sums = [[s.zero(); N]; ROWS];
        if !fresh {
            for row in 0..ROWS {
                for n in 0..N {
                    sums[row][n] = s.load(&lines[row * stride + at + n]);
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
                s.store(&mut lines[row * stride + at + n], sums[row][n]);
            }
        }
    }
}
