//! Packs ggml's blocks into strips; [`super::format`] describes the layout.

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use super::format::{self, Format, GROUP, each_format, offset};
use super::simd::LANES;
use crate::ggml::GgmlType;
use crate::types::MatrixSpec;

/// Number of panels in a strip.
pub(crate) const PANELS: usize = 2;
/// Number of outputs in a strip.
pub(crate) const STRIP_OUTPUTS: usize = PANELS * LANES;

/// A packed matrix, borrowed from a tensor.
#[derive(Clone, Copy)]
pub(crate) struct PackedMatrix<'a> {
    bytes: &'a [u8],
    pub(crate) dtype: GgmlType,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    strip_bytes: usize,
}

impl<'a> PackedMatrix<'a> {
    pub(crate) fn new(bytes: &'a [u8], spec: MatrixSpec) -> Self {
        let MatrixSpec { dtype, outputs, inputs } = spec;
        Self { bytes, dtype, outputs, inputs, strip_bytes: strip_bytes(spec) }
    }

    /// The bytes of a strip.
    pub(crate) fn strip(&self, index: usize) -> &'a [u8] {
        &self.bytes[index * self.strip_bytes..][..self.strip_bytes]
    }
}

/// Number of inputs and of bytes of a record.
fn record(dtype: GgmlType) -> (usize, usize) {
    fn of<F: Format>() -> (usize, usize) {
        (F::INPUTS, F::BYTES)
    }
    macro_rules! of {
        ($($dtype:ident: $format:ty,)+) => {
            match dtype {
                $(GgmlType::$dtype => of::<$format>(),)+
            }
        };
    }
    each_format!(of)
}

fn strip_bytes(spec: MatrixSpec) -> usize {
    let (len, bytes) = record(spec.dtype);
    PANELS * spec.inputs.div_ceil(len) * bytes
}

/// Size of a packed matrix in bytes.
pub(crate) fn packed_bytes(spec: MatrixSpec) -> usize {
    spec.outputs.div_ceil(STRIP_OUTPUTS) * strip_bytes(spec)
}

/// Packs `blocks`, rows in ggml's layout, into `packed`, which is all zeros.
pub(crate) fn pack(spec: MatrixSpec, blocks: &[u8], packed: &mut [u8]) {
    let (_, record_bytes) = record(spec.dtype);
    let row_bytes = spec.row_bytes();
    // Bytes that become one lane of a record: a block, or GROUP plain floats.
    let lane_bytes = spec.dtype.block_bytes() * if spec.dtype.block_len() == 1 { GROUP } else { 1 };
    packed.par_chunks_mut(strip_bytes(spec)).enumerate().for_each(|(strip, packed)| {
        for (index, record) in packed.chunks_exact_mut(record_bytes).enumerate() {
            let (block, panel) = (index / PANELS, index % PANELS);
            let first = strip * STRIP_OUTPUTS + panel * LANES;
            for lane in 0..LANES.min(spec.outputs.saturating_sub(first)) {
                let row = &blocks[(first + lane) * row_bytes..][..row_bytes];
                let source = &row[block * lane_bytes..row_bytes.min((block + 1) * lane_bytes)];
                Lane { record: &mut *record, lane }.write(spec.dtype, source);
            }
        }
    });
}

/// The lane of one output in a record.
struct Lane<'a> {
    record: &'a mut [u8],
    lane: usize,
}

