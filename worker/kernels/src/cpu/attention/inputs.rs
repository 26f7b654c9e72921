//! The arguments of attention, and how its rows and positions are partitioned.

use crate::cpu::simd::LANES;
use crate::types::{BLOCK_SIZE, HeadShape};

/// Cache blocks of a tile.
pub(super) const TILE_BLOCKS: usize = 4;
/// Positions of a tile.
pub(super) const TILE: usize = TILE_BLOCKS * BLOCK_SIZE;
/// Positions of a partition.
pub(super) const PARTITION: usize = 4 * TILE;
/// Queries (one of each row and head) that are computed together, so that they share keys and values
/// in the processor's cache.
pub(super) const MAX_QUERIES: usize = 24;

/// The arguments of [`crate::attention`], as slices.
#[derive(Clone, Copy)]
pub(crate) struct AttentionInputs<'a, E> {
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

/// Consecutive rows of one span.
#[derive(Clone, Copy)]
pub(super) struct RowGroup {
    pub(super) first: usize,
    pub(super) rows: usize,
}

impl<E> AttentionInputs<'_, E> {
    /// All rows, in groups of at most [`MAX_QUERIES`] queries per key/value head.
    pub(super) fn groups(&self) -> Vec<RowGroup> {
        let max_rows = (MAX_QUERIES * self.shape.kv_heads / self.shape.heads).max(1);
        let mut groups = Vec::new();
        let mut first = 0;
        for rows in self.rows.chunk_by(|a, b| a[1] == b[1] && a[0] + 1 == b[0]) {
            for rows in rows.chunks(max_rows) {
                groups.push(RowGroup { first, rows: rows.len() });
                first += rows.len();
            }
        }
        groups
    }

    /// The first position that a row at `position` attends to.
    pub(super) fn first_visible(&self, position: usize) -> usize {
        self.shape.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// The partitions that a group's rows attend to.
    pub(super) fn partitions(&self, group: RowGroup) -> std::ops::Range<usize> {
        let position = self.rows[group.first][0];
        self.first_visible(position) / PARTITION..(position + group.rows - 1) / PARTITION + 1
    }
}

/// Number of vectors that hold a head, rounded up to an even number.
pub(super) fn vectors(head_dim: usize) -> usize {
    head_dim.div_ceil(2 * LANES) * 2
}
