//! What the sources of the kernels name of burn, and no more: the whole of it takes a quarter of an hour to compile.

pub use cubecl;

/// Types of burn's backends.
pub mod backend {
    pub use ::cubecl::Device as CubeDevice;
    pub use ::cubecl::zspace::Shape;

    /// The type of a tensor's elements.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum DType {
        /// Floats.
        F32,
        /// Signed integers.
        I32,
    }

    impl DType {
        /// Size of an element in bytes.
        pub fn size(self) -> usize {
            4
        }
    }

    /// Conversions of types.
    pub mod cubecl {
        use ::cubecl::ir::{ElemType, FloatKind, IntKind};

        use super::DType;

        /// cubecl's name of the type.
        pub fn dtype_to_elem_type(dtype: DType) -> ElemType {
            match dtype {
                DType::F32 => ElemType::Float(FloatKind::F32),
                DType::I32 => ElemType::Int(IntKind::I32),
            }
        }
    }

    /// Tensors.
    pub mod wgpu {
        use ::cubecl::client::Client;
        use ::cubecl::prelude::{BufferArg, TensorBinding};
        use ::cubecl::server::Handle;
        use ::cubecl::zspace::metadata::Metadata;
        use ::cubecl::zspace::{Shape, Strides};

        use super::{CubeDevice, DType};

        /// A contiguous tensor.
        #[derive(Clone)]
        pub struct CubeTensor {
            /// The client of its device.
            pub client: Client,
            /// Its memory.
            pub handle: Handle,
            /// Its shape.
            pub meta: Box<Metadata>,
            /// Its device.
            pub device: CubeDevice,
            /// The type of its elements.
            pub dtype: DType,
        }

        impl CubeTensor {
            /// A tensor of this shape.
            pub fn new_contiguous(
                client: Client,
                device: CubeDevice,
                shape: Shape,
                handle: Handle,
                dtype: DType,
            ) -> Self {
                let mut strides = vec![1; shape.num_dims()];
                for dim in (1..strides.len()).rev() {
                    strides[dim - 1] = strides[dim] * shape[dim];
                }
                let meta = Box::new(Metadata::new(shape, Strides::new(&strides)));
                Self { client, handle, meta, device, dtype }
            }

            /// Whether rows lie one after another.
            pub fn is_contiguous(&self) -> bool {
                true
            }

            /// The tensor as an operation's argument.
            pub fn binding(self) -> TensorBinding {
                TensorBinding {
                    handle: self.handle.binding(),
                    strides: self.meta.strides,
                    shape: self.meta.shape,
                    tiling: self.meta.tiling,
                }
            }

            /// The tensor as a kernel's argument.
            pub fn into_buffer_arg(self) -> BufferArg {
                self.binding().into_tensor_arg().into_buffer_arg()
            }
        }
    }
}
