//! Uploads weights to a device.

use std::borrow::Cow;

use burn::backend::DispatchDevice;
use burn::tensor::{Device, Tensor, TensorData};

use crate::cpu;
#[cfg(feature = "gpu")]
use crate::cube;
use crate::ggml::extend_f32;
use crate::types::{Matrix, MatrixData, MatrixError, MatrixPart, MatrixRows, MatrixSpec, Precision};

/// A multiple of the rows that any kernel computes together.
const WHOLE_TILES: usize = 32;

impl Matrix {
    /// Uploads `blocks`, consecutive rows in ggml's layout, to `device`.
    ///
    /// # Errors
    /// Fails if a row is not a whole number of blocks, if `blocks` has the wrong length, or if a row
    /// exceeds the device's largest buffer.
    pub fn new(spec: MatrixSpec, blocks: &[u8], device: &Device) -> Result<Self, MatrixError> {
        Self::in_parts(spec, blocks, device, MatrixRows::Plain, u64::MAX)
    }

    /// As [`Matrix::new`], in as many parts as it takes for none to exceed `largest` bytes.
    ///
    /// # Errors
    /// As [`Matrix::new`]; a row must not exceed `largest` either.
    pub fn in_parts(
        spec: MatrixSpec,
        blocks: &[u8],
        device: &Device,
        rows: MatrixRows,
        largest: u64,
    ) -> Result<Self, MatrixError> {
        let MatrixSpec { dtype, outputs, inputs } = spec;
        if inputs % dtype.block_len() != 0 {
            return Err(MatrixError::PartialBlock { inputs, dtype, block: dtype.block_len() });
        }
        let expected = outputs * spec.row_bytes();
        if blocks.len() != expected {
            return Err(MatrixError::Size { found: blocks.len(), expected });
        }
        let stacks = match rows {
            MatrixRows::Plain => 1,
            MatrixRows::Gated => 2,
        };
        let limit = largest.min(buffer_limit(device));
        // Of each of the stacks.
        let (all, most) = (outputs / stacks, rows_per_part(spec, stacks, device, limit)?);
        let parts = (0..all.max(1)).step_by(most).map(|first| {
            let count = most.min(all - first);
            let spec = MatrixSpec { outputs: stacks * count, ..spec };
            let part = match count == all {
                true => Cow::Borrowed(blocks),
                false => Cow::Owned(cut(blocks, spec, stacks, first)),
            };
            MatrixPart { data: upload(spec, &part, device), spec }
        });
        Ok(Self { parts: parts.collect(), spec, precision: Precision::Exact })
    }
}

/// Rows that a buffer of `limit` bytes holds of each of the `stacks`.
fn rows_per_part(spec: MatrixSpec, stacks: usize, device: &Device, limit: u64) -> Result<usize, MatrixError> {
    // Devices store some more of whole tiles of rows than of single ones.
    let tiles = MatrixSpec { outputs: stacks * WHOLE_TILES, ..spec };
    let (bytes, padding) = packed_size(tiles, device);
    let bytes = bytes.div_ceil(WHOLE_TILES as u64);
    match limit.saturating_sub(padding) / bytes.max(1) {
        0 => Err(MatrixError::TooLarge { bytes: bytes + padding, limit }),
        most => {
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            Ok(if most < WHOLE_TILES { most } else { most / WHOLE_TILES * WHOLE_TILES })
        }
    }
}

/// Of each of `stacks` equal stacks of rows, those of `spec` from `first` on.
fn cut(blocks: &[u8], spec: MatrixSpec, stacks: usize, first: usize) -> Vec<u8> {
    let (row, count) = (spec.row_bytes(), spec.outputs / stacks);
    let stacks = blocks.chunks(blocks.len() / stacks);
    stacks.flat_map(|stack| &stack[first * row..(first + count) * row]).copied().collect()
}

/// The largest buffer of a device, in bytes.
fn buffer_limit(device: &Device) -> u64 {
    match device.as_dispatch() {
        DispatchDevice::Flex(_) => u64::MAX,
        #[cfg(feature = "gpu")]
        DispatchDevice::Cube(cube) => cube.client().properties().memory.max_page_size,
        #[allow(unreachable_patterns)] // which others exist depends on burn's features
        _ => u64::MAX,
    }
}

/// The size of these rows on a device, and of the padding of any number of rows, in bytes.
fn packed_size(rows: MatrixSpec, device: &Device) -> (u64, u64) {
    let stored = ((rows.outputs * rows.row_bytes()) as u64, 0);
    match device.as_dispatch() {
        DispatchDevice::Flex(_) => stored,
        #[cfg(feature = "gpu")]
        DispatchDevice::Cube(device) => cube::packed_size(rows, device),
        #[allow(unreachable_patterns)] // which others exist depends on burn's features
        _ => stored,
    }
}

fn upload(spec: MatrixSpec, blocks: &[u8], device: &Device) -> MatrixData {
    match device.as_dispatch() {
        DispatchDevice::Flex(_) => MatrixData::Packed(cpu::pack(spec, blocks)),
        #[cfg(feature = "gpu")]
        DispatchDevice::Cube(cube) => MatrixData::Packed(cube::pack(spec, blocks, cube, device)),
        #[allow(unreachable_patterns)] // which others exist depends on burn's features
        _ => {
            let mut numbers = Vec::with_capacity(spec.outputs * spec.inputs);
            extend_f32(spec.dtype, blocks, &mut numbers);
            let shape = [spec.outputs, spec.inputs];
            MatrixData::Dense(Tensor::from_data(TensorData::new(numbers, shape), device))
        }
    }
}
