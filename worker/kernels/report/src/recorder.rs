//! A device of cubecl that keeps what is launched on it and computes nothing.

use std::sync::{Arc, Mutex, PoisonError};

use burn::cubecl::client::Client;
use burn::cubecl::ir::{
    DeviceIdentity, DeviceProperties, HardwareProperties, MemoryDeviceProperties, TargetProperties,
    VectorSize,
};
use burn::cubecl::prelude::*;
use burn::cubecl::{CompilationError, StreamMemoryReport, define_kernel};
use cubecl_common::bytes::Bytes;
use cubecl_common::device::{Device as _, DeviceId, DeviceService, ServerUtilitiesHandle, ServiceId};
use cubecl_common::profile::{ProfileDuration, TimingMethod};
use cubecl_cpp::shared::{CompilationOptions, CppCompiler, CppSupportedFeatures};
use cubecl_cpp::target::Cuda;
use cubecl_environment::backtrace::BackTrace;
use cubecl_environment::future::DynFut;
use cubecl_environment::stream::StreamId;
use cubecl_server::allocator::ContiguousMemoryLayoutPolicy;
use cubecl_server::device::CudaDevice;
use cubecl_server::dry_run::LaunchMode;
use cubecl_server::kernel::CompiledKernel;
use cubecl_server::logging::ServerLogger;
use cubecl_server::memory_management::{ManagedMemoryHandle, MemoryAllocationMode};
use cubecl_server::server::{
    BufferBinding, CopyDescriptor, IoError, KernelArguments, ProfileError, ProfilingToken, Server,
    ServerCommunication, ServerError, ServerStorage, ServerUtilities,
};
use cubecl_server::storage::{ComputeStorage, ManagedResource, StorageHandle, StorageId};

/// What the device calls itself.
pub(crate) const DEVICE: CudaDevice = CudaDevice { index: 0 };

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
    pub(crate) threads: u32,
}

impl RecordedLaunch {
    /// Tells the kernel from others.
    pub(crate) fn id(&self) -> KernelId {
        self.kernel.id()
    }

