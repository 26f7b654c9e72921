//! Several arrays that go to a device in one upload.

#[cfg(feature = "gpu")]
use burn::backend::DispatchDevice;
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::sizes::BUFFER_ALIGNMENT;
#[cfg(feature = "gpu")]
use crate::cube;
use crate::traffic::{self, Traffic};

/// Arrays of 32-bit words on their way to a device.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    words: Vec<i32>,
}

/// One of the arrays.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    start: usize,
    len: usize,
}

/// The arrays, on the device.
#[derive(Debug)]
pub(crate) enum Uploaded {
    /// In one buffer.
    #[cfg(feature = "gpu")]
    Buffer(Box<cube::WordBuffer>),
    /// Where the host computes, each becomes a tensor of its own.
    Host(Vec<i32>, Device),
}

impl Upload {
    pub(crate) fn push(&mut self, words: impl IntoIterator<Item = i32>) -> Place {
        let start = self.words.len();
        self.words.extend(words);
        let len = self.words.len() - start;
        // No array is without a place of its own: a buffer's part can't be empty.
        self.words.resize((start + len.max(1)).next_multiple_of(BUFFER_ALIGNMENT), 0);
        Place { start, len }
    }

    pub(crate) fn send(self, device: &Device) -> Uploaded {
        traffic::count(device, Traffic::UPLOAD);
        #[cfg(feature = "gpu")]
        if let DispatchDevice::Cube(_) = device.as_dispatch() {
            return Uploaded::Buffer(Box::new(cube::WordBuffer::new(self.words, device)));
        }
        Uploaded::Host(self.words, device.clone())
    }
}

impl Uploaded {
    /// The array at `place`.
    pub(crate) fn tensor<const D: usize>(&self, place: Place, shape: [usize; D]) -> Tensor<D, Int> {
        debug_assert_eq!(place.len, shape.iter().product::<usize>());
        match self {
            #[cfg(feature = "gpu")]
            Self::Buffer(buffer) => buffer.view(place.start, shape),
            Self::Host(words, device) => {
                let words = words[place.start..place.start + place.len].to_vec();
                Tensor::from_data(TensorData::new(words, shape), device)
            }
        }
    }
}
