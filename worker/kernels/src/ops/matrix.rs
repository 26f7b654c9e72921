//! Uploads weights to a device.

use burn::backend::DispatchDevice;
use burn::tensor::{Device, Tensor, TensorData};

use crate::cpu;
#[cfg(feature = "gpu")]
use crate::cube;
use crate::ggml::extend_f32;
use crate::types::{Matrix, MatrixData, MatrixError, MatrixSpec};

impl Matrix {
    /// Uploads `blocks`, consecutive rows in ggml's layout, to `device`.
    ///
    /// # Errors
    /// Fails if a row is not a whole number of blocks, if `blocks` has the wrong length, or if the
    /// matrix exceeds the device's largest buffer.
    pub fn new(spec: MatrixSpec, blocks: &[u8], device: &Device) -> Result<Self, MatrixError> {
        let MatrixSpec { dtype, outputs, inputs } = spec;
        if inputs % dtype.block_len() != 0 {
            return Err(MatrixError::PartialBlock { inputs, dtype, block: dtype.block_len() });
        }
        let expected = outputs * spec.row_bytes();
        if blocks.len() != expected {
            return Err(MatrixError::Size { found: blocks.len(), expected });
        }
        let data = match device.as_dispatch() {
            DispatchDevice::Flex(_) => MatrixData::Packed(cpu::pack(spec, blocks)),
            #[cfg(feature = "gpu")]
            DispatchDevice::Cube(cube) => MatrixData::Packed(cube::pack(spec, blocks, cube, device)?),
            #[allow(unreachable_patterns)] // which others exist depends on burn's features
            _ => {
                let mut numbers = Vec::with_capacity(outputs * inputs);
                extend_f32(dtype, blocks, &mut numbers);
                MatrixData::Dense(Tensor::from_data(TensorData::new(numbers, [outputs, inputs]), device))
            }
        };
        Ok(Self { data, spec })
    }
}
