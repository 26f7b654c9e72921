//! Which rows of a step belong to what.

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::kv_cache::BLOCK_SIZE;

/// Rows of a sequence that kernels may take together.
pub(crate) const TILE_ROWS: usize = 8;

/// Consecutive tokens of one sequence in a step.
#[derive(Debug, Clone, Copy)]
pub struct RowSpan<'a> {
    /// Position of the first token in its sequence.
    pub start: usize,
    /// How many tokens.
    pub rows: usize,
    /// The sequence's block table: where positions `i * BLOCK_SIZE ..` are kept. It reaches to the
    /// last of these tokens.
    pub blocks: &'a [u32],
}

/// Which sequence and position each row of a step is, on the device.
#[derive(Debug, Clone)]
pub struct StepRows {
    /// `[rows, 3]`: the token's position, its span (a row of `tables`), and the slot that its key
    /// and value go to (`block * BLOCK_SIZE + offset`).
    pub rows: Tensor<2, Int>,
    /// `[spans, most blocks]`: block tables, filled up with zeros.
    pub tables: Tensor<2, Int>,
    /// `[tiles, 2]`: the first row and the number of rows, at most [`TILE_ROWS`] of one span.
    pub(crate) tiles: Tensor<2, Int>,
}

impl StepRows {
    /// Uploads the layout of a step. Rows of a span follow each other, spans in this order.
    ///
    /// A position behind the end of its block table goes to block 0: the caller's mistake, but
    /// never a write outside the pool.
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
