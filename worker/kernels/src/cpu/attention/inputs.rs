//! What attention reads, and how its rows and positions are cut.

use crate::cpu::simd::LANES;
use crate::types::{BLOCK_SIZE, HeadShape};

/// Blocks of a stretch.
pub(super) const BLOCKS: usize = 4;
/// Positions of a stretch.
pub(super) const STRETCH: usize = BLOCKS * BLOCK_SIZE;
/// Positions of a part.
pub(super) const PART: usize = 4 * STRETCH;
/// Queries (of a row and a head) that share keys and values once these are in the cache.
pub(super) const QUERIES: usize = 24;

/// What attention reads.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a, E> {
    /// `[rows, heads * head_dim]`.
    pub(crate) queries: &'a [f32],
    pub(crate) keys: &'a [E],
    pub(crate) values: &'a [E],
    /// Position, span and slot of each row.
    pub(crate) rows: &'a [[usize; 3]],
    /// `[spans, width]`.
    pub(crate) tables: &'a [usize],
    pub(crate) width: usize,
    pub(crate) shape: HeadShape,
}

/// Successive rows of a span.
#[derive(Clone, Copy)]
pub(super) struct Group {
    pub(super) first: usize,
    pub(super) rows: usize,
}

impl<E> Attention<'_, E> {
    /// All rows, in groups.
    pub(super) fn groups(&self) -> Vec<Group> {
        let most = (QUERIES * self.shape.kv_heads / self.shape.heads).max(1);
        let mut groups = Vec::new();
        let mut first = 0;
        for rows in self.rows.chunk_by(|a, b| a[1] == b[1] && a[0] + 1 == b[0]) {
            for rows in rows.chunks(most) {
                groups.push(Group { first, rows: rows.len() });
                first += rows.len();
            }
        }
        groups
    }

    /// The first position that a row at `position` sees.
    pub(super) fn first_seen(&self, position: usize) -> usize {
        self.shape.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// The parts that a group sees.
    pub(super) fn parts(&self, group: Group) -> std::ops::Range<usize> {
        let position = self.rows[group.first][0];
        self.first_seen(position) / PART..(position + group.rows - 1) / PART + 1
    }
}

/// Vectors that hold a head's numbers, in pairs.
pub(super) fn vectors(head_dim: usize) -> usize {
    head_dim.div_ceil(2 * LANES) * 2
}
