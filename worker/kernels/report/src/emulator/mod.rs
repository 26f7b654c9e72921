//! A CUDA device that is a simulation: kernels run on the CPU, from the source that an NVIDIA GPU would get.
//!
//! cubecl's compiler writes a kernel in CUDA C++. A C++ compiler translates it with `cuda.hpp` before it, and each launch
//! calls it. That shows that the source computes the right numbers; not how fast, nor that matrix units round their sums
//! as additions of f32 do.

mod library;
mod tests;

use std::collections::HashMap;

use burn::cubecl::prelude::*;
use cubecl_server::memory_management::{ManagedMemoryHandle, ManagedMemoryId};
use cubecl_server::server::{BufferBinding, CopyDescriptor, KernelArguments};

use self::library::Library;
use crate::device::Work;
use crate::recorder::cuda_source;

/// Bytes of a word of memory, and the alignment of buffers.
const WORD: usize = size_of::<u128>();

/// Memory and compiled kernels.
#[derive(Debug, Default)]
pub(crate) struct Emulator {
    memory: HashMap<ManagedMemoryId, Vec<u128>>,
    libraries: HashMap<KernelId, Library>,
}

impl Emulator {
    /// The bytes of a buffer from its offset on.
    fn buffer(&mut self, binding: &BufferBinding) -> &mut [u8] {
        let memory = self.memory.get_mut(&binding.memory.id()).expect("memory that was reserved");
        let start = usize::try_from(binding.offset_start.unwrap_or(0)).expect("an offset in memory");
        // SAFETY: all bytes of integers are bytes.
        #[allow(unsafe_code)]
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast::<u8>(), memory.len() * WORD) };
        &mut bytes[start..]
    }
}

fn size(descriptor: &CopyDescriptor) -> usize {
    descriptor.shape.iter().product::<usize>() * descriptor.elem_size
}

impl Work for Emulator {
    fn allocate(&mut self, memory: &ManagedMemoryHandle, bytes: u64) {
        let words = usize::try_from(bytes).expect("a size in memory").div_ceil(WORD);
        // Every f32 in it is NaN, so that what is read without having been written shows.
        self.memory.insert(memory.clone().binding().id(), vec![u128::MAX; words]);
    }

    fn write(&mut self, to: &CopyDescriptor, bytes: &[u8]) {
        self.buffer(&to.handle)[..bytes.len()].copy_from_slice(bytes);
    }

    fn read(&mut self, from: &CopyDescriptor) -> Option<Vec<u8>> {
        Some(self.buffer(&from.handle)[..size(from)].to_vec())
    }

    fn launch(&mut self, kernel: Box<dyn CubeKernel>, cubes: (u32, u32, u32), arguments: &KernelArguments) {
        let id = kernel.id();
        let threads = id.cube_dim.num_elems();
        if !self.libraries.contains_key(&id) {
            let source = cuda_source(&*kernel).expect("a kernel that cubecl can compile");
            self.libraries.insert(id.clone(), Library::new(&source));
        }
        let mut addresses: Vec<_> =
            arguments.buffers().map(|binding| self.buffer(binding).as_mut_ptr().cast()).collect();
        // As the CUDA runtime passes them: metadata of changing size in a buffer, then the rest by value.
        let info = &arguments.info;
        let mut dynamic = info.data.get(info.dynamic_metadata_offset..).unwrap_or_default().to_vec();
        if !dynamic.is_empty() {
            addresses.push(dynamic.as_mut_ptr().cast());
        }
        let mut fixed = info.data.clone();
        addresses.push(fixed.as_mut_ptr().cast());
        self.libraries[&id].launch(cubes, threads, &mut addresses);
    }
}
