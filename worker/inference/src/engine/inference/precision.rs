//! How precisely a model's products are computed.

use clap::ValueEnum;
use emberline_kernels::Precision;
use serde::Deserialize;

use super::LoadError;
use crate::device::{ComputeDevice, DeviceClass};

/// How products with weights are computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionChoice {
    /// In f32.
    #[default]
    Exact,
    /// Activations are rounded to 15 bits, on the CPU only: log-probabilities are off by some thousandths.
    Fast,
    /// Activations are rounded to 8 bits, on the CPU only: log-probabilities are off by some tenths.
    Fastest,
}

impl PrecisionChoice {
    /// The precision on `device`.
    pub(crate) fn on(self, device: &ComputeDevice) -> Result<Precision, LoadError> {
        match (self, device.class) {
            (Self::Exact, _) => Ok(Precision::Exact),
            (Self::Fast, DeviceClass::Host) => Ok(Precision::Fast),
            (Self::Fastest, DeviceClass::Host) => Ok(Precision::Fastest),
            (Self::Fast | Self::Fastest, DeviceClass::Gpu | DeviceClass::Software) => {
                Err(LoadError::Precision { device: device.description.clone() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_cpu_rounds_activations() {
        let cpu = ComputeDevice::cpu();
        assert!(matches!(PrecisionChoice::default().on(&cpu), Ok(Precision::Exact)));
        assert!(matches!(PrecisionChoice::Fast.on(&cpu), Ok(Precision::Fast)));
        assert!(matches!(PrecisionChoice::Fastest.on(&cpu), Ok(Precision::Fastest)));
        for class in [DeviceClass::Gpu, DeviceClass::Software] {
            let gpu = ComputeDevice { class, description: "that GPU".to_owned(), ..ComputeDevice::cpu() };
            assert!(matches!(PrecisionChoice::Exact.on(&gpu), Ok(Precision::Exact)));
            for refused in [PrecisionChoice::Fast, PrecisionChoice::Fastest] {
                let error = refused.on(&gpu).unwrap_err().to_string();
                assert!(error.contains("that GPU") && error.contains("--precision"), "{error}");
            }
        }
    }
}
