//! The rows of a scheduler step: which sequence, position and cache slot each has.

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::kv_cache::BLOCK_SIZE;

/// Largest number of rows of one sequence that a GPU kernel computes together.
pub(crate) const TILE_ROWS: usize = 8;

/// Consecutive tokens of one sequence in a step.
#[derive(Debug, Clone, Copy)]
pub struct RowSpan<'a> {
    /// Position of the first token in its sequence.
    pub start: usize,
    /// Number of tokens.
    pub rows: usize,
    /// The sequence's block table: entry `i` is the block that holds the positions from
    /// `i * BLOCK_SIZE` on. It covers at least the last of these tokens.
    pub blocks: &'a [u32],
}

/// The sequence, position and cache slot of each row of a step, on the device.
#[derive(Debug, Clone)]
pub struct StepRows {
    /// `[rows, 3]`: the token's position, its span (a row of `tables`), and the slot where its key
    /// and value are stored (`block * BLOCK_SIZE + offset`).
    pub rows: Tensor<2, Int>,
    /// `[spans, blocks of the longest table]`: block tables, padded with zeros.
    pub tables: Tensor<2, Int>,
    /// `[tiles, 2]`: first row and number of rows of each tile, which has at most [`TILE_ROWS`]
    /// rows of one span.
    pub(crate) tiles: Tensor<2, Int>,
}

impl StepRows {
    /// Uploads the layout of a step. The rows of a span are consecutive, and spans keep their order.
    ///
    /// A position beyond the end of its block table is assigned to block 0. That is a mistake of the
    /// caller, but it never writes outside the pool.
    pub fn new(spans: &[RowSpan<'_>], device: &Device) -> Self {
        let (mut rows, mut tiles) = (Vec::new(), Vec::new());
        for (number, span) in spans.iter().enumerate() {
            for first in (0..span.rows).step_by(TILE_ROWS) {
                let row = rows.len() / 3 + first;
                tiles.extend([row, TILE_ROWS.min(span.rows - first)].map(|value| value as i32));
            }
            for position in span.start..span.start + span.rows {
                let block = span.blocks.get(position / BLOCK_SIZE).copied().unwrap_or(0) as usize;
                let slot = block * BLOCK_SIZE + position % BLOCK_SIZE;
                rows.extend([position, number, slot].map(|value| value as i32));
            }
        }
        let width = spans.iter().map(|span| span.blocks.len()).max().unwrap_or(0).max(1);
        let mut tables = Vec::with_capacity(spans.len() * width);
        for span in spans {
            let padded = span.blocks.iter().map(|block| *block as i32).chain(std::iter::repeat(0));
            tables.extend(padded.take(width));
        }
        let (count, tile_count) = (rows.len() / 3, tiles.len() / 2);
        Self {
            rows: Tensor::from_data(TensorData::new(rows, [count, 3]), device),
            tiles: Tensor::from_data(TensorData::new(tiles, [tile_count, 2]), device),
            tables: Tensor::from_data(TensorData::new(tables, [spans.len(), width]), device),
        }
    }
}
