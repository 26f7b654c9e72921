//! How attention on GPUs is divided.

use super::sizes::{PARTITION, PASS_PARTS, TILE_ROWS};

/// What attention computes in a step: the rows of a span in tiles, or for a span of a single row, which
/// decodes a token, each partition of its positions by itself. Words, as kernels read them.
#[derive(Debug, Default)]
pub(crate) struct WorkList {
    /// For each tile its first row, the number of its rows (at most [`TILE_ROWS`]), the position of the
    /// first, and the span.
    pub(crate) tiles: Vec<i32>,
    /// For each single row its number, its first part, and its position.
    pub(crate) singles: Vec<i32>,
    /// For each part its row, the number of the partition, the row's position, and the span.
    pub(crate) parts: Vec<i32>,
    /// How many single rows are computed at once.
    pub(crate) passes: Vec<Pass>,
}

/// Single rows that are computed at once: the next so many, and their parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pass {
    pub(crate) singles: usize,
    pub(crate) parts: usize,
}

impl WorkList {
    /// Appends span `number`: `rows` rows from `row` on, the first of which is at position `start`.
    pub(crate) fn push(&mut self, row: usize, number: usize, start: usize, rows: usize) {
        if rows != 1 {
            for first in (0..rows).step_by(TILE_ROWS) {
                let count = TILE_ROWS.min(rows - first);
                self.tiles.extend([row + first, count, start + first, number].map(|value| value as i32));
            }
            return;
        }
        let parts = start / PARTITION + 1;
        self.singles.extend([row, self.parts.len() / 4, start].map(|value| value as i32));
        for partition in 0..parts {
            self.parts.extend([row, partition, start, number].map(|value| value as i32));
        }
        match self.passes.last_mut() {
            Some(pass) if pass.parts + parts <= PASS_PARTS => {
                pass.singles += 1;
                pass.parts += parts;
            }
            _ => self.passes.push(Pass { singles: 1, parts }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(spans: &[(usize, usize)]) -> WorkList {
        let mut work = WorkList::default();
        let mut row = 0;
        for (number, &(start, rows)) in spans.iter().enumerate() {
            work.push(row, number, start, rows);
            row += rows;
        }
        work
    }

    #[test]
    fn single_rows_are_divided_beside_tiles_of_others() {
        let work = work(&[(70, 1), (3, 20), (0, 1)]);
        assert_eq!(work.tiles, [1, 16, 3, 1, 17, 4, 19, 1]);
        assert_eq!(work.singles, [0, 0, 70, 21, 2, 0]);
        assert_eq!(work.parts, [0, 0, 70, 0, 0, 1, 70, 0, 21, 0, 0, 2]);
        assert_eq!(work.passes, [Pass { singles: 2, parts: 3 }]);
    }

    #[test]
    fn passes_have_as_many_single_rows_as_fit_and_at_least_one() {
        let half = PASS_PARTS / 2 * PARTITION - 1;
        let longest = 2 * PASS_PARTS * PARTITION - 1;
        let work = work(&[(half, 1), (half, 1), (0, 1), (longest, 1), (5, 1)]);
        let pass = |singles, parts| Pass { singles, parts };
        assert_eq!(work.passes, [pass(2, PASS_PARTS), pass(1, 1), pass(1, 2 * PASS_PARTS), pass(1, 1)]);
        assert_eq!(work.parts.len(), 4 * work.passes.iter().map(|pass| pass.parts).sum::<usize>());
    }
}
