//! What every launch needs.

use burn::backend::wgpu::CubeTensor;
use burn::backend::{DType, Shape};
use burn::cubecl::prelude::BufferArg;
use burn::cubecl::server::Handle;
use burn::cubecl::std::tensor::into_contiguous;

pub(crate) use crate::dispatches::count;

/// Room for a result, next to `like`.
pub(crate) fn empty(like: &CubeTensor, shape: &[usize], dtype: DType) -> CubeTensor {
    let size = shape.iter().product::<usize>() * dtype.size();
    let handle = like.client.empty(size.max(4));
    CubeTensor::new_contiguous(
        like.client.clone(),
        like.device.clone(),
        Shape::from(shape.to_vec()),
        handle,
        dtype,
    )
}

/// The same numbers, row by row.
pub(crate) fn contiguous(tensor: CubeTensor) -> CubeTensor {
    if tensor.is_contiguous() {
        return tensor;
    }
    let CubeTensor { client, device, dtype, .. } = tensor.clone();
    let shape = tensor.meta.shape().clone();
    let output = into_contiguous(&client, tensor.binding(), burn::backend::cubecl::dtype_to_elem_type(dtype));
    CubeTensor::new_contiguous(client, device, shape, output.handle, dtype)
}

/// A tensor as an argument of a kernel.
pub(crate) fn buffer(tensor: &CubeTensor) -> BufferArg {
    tensor.clone().into_buffer_arg()
}

/// `words` words of `handle` as an argument of a kernel.
#[allow(unsafe_code)]
pub(crate) fn part(handle: Handle, words: usize) -> BufferArg {
    // SAFETY: callers pass handles of at least so many words.
    unsafe { BufferArg::from_raw_parts(handle, words) }
}