impl Lane<'_> {
    /// Writes this lane of the vector at `offset`.
    fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.record[offset + self.lane * bytes.len()..][..bytes.len()].copy_from_slice(bytes);
    }

    fn write(&mut self, dtype: GgmlType, block: &[u8]) {
        use offset::{K_HIGH, K_LOW, SECOND, THIRD};
        match dtype {
            GgmlType::F32 => self.floats::<4>(block),
            GgmlType::F16 | GgmlType::BF16 => self.floats::<2>(block),
            GgmlType::Q4_0 => {
                self.set(0, &block[..2]);
                self.nibbles(SECOND, &block[2..]);
            }
            GgmlType::Q4_1 => {
                self.set(0, &block[..2]);
                self.set(SECOND, &block[2..4]);
                self.nibbles(THIRD, &block[4..]);
            }
            GgmlType::Q5_0 => {
                self.set(0, &block[..2]);
                self.set(SECOND, &fifth_bits(|i| block[2 + i / 8] >> (i % 8)).to_le_bytes());
                self.nibbles(SECOND + 64, &block[6..]);
            }
            GgmlType::Q5_1 => {
                self.set(0, &block[..2]);
                self.set(SECOND, &block[2..4]);
                self.set(THIRD, &fifth_bits(|i| block[4 + i / 8] >> (i % 8)).to_le_bytes());
                self.nibbles(THIRD + 64, &block[8..]);
            }
            GgmlType::Q8_0 => {
                self.set(0, &block[..2]);
                for (i, numbers) in block[2..].as_chunks::<4>().0.iter().enumerate() {
                    // Zero is stored as 128, so that the numbers are not negative.
                    self.set(SECOND + i * 64, &numbers.map(|number| number ^ 0x80));
                }
            }
            GgmlType::Q4_K => {
                self.k_scales(block);
                self.k_low(K_LOW, &block[16..]);
            }
            GgmlType::Q5_K => {
                self.k_scales(block);
                self.k_low(K_LOW, &block[48..]);
                for group in 0..8 {
                    let word = fifth_bits(|i| block[16 + i] >> group);
                    self.set(K_HIGH + group * 64, &word.to_le_bytes());
                }
            }
            GgmlType::Q6_K => self.q6_k(block),
        }
    }

    fn floats<const BYTES: usize>(&mut self, block: &[u8]) {
        for (i, number) in block.as_chunks::<BYTES>().0.iter().enumerate() {
            self.set(i * LANES * BYTES, number);
        }
    }

    /// Writes 32 numbers of 4 bits from ggml's order in a block of 32.
    fn nibbles(&mut self, offset: usize, low: &[u8]) {
        for chunk in 0..4 {
            let bytes = &low[chunk % 2 * 8..][..8];
            self.words(offset + chunk * 64, bytes, 4 * (chunk / 2));
        }
    }

    /// Writes a word of 4 bits from each of eight bytes, from bit `shift` on.
    fn words(&mut self, offset: usize, bytes: &[u8], shift: usize) {
        let nibble = |i: usize| bytes[i] >> shift & 0xF;
        self.set(offset, &std::array::from_fn::<u8, 4, _>(|k| nibble(k) | nibble(k + 4) << 4));
    }

    /// Writes d, dmin, and the scales and minima that are packed in twelve bytes.
    fn k_scales(&mut self, block: &[u8]) {
        self.set(0, &block[..2]);
        self.set(offset::SECOND, &block[2..4]);
        for group in 0..8 {
            let (scale, minimum) = crate::ggml::k_scale_and_min(&block[4..16], group);
            self.set(offset::THIRD + group * LANES, &[scale]);
            self.set(offset::MINIMA + group * LANES, &[minimum]);
        }
    }

    /// Writes 256 numbers of 4 bits, of which each 32 bytes hold two groups.
    fn k_low(&mut self, offset: usize, low: &[u8]) {
        for chunk in 0..32 {
            let (group, part) = (chunk / 4, chunk % 4);
            let bytes = &low[group / 2 * 32 + part * 8..][..8];
            self.words(offset + chunk * 64, bytes, 4 * (group % 2));
        }
    }

    /// Writes a Q6_K block: two halves of four groups each; see `q6_k` in [`crate::ggml`].
    fn q6_k(&mut self, block: &[u8]) {
        let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
        self.set(0, &block[208..]);
        for (i, scale) in scales.iter().enumerate() {
            self.set(offset::SECOND + i * LANES, &[*scale]);
        }
        for chunk in 0..32 {
            let (half, group, part) = (chunk / 16, chunk / 4 % 4, chunk % 4);
            let bytes = &low[half * 64 + group % 2 * 32 + part * 8..][..8];
            self.words(offset::Q6_LOW + chunk * 64, bytes, 4 * (group / 2));
        }
        for word in 0..16 {
            let (half, group, part) = (word / 8, word / 2 % 4, word % 2);
            let bytes = &high[half * 32 + part * 16..][..16];
            let bits = (0..16).fold(0_u32, |bits, i| {
                bits | u32::from(bytes[i] >> (2 * group) & 3) << (i % 4 * 8 + i / 4 * 2)
            });
            self.set(offset::Q6_HIGH + word * 64, &bits.to_le_bytes());
        }
    }
}

/// The word of the fifth bits of 32 inputs; bit 0 of `of(i)` is that of input `i`.
fn fifth_bits(of: impl Fn(usize) -> u8) -> u32 {
    (0..GROUP).fold(0, |bits, i| bits | u32::from(of(i) & 1) << (i % 4 * 8 + i / 4))
}
