//! Helpers for kernel launches: results and arguments.

use burn::backend::wgpu::CubeTensor;
use burn::backend::{DType, Shape};
use burn::cubecl::prelude::BufferArg;
use burn::cubecl::server::Handle;
use burn::cubecl::std::tensor::into_contiguous;

use crate::traffic::{self, Traffic};

/// Counts one launch.
pub(crate) fn count() {
    traffic::add(Traffic::LAUNCH);
}

/// An uninitialised tensor on the device of `like`.
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

/// `tensor` itself if it is contiguous, or else a contiguous copy.
pub(crate) fn contiguous(tensor: CubeTensor) -> CubeTensor {
    if tensor.is_contiguous() {
        return tensor;
    }
    count();
    let CubeTensor { client, device, dtype, .. } = tensor.clone();
    let shape = tensor.meta.shape().clone();
    let output = into_contiguous(&client, tensor.binding(), burn::backend::cubecl::dtype_to_elem_type(dtype));
    CubeTensor::new_contiguous(client, device, shape, output.handle, dtype)
}

/// A tensor as a kernel argument.
pub(crate) fn buffer(tensor: &CubeTensor) -> BufferArg {
    tensor.clone().into_buffer_arg()
}

/// The first `len` elements of `handle` as a kernel argument.
#[allow(unsafe_code)]
pub(crate) fn slice(handle: Handle, len: usize) -> BufferArg {
    // SAFETY: callers pass handles of at least `len` elements.
    unsafe { BufferArg::from_raw_parts(handle, len) }
}
