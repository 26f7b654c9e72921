//! A device of cubecl for which this process says what a launch does.

use std::fmt::Debug;
use std::sync::Arc;

use burn::cubecl::StreamMemoryReport;
use burn::cubecl::client::Client;
use burn::cubecl::ir::{
    DeviceIdentity, DeviceProperties, HardwareProperties, MemoryDeviceProperties, TargetProperties,
    VectorSize,
};
use burn::cubecl::prelude::*;
use cubecl_common::bytes::Bytes;
use cubecl_common::device::{Device as _, DeviceId, DeviceService, ServerUtilitiesHandle, ServiceId};
use cubecl_common::profile::{ProfileDuration, TimingMethod};
use cubecl_cpp::cuda::arch::CudaArchitecture;
use cubecl_cpp::cuda::supported_mma_combinations;
use cubecl_cpp::shared::register_mma_features;
use cubecl_environment::backtrace::BackTrace;
use cubecl_environment::future::DynFut;
use cubecl_environment::stream::StreamId;
use cubecl_server::allocator::ContiguousMemoryLayoutPolicy;
use cubecl_server::device::CudaDevice;
use cubecl_server::dry_run::LaunchMode;
use cubecl_server::logging::ServerLogger;
use cubecl_server::memory_management::{ManagedMemoryHandle, MemoryAllocationMode};
use cubecl_server::server::{
    BufferBinding, CopyDescriptor, IoError, KernelArguments, ProfileError, ProfilingToken, Server,
    ServerCommunication, ServerError, ServerStorage, ServerUtilities,
};
use cubecl_server::storage::{ComputeStorage, ManagedResource, StorageHandle, StorageId};

/// Which of two GPUs the device is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gpu {
    /// With matrix units, as CUDA offers them.
    MatrixUnits,
    /// Without, as graphics APIs show it.
    Plain,
}

impl Gpu {
    /// What the device calls itself.
    pub(crate) fn device(self) -> CudaDevice {
        CudaDevice { index: self as usize }
    }
}

/// What the device does.
pub(crate) trait Work: Debug + Default + Send + 'static {
    /// Reserves memory.
    fn allocate(&mut self, memory: &ManagedMemoryHandle, bytes: u64);

    /// Copies to memory.
    fn write(&mut self, to: &CopyDescriptor, bytes: &[u8]);

    /// Copies from memory; nothing where it has none.
    fn read(&mut self, from: &CopyDescriptor) -> Option<Vec<u8>>;

    /// Launches a kernel.
    fn launch(&mut self, kernel: Box<dyn CubeKernel>, cubes: (u32, u32, u32), arguments: &KernelArguments);
}

/// A client of a new device that does `work`. A process can have one for each kind.
pub(crate) fn client<W: Work>(gpu: Gpu, work: W) -> Client {
    let utilities = Arc::new(utilities::<W>(gpu));
    Client::init(gpu.device().to_id(), SimulatedServer { utilities, work })
}

/// The properties of a current GPU of NVIDIA, as far as kernels can ask for them.
fn utilities<W: Work>(gpu: Gpu) -> ServerUtilities {
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
    let identity = DeviceIdentity {
        name: "simulation".to_owned(),
        fingerprint: "simulation".to_owned(),
        physical: None,
    };
    let memory = MemoryDeviceProperties::new(u64::from(u32::MAX), 512);
    let mut properties =
        DeviceProperties::new(Default::default(), memory, hardware, TimingMethod::System, identity);
    cubecl_cpp::register_supported_types(&mut properties);
    if gpu == Gpu::MatrixUnits {
        let hopper = CudaArchitecture { version: 90, tensor_cores: true };
        register_mma_features(supported_mma_combinations(&hopper), &mut properties);
    }
    let service =
        ServiceId { device: gpu.device().to_id(), service: std::any::TypeId::of::<SimulatedServer<W>>() };
    let (utilities, _) = ServerUtilities::init(
        service,
        "simulation",
        properties,
        TargetProperties::default(),
        Arc::new(ServerLogger::default()),
        ContiguousMemoryLayoutPolicy::new(512),
    );
    utilities
}

#[derive(Debug)]
struct SimulatedServer<W> {
    utilities: Arc<ServerUtilities>,
    work: W,
}

fn unsupported() -> IoError {
    IoError::UnsupportedIoOperation { backtrace: BackTrace::capture() }
}

impl<W: Work> Server for SimulatedServer<W> {
    fn initialize_memory(
        &mut self,
        memory: ManagedMemoryHandle,
        size: u64,
        _stream: StreamId,
    ) -> Result<(), ServerError> {
        self.work.allocate(&memory, size);
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
        descriptors: Vec<CopyDescriptor>,
        _stream: StreamId,
    ) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        let copy = |from: &CopyDescriptor| Some(Bytes::from_bytes_vec(self.work.read(from)?));
        let bytes: Option<Vec<Bytes>> = descriptors.iter().map(copy).collect();
        Box::pin(async { bytes.ok_or_else(|| unsupported().into()) })
    }

    fn write(&mut self, descriptors: Vec<(CopyDescriptor, Bytes)>, _stream: StreamId) {
        descriptors.iter().for_each(|(to, bytes)| self.work.write(to, bytes));
    }

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
        arguments: KernelArguments,
        _stream: StreamId,
        _mode: LaunchMode,
    ) {
        let cubes = match count {
            CubeCount::Static(x, y, z) => (x, y, z),
            CubeCount::Dynamic(_) => (0, 0, 0),
        };
        self.work.launch(kernel, cubes, &arguments);
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

impl<W: Work> ServerCommunication for SimulatedServer<W> {}

impl<W: Work> DeviceService for SimulatedServer<W> {
    fn init(_device: DeviceId) -> Self {
        Self { utilities: Arc::new(utilities::<W>(Gpu::Plain)), work: W::default() }
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        self.utilities.clone()
    }
}

impl<W: Work> ServerStorage for SimulatedServer<W> {
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