    /// The kernel as the CUDA runtime would compile it on sm_89 and sm_90, which differ only in what no
    /// kernel here uses.
    pub(crate) fn compile(&self) -> Result<KernelSource, CompilationError> {
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
        let definition = define_kernel(&*self.kernel)?;
        let mut compiler = CppCompiler::<Cuda>::default();
        let compiled = CompiledKernel::compile(&*self.kernel, definition, &mut compiler, &options)?;
        Ok(KernelSource {
            name: compiled.entrypoint_name,
            source: compiled.source,
            shared_bytes: compiled.repr.map_or(0, |kernel| kernel.shared_memory_size),
        })
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
    pub(crate) fn client(&self) -> Client {
        let server = RecordingServer { utilities: Arc::new(utilities()), recorder: self.clone() };
        Client::init(DEVICE.to_id(), server)
    }

    /// What was launched since the last call.
    pub(crate) fn take(&self, client: &Client) -> Vec<RecordedLaunch> {
        // Waits for the device's thread, which never fails.
        let _ = client.flush();
        std::mem::take(&mut *self.launches.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The properties of a current GPU of NVIDIA, as far as kernels can ask for them.
fn utilities() -> ServerUtilities {
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: 1024,
        max_shared_memory_size: 99 << 10,
        max_cube_count: (i32::MAX as u32, 65535, 65535),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: None,
        num_tensor_cores: None,
        min_tensor_cores_dim: None,
        num_cpu_cores: None,
        last_level_cache_size: None,
        max_vector_size: VectorSize::MAX,
        cube_mma_reserved_shared_memory: 0,
    };
    let identity =
        DeviceIdentity { name: "recorder".to_owned(), fingerprint: "recorder".to_owned(), physical: None };
    let memory = MemoryDeviceProperties::new(u64::from(u32::MAX), 512);
    let mut properties =
        DeviceProperties::new(Default::default(), memory, hardware, TimingMethod::System, identity);
    cubecl_cpp::register_supported_types(&mut properties);
    let service = ServiceId { device: DEVICE.to_id(), service: std::any::TypeId::of::<RecordingServer>() };
    let (utilities, _) = ServerUtilities::init(
        service,
        "recorder",
        properties,
        TargetProperties::default(),
        Arc::new(ServerLogger::default()),
        ContiguousMemoryLayoutPolicy::new(512),
    );
    utilities
}

#[derive(Debug)]
struct RecordingServer {
    utilities: Arc<ServerUtilities>,
    recorder: Recorder,
}

fn unsupported() -> IoError {
    IoError::UnsupportedIoOperation { backtrace: BackTrace::capture() }
}

impl Server for RecordingServer {
    fn initialize_memory(
        &mut self,
        _memory: ManagedMemoryHandle,
        _size: u64,
        _stream: StreamId,
    ) -> Result<(), ServerError> {
        Ok(())
    }

    fn logger(&self) -> Arc<ServerLogger> {
        self.utilities.logger.clone()
    }

    fn utilities(&self) -> Arc<ServerUtilities> {
        self.utilities.clone()
    }

    fn read(
        &mut self,
        _descriptors: Vec<CopyDescriptor>,
        _stream: StreamId,
    ) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        Box::pin(async { Err(unsupported().into()) })
    }

    fn write(&mut self, _descriptors: Vec<(CopyDescriptor, Bytes)>, _stream: StreamId) {}

    fn sync(&mut self, _handles: Vec<BufferBinding>, _stream: StreamId) -> DynFut<Result<(), ServerError>> {
        Box::pin(async { Ok(()) })
    }

    fn check(&mut self, _handles: Vec<BufferBinding>, _stream: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    #[allow(unsafe_code)] // the trait's
    unsafe fn launch(
        &mut self,
        kernel: Box<dyn CubeKernel>,
        count: CubeCount,
        _arguments: KernelArguments,
        _stream: StreamId,
        _mode: LaunchMode,
    ) {
        let cubes = match count {
            CubeCount::Static(x, y, z) => u64::from(x) * u64::from(y) * u64::from(z),
            CubeCount::Dynamic(_) => 0,
        };
        let threads = kernel.id().cube_dim.num_elems();
        let launch = RecordedLaunch { kernel, cubes, threads };
        self.recorder.launches.lock().unwrap_or_else(PoisonError::into_inner).push(launch);
    }

    fn flush(&mut self, _stream: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn memory_report(&mut self, _stream: StreamId) -> Option<StreamMemoryReport> {
        None
    }

    fn memory_cleanup(&mut self, _stream: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn start_profile(&mut self, _stream: StreamId) -> Result<ProfilingToken, ServerError> {
        Err(unsupported().into())
    }

    fn end_profile(
        &mut self,
        _stream: StreamId,
        _token: ProfilingToken,
    ) -> Result<ProfileDuration, ProfileError> {
        Err(ProfileError::NotRegistered { backtrace: BackTrace::capture() })
    }

    fn allocation_mode(&mut self, _mode: MemoryAllocationMode, _stream: StreamId) {}
}

impl ServerCommunication for RecordingServer {}

impl DeviceService for RecordingServer {
    fn init(_device: DeviceId) -> Self {
        Self { utilities: Arc::new(utilities()), recorder: Recorder::default() }
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        self.utilities.clone()
    }
}

impl ServerStorage for RecordingServer {
    type Storage = NoStorage;

    fn get_resource(
        &mut self,
        _binding: BufferBinding,
        _stream: StreamId,
    ) -> Result<ManagedResource<()>, ServerError> {
        Err(unsupported().into())
    }
}

/// The memory of a device that has none.
struct NoStorage;

impl ComputeStorage for NoStorage {
    type Resource = ();

    fn alignment(&self) -> usize {
        512
    }

    fn get(&mut self, _handle: &StorageHandle) -> Result<(), IoError> {
        Err(unsupported())
    }

    fn alloc(&mut self, _size: u64) -> Result<StorageHandle, IoError> {
        Err(unsupported())
    }

    fn dealloc(&mut self, _id: StorageId) {}

    fn flush(&mut self) {}

    fn bytes_allocated(&self) -> u64 {
        0
    }
}
