//! `emberline-worker bench`: how fast this engine is on this machine.
//!
//! [`network`] measures the network by itself, as llama-bench does; [`serving`] the whole engine,
//! as a job's submitter sees it; [`constrained`] the cost of enforcing a schema; [`speculation`] what
//! drafts save;
//! [`copy_bandwidth`] and [`process`] what both are to be compared with.
//! The result goes to standard output as JSON, which `emberline bench engine` shows as a table.

mod constrained;
mod network;
mod process;
mod serving;
mod speculation;
mod stream;

use std::path::PathBuf;

use clap::Args;
use emberline_kernels::{InstructionSet, copy_bandwidth, limit_instruction_set};
use emberline_protocol::measurement::{DeviceFacts, EngineMeasurement, MemoryUse, ModelFacts};

use crate::checkpoint::Checkpoint;
use crate::device::{Backend, ComputeDevice, DeviceClass, DeviceError};
use crate::engine::inference::{CacheDtype, LoadError, LoadOptions, PrecisionChoice};
use crate::network::{ComputeError, Network, RandomShape};
use network::Load;
pub use process::resident;

/// More than the caches of any device hold.
const COPY_BYTES: usize = 1 << 30;

/// What to measure.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// The model: a GGUF file, or a folder with safetensors files
    #[arg(long, value_name = "PATH", required_unless_present = "random")]
    pub model: Option<PathBuf>,

    /// What to call it [default: the file's name without its extension]
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,

    /// Random weights in place of a model, such as llama-1b-q8_0
    #[arg(long, value_name = "SHAPE", conflicts_with = "model")]
    pub random: Option<RandomShape>,

    /// Where to compute; `auto` takes the GPU if there is one, and the CPU otherwise
    #[arg(long, env = "EMBERLINE_BACKEND", value_enum, default_value_t = Backend::Auto)]
    pub backend: Backend,

    /// The adapter that wgpu is to use: its number, or part of its name
    #[arg(long, env = "EMBERLINE_ADAPTER", value_name = "NAME")]
    pub adapter: Option<String>,

    /// How products with weights are computed
    #[arg(long, value_enum, default_value_t = PrecisionChoice::Exact)]
    pub precision: PrecisionChoice,

    /// The best instruction set of the CPU to use: portable, avx2, avx-vnni, avx512 or avx512-vnni
    /// [default: the best there is]
    #[arg(long, value_name = "NAME")]
    pub instruction_set: Option<InstructionSet>,

    /// Measure a GPU or nothing
    #[arg(long)]
    pub require_gpu: bool,

    /// Fewer sizes and repetitions
    #[arg(long)]
    pub quick: bool,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// Nothing was named.
    #[error("no model: give --model PATH or --random SHAPE")]
    NoModel,
    /// A GPU was asked for.
    #[error(
        "there is no GPU to measure: {found} computes on the CPU. Install the GPU's driver and, on Linux, the \
         Vulkan loader, or leave --require-gpu out to measure what there is"
    )]
    NoGpu {
        /// The device there is.
        found: String,
    },
    /// No device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The model can't be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device failed.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// The engine did not do what was asked of it.
    #[error("the engine could not be measured: {0}")]
    Engine(String),
}

/// Measures everything; takes minutes.
pub fn run(args: &BenchArgs) -> Result<EngineMeasurement, BenchError> {
    if let Some(best) = args.instruction_set {
        limit_instruction_set(best);
    }
    let device = ComputeDevice::open(args.backend, args.adapter.as_deref())?;
    if args.require_gpu && device.class != DeviceClass::Gpu {
        return Err(BenchError::NoGpu { found: device.description });
    }
    let load = Load::new(args.quick, device.class != DeviceClass::Host);
    let (mut network, name) = load_network(args, &device)?;
    network.set_precision(args.precision.on(&device)?);
    let loaded = process::resident();
    let stored = CacheDtype::Auto.stored();
    let model = ModelFacts {
        name,
        random: args.random.is_some(),
        weight_bytes: network.weight_bytes(),
        step_bytes: network.step_bytes(),
        cache_bytes_per_token: network.block_bytes(stored) / emberline_kernels::BLOCK_SIZE as u64,
    };
    tracing::info!(model = %model.name, device = %device.description, "measuring the network");
    let measured = network::measure(&mut network, &load, stored)?;
    drop(network);
    let serving = match &args.model {
        Some(path) => {
            process::reset_peak();
            let model =
                LoadOptions { precision: args.precision, ..LoadOptions::new(path, "bench", device.clone()) };
            Some(serving::measure(&model, &load, &measured.chunks)?)
        }
        None => None,
    };
    let peak = process::peak();
    // Last of all: it needs more memory than anything else.
    let copy_bytes_per_s = copy_bandwidth(&device.device, COPY_BYTES).ok();
    Ok(EngineMeasurement {
        device: DeviceFacts {
            gpu: device.class == DeviceClass::Gpu,
            description: device.description,
            cpu: process::processor(),
            threads: rayon::current_num_threads(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            arithmetic: arithmetic(args),
        },
        model,
        quick: args.quick,
        copy_bytes_per_s,
        prefill: measured.prefill,
        decode: measured.decode,
        dispatches_per_step: measured.dispatches_per_step,
        decode_profile: measured.profile,
        cache: measured.cache,
        serving,
        memory: MemoryUse { loaded, peak, gpu_peak: None },
    })
}

fn load_network(args: &BenchArgs, device: &ComputeDevice) -> Result<(Network, String), BenchError> {
    if let Some(shape) = args.random {
        let network = Network::random(shape, device).map_err(LoadError::from)?;
        return Ok((network, shape.to_string()));
    }
    let path = args.model.as_ref().ok_or(BenchError::NoModel)?;
    let name = args.model_name.clone().or_else(|| Some(path.file_stem()?.to_str()?.to_owned()));
    let checkpoint = Checkpoint::open(path).map_err(LoadError::from)?;
    let network = Network::open(&checkpoint, device, None).map_err(LoadError::from)?;
    Ok((network, name.unwrap_or_else(|| "model".to_owned())))
}

/// What the options say about arithmetic; empty if they say nothing.
fn arithmetic(args: &BenchArgs) -> String {
    let precision = match args.precision {
        PrecisionChoice::Exact => None,
        PrecisionChoice::Fast => Some("fast".to_owned()),
        PrecisionChoice::Fastest => Some("fastest".to_owned()),
    };
    let set = args.instruction_set.map(|set| set.to_string());
    precision.into_iter().chain(set).collect::<Vec<_>>().join(", ")
}
