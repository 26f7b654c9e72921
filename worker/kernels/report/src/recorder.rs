//! A device that keeps what is launched on it and computes nothing.

use std::sync::{Arc, Mutex, PoisonError};

use burn::cubecl::client::Client;
use burn::cubecl::prelude::*;
use burn::cubecl::{CompilationError, define_kernel};
use cubecl_cpp::shared::{CompilationOptions, CppCompiler, CppSupportedFeatures};
use cubecl_cpp::target::Cuda;
use cubecl_server::kernel::CompiledKernel;
use cubecl_server::memory_management::ManagedMemoryHandle;
use cubecl_server::server::{CopyDescriptor, KernelArguments};

use crate::device::{self, Gpu, Work};

/// Source of a kernel, in CUDA C++.
#[derive(Debug, Clone)]
pub(crate) struct KernelSource {
    /// The name of its function.
    pub(crate) name: String,
    /// The text.
    pub(crate) source: String,
    /// Shared memory of a cube.
    pub(crate) shared_bytes: usize,
}

/// A launch that was recorded.
pub(crate) struct RecordedLaunch {
    kernel: Box<dyn CubeKernel>,
    pub(crate) cubes: u64,
}

impl RecordedLaunch {
    /// Threads of a cube.
    pub(crate) fn threads(&self) -> u32 {
        self.kernel.id().cube_dim.num_elems()
    }

    /// Tells the kernel from others.
    pub(crate) fn id(&self) -> KernelId {
        self.kernel.id()
    }

    /// See [`cuda_source`].
    pub(crate) fn compile(&self) -> Result<KernelSource, CompilationError> {
        cuda_source(&*self.kernel)
    }
}

/// The launches that the device keeps.
#[derive(Clone, Default)]
pub(crate) struct Recorder {
    launches: Arc<Mutex<Vec<RecordedLaunch>>>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorder")
    }
}

impl Recorder {
    /// A client of a new device.
    pub(crate) fn client(&self, gpu: Gpu) -> Client {
        device::client(gpu, self.clone())
    }

    /// What was launched since the last call.
    pub(crate) fn take(&self, client: &Client) -> Vec<RecordedLaunch> {
        // Waits for the device's thread, which never fails.
        let _ = client.flush();
        std::mem::take(&mut *self.launches.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Work for Recorder {
    fn allocate(&mut self, _memory: &ManagedMemoryHandle, _bytes: u64) {}

    fn write(&mut self, _to: &CopyDescriptor, _bytes: &[u8]) {}

    fn read(&mut self, _from: &CopyDescriptor) -> Option<Vec<u8>> {
        None
    }

    fn launch(&mut self, kernel: Box<dyn CubeKernel>, cubes: (u32, u32, u32), _arguments: &KernelArguments) {
        let cubes = u64::from(cubes.0) * u64::from(cubes.1) * u64::from(cubes.2);
        let launch = RecordedLaunch { kernel, cubes };
        self.launches.lock().unwrap_or_else(PoisonError::into_inner).push(launch);
    }
}

/// A kernel as the CUDA runtime would compile it on sm_89 and sm_90, which differ only in what no
/// kernel here uses.
pub(crate) fn cuda_source(kernel: &dyn CubeKernel) -> Result<KernelSource, CompilationError> {
    let options = CompilationOptions {
        supports_features: CppSupportedFeatures {
            grid_constants: true,
            fast_math: true,
            fast_tanh: true,
            dp4a: true,
            ..CppSupportedFeatures::default()
        },
        ..CompilationOptions::default()
    };
    let definition = define_kernel(kernel)?;
    let mut compiler = CppCompiler::<Cuda>::default();
    let compiled = CompiledKernel::compile(kernel, definition, &mut compiler, &options)?;
    Ok(KernelSource {
        name: compiled.entrypoint_name,
        source: compiled.source,
        shared_bytes: compiled.repr.map_or(0, |kernel| kernel.shared_memory_size),
    })
}
