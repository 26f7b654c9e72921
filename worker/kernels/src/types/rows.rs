//! The rows of a scheduler step: which sequence, position and cache slot each has.

use burn::tensor::{Device, Int, Tensor};

use super::sampling::SamplingParams;
use super::sizes::{BLOCK_SIZE, SAMPLE_WORDS};
use super::upload::Upload;
use super::work::{Pass, WorkList};

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
    /// How attention on GPUs is divided.
    pub(crate) work: AttentionWork,
}

/// A [`WorkList`] on the device.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "gpu"), allow(dead_code))] // for GPUs
pub(crate) struct AttentionWork {
    /// `[tiles, 4]`
    pub(crate) tiles: Tensor<2, Int>,
    /// `[singles, 3]`
    pub(crate) singles: Tensor<2, Int>,
    /// `[parts, 4]`
    pub(crate) parts: Tensor<2, Int>,
    pub(crate) passes: Vec<Pass>,
}

/// What a step computes.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepInput<'a> {
    /// The rows of each sequence; the rows of a span are consecutive, and spans keep their order.
    pub spans: &'a [RowSpan<'a>],
    /// The token of each row; may be empty.
    pub tokens: &'a [u32],
    /// Numbers of rows that are selected from a result; may be empty.
    pub selected: &'a [usize],
    /// The same, of another result.
    pub kept: &'a [usize],
    /// The tokens to sample; may be empty.
    pub samples: &'a [RowSample],
}

/// A token that is sampled from a row of logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowSample {
    /// The row's number among the logits.
    pub row: usize,
    /// How it is sampled.
    pub params: SamplingParams,
}

/// A [`StepInput`] on a device, to which it went in one upload.
#[derive(Debug)]
pub struct Step {
    /// Positions, block tables and cache slots.
    pub rows: StepRows,
    /// `[rows]`
    pub tokens: Tensor<1, Int>,
    /// As in the input.
    pub selected: Tensor<1, Int>,
    /// As in the input.
    pub kept: Tensor<1, Int>,
    /// For [`crate::sample_rows`].
    pub samples: StepSamples,
}

/// Tokens to sample, on the host and on the device.
#[derive(Debug, Clone)]
pub struct StepSamples {
    pub(crate) samples: Vec<RowSample>,
    /// `[samples, SAMPLE_WORDS]`: the row, then the bits of the parameters in their order.
    #[cfg_attr(not(feature = "gpu"), allow(dead_code))] // for GPUs
    pub(crate) table: Tensor<2, Int>,
}

impl Step {
    /// Uploads the input of a step.
    ///
    /// A position beyond the end of its block table is assigned to block 0. That is a mistake of the
    /// caller, but it never writes outside the pool.
    pub fn upload(input: StepInput<'_>, device: &Device) -> Self {
        let StepInput { spans, tokens, selected, kept, samples } = input;
        let (mut rows, mut work) = (Vec::new(), WorkList::default());
        for (number, span) in spans.iter().enumerate() {
            work.push(rows.len() / 3, number, span.start, span.rows);
            for position in span.start..span.start + span.rows {
                let block = span.blocks.get(position / BLOCK_SIZE).copied().unwrap_or(0) as usize;
                let slot = block * BLOCK_SIZE + position % BLOCK_SIZE;
                rows.extend([position, number, slot].map(|value| value as i32));
            }
        }
        let width = spans.iter().map(|span| span.blocks.len()).max().unwrap_or(0).max(1);
        let table = |span: &RowSpan<'_>| {
            let padded = span.blocks.iter().map(|block| *block as i32).chain(std::iter::repeat(0));
            padded.take(width).collect::<Vec<_>>()
        };
        let count = rows.len() / 3;
        let mut upload = Upload::default();
        let rows = upload.push(rows);
        let WorkList { tiles, singles, parts, passes } = work;
        let counts = [tiles.len() / 4, singles.len() / 3, parts.len() / 4];
        let [tiles, singles, parts] = [tiles, singles, parts].map(|words| upload.push(words));
        let tables = upload.push(spans.iter().flat_map(table));
        let ids = upload.push(tokens.iter().map(|id| *id as i32));
        let numbers = |numbers: &[usize]| numbers.iter().map(|row| *row as i32).collect::<Vec<_>>();
        let (selection, keep) = (upload.push(numbers(selected)), upload.push(numbers(kept)));
        let table = upload.push(samples.iter().flat_map(RowSample::words));
        let uploaded = upload.send(device);
        Self {
            rows: StepRows {
                rows: uploaded.tensor(rows, [count, 3]),
                tables: uploaded.tensor(tables, [spans.len(), width]),
                work: AttentionWork {
                    tiles: uploaded.tensor(tiles, [counts[0], 4]),
                    singles: uploaded.tensor(singles, [counts[1], 3]),
                    parts: uploaded.tensor(parts, [counts[2], 4]),
                    passes,
                },
            },
            tokens: uploaded.tensor(ids, [tokens.len()]),
            selected: uploaded.tensor(selection, [selected.len()]),
            kept: uploaded.tensor(keep, [kept.len()]),
            samples: StepSamples {
                samples: samples.to_vec(),
                table: uploaded.tensor(table, [samples.len(), SAMPLE_WORDS]),
            },
        }
    }
}

impl StepRows {
    /// Uploads the layout of a step: see [`Step::upload`].
    pub fn new(spans: &[RowSpan<'_>], device: &Device) -> Self {
        Step::upload(StepInput { spans, ..StepInput::default() }, device).rows
    }
}

impl StepSamples {
    /// Uploads samples alone.
    pub fn new(samples: &[RowSample], device: &Device) -> Self {
        Step::upload(StepInput { samples, ..StepInput::default() }, device).samples
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there is nothing to sample.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }
}

impl RowSample {
    fn words(&self) -> [i32; SAMPLE_WORDS] {
        let SamplingParams { temperature, top_k, top_p, min_p, random } = self.params;
        let bits = |number: f32| number.to_bits().cast_signed();
        [self.row as i32, bits(temperature), top_k.cast_signed(), bits(top_p), bits(min_p), bits(random)]
    }
}
