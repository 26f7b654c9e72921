//! Loads a model into an engine that is ready to serve.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use emberline_kernels::{BLOCK_SIZE, Precision};
use emberline_protocol::heartbeat::ServedModel;

use super::batch_sampler::BatchSampler;
use super::cache::{self, CacheDtype, CacheSize, Room};
use super::output_processor::OutputProcessor;
use super::precision::PrecisionChoice;
use super::prompt_renderer::PromptRenderer;
use super::{Facts, InferenceEngine, LoadError, LoadProgress, StepCounts, warm_up};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::clock;
use crate::constraint::GrammarCompiler;
use crate::device::{ComputeDevice, DeviceClass};
use crate::network::{Architecture, Network, Quantize};
use crate::scheduler::{Scheduler, SchedulerLimits};
use crate::speculation::Speculation;
use crate::template::ChatTemplate;
use crate::tokenizer::ModelTokenizer;

/// Prompt rows in a step by default: enough to use the device well, and few enough that running
/// sequences are hardly delayed.
const CPU_PREFILL_BUDGET: usize = 256;
const GPU_PREFILL_BUDGET: usize = 1024;
/// Drafted rows in a step at most.
const DRAFT_BUDGET: usize = 32;

/// Of a load onto a GPU, the part that the weights are; the rest is the warm-up.
const WEIGHTS_PERCENT: u32 = 70;

/// What to load, and how to run it.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// A GGUF file, or a folder as on the Hugging Face hub.
    pub path: PathBuf,
    /// The name that it is served under.
    pub name: String,
    /// Where to compute.
    pub device: ComputeDevice,
    /// Most concurrent jobs, and sequences; `None` for as many as a GPU's cache serves, and 32 elsewhere.
    pub slots: Option<usize>,
    /// Most prompt rows in a step; `None` for what suits the device.
    pub prefill_budget: Option<usize>,
    /// Memory for keys and values.
    pub cache: CacheSize,
    /// Most bytes of the device's memory for everything: weights, cache and the results of a step.
    pub max_memory: Option<u64>,
    /// How many models are still to be loaded onto the device, this one included.
    pub sharers: usize,
    /// How keys and values are stored.
    pub cache_dtype: CacheDtype,
    /// Tokens of prompt and answer together, if less than the model allows.
    pub context_length: Option<u32>,
    /// Format to quantise weights to that are stored as floats.
    pub quantize: Option<Quantize>,
    /// Is told how far the load is.
    pub progress: LoadProgress,
    /// Whether tokens are drafted, and how.
    pub speculation: Speculation,
    /// How products with weights are computed.
    pub precision: PrecisionChoice,
}

impl LoadOptions {
    /// `path` on `device`, with default settings.
    pub fn new(path: impl Into<PathBuf>, name: impl Into<String>, device: ComputeDevice) -> Self {
        Self {
            path: path.into(),
            name: name.into(),
            device,
            slots: None,
            prefill_budget: None,
            cache: CacheSize::Auto,
            max_memory: None,
            sharers: 1,
            cache_dtype: CacheDtype::Auto,
            context_length: None,
            quantize: None,
            progress: LoadProgress::default(),
            speculation: Speculation::Auto,
            precision: PrecisionChoice::Exact,
        }
    }
}

/// Loads a model, ready to serve. It computes on the thread that loads it: a GPU orders its work by thread.
pub fn load(options: &LoadOptions) -> Result<InferenceEngine, LoadError> {
    let device = &options.device;
    // Another model may have lost it. Then not even an upload is sure to return.
    if let Some(reason) = device.lost() {
        return Err(LoadError::DeviceLost(reason));
    }
    load_onto_device(options).map_err(|error| match device.lost() {
        Some(reason) => LoadError::DeviceLost(reason),
        None => {
            device.free_unused();
            error
        }
    })
}

fn load_onto_device(options: &LoadOptions) -> Result<InferenceEngine, LoadError> {
    let path = &options.path;
    let began = Instant::now();
    let checkpoint = Checkpoint::open(path)?;
    let mut architecture = Architecture::read(&checkpoint)?;
    if let Some(tokens) = options.context_length {
        architecture.limit_context(tokens as usize);
    }
    let (tokenizer, template) = texts(&checkpoint)?;
    let device = &options.device;
    let stored = options.cache_dtype.stored();
    let default_budget = match device.class {
        DeviceClass::Gpu => GPU_PREFILL_BUDGET,
        DeviceClass::Host | DeviceClass::Software => CPU_PREFILL_BUDGET,
    };
    let prefill_budget = options.prefill_budget.unwrap_or(default_budget).max(1);
    let drafter = options.speculation.drafter(device.class);
    let draft_budget = if drafter.is_some() { DRAFT_BUDGET } else { 0 };
    let precision = options.precision.on(device)?;
    let room = Room::find(device, options.max_memory, options.sharers);
    let on_adapter = device.class != DeviceClass::Host;
    let weights_percent = if on_adapter { WEIGHTS_PERCENT } else { 100 };
    let report = |part| options.progress.set(part, 0, weights_percent);
    let mut network = Network::build(&architecture, &checkpoint, device, options.quantize, &report)?;
    network.set_precision(precision);
    let (tokens, rows) = (tokenizer.vocab_size(), network.vocabulary());
    if tokens > rows {
        return Err(LoadError::Vocabulary { path: path.clone(), tokens, rows });
    }

    let context = network.config().context_length;
    let most_slots = options.slots.unwrap_or_else(|| room.most_slots()).max(1);
    let taken = network.memory(prefill_budget + most_slots + draft_budget, most_slots + draft_budget).total();
    let blocks = cache::blocks(options.cache, &network, stored, device, most_slots, room.left(taken));
    let slots = options.slots.unwrap_or_else(|| room.slots(blocks, context)).max(1);
    network.allocate_cache(blocks, stored)?;
    // A sequence must fit the cache by itself.
    let context_length = context.min(blocks * BLOCK_SIZE);
    if context_length < context {
        tracing::warn!(
            context_length,
            "the cache is too small for the model's context of {context} tokens; give it more memory"
        );
    }
    let limits = SchedulerLimits { sequences: slots, prefill_budget, draft_budget, blocks };
    let loaded = began.elapsed();
    if on_adapter {
        warm_up::run(&mut network, &limits, &|part| options.progress.set(part, WEIGHTS_PERCENT, 100))?;
    }
    let memory = network.memory(prefill_budget + slots + draft_budget, slots + draft_budget);
    tracing::info!(
        model = %options.name,
        device = %device.description,
        %memory,
        cache_tokens = blocks * BLOCK_SIZE,
        cache_dtype = ?stored,
        ?precision,
        context_length,
        calls = ?template.tool_format(),
        template_writes_tools = template.writes_tools(),
        slots,
        seconds = began.elapsed().as_secs_f32(),
        warm_up_seconds = (began.elapsed() - loaded).as_secs_f32(),
        "model loaded"
    );

    let context_length = u32::try_from(context_length).unwrap_or(u32::MAX);
    let created = clock::unix_time().as_secs();
    // Quantised weights, a rounded cache and rounded activations change the output.
    let mut identity = match options.quantize {
        Some(quantize) => format!("{} {quantize:?} {stored:?}", options.name),
        None => format!("{} {stored:?}", options.name),
    };
    if precision != Precision::Exact {
        identity = format!("{identity} {precision:?}");
    }
    let tokenizer = Arc::new(tokenizer);
    let grammars = GrammarCompiler::new(&tokenizer)
        .map_err(|source| LoadError::Grammars { path: path.clone(), source })?;
    let outputs = OutputProcessor::spawn(Arc::clone(&tokenizer)).map_err(LoadError::Thread)?;
    Ok(InferenceEngine {
        scheduler: Scheduler::new(limits),
        sampler: BatchSampler { vocabulary: tokens, on_device: on_adapter },
        drafter,
        drafts: true,
        renderer: Arc::new(PromptRenderer { template, tokenizer, grammars, context_length }),
        outputs,
        facts: Facts {
            served: ServedModel { name: options.name.clone(), context_length, created },
            fingerprint: fingerprint(checkpoint.path(), &identity)?,
            device: device.clone(),
            slots,
            prefill_budget,
            memory,
        },
        network,
        requests: BTreeMap::new(),
        numbers: HashMap::new(),
        next_number: 0,
        counts: StepCounts::default(),
        generated_tokens: 0,
        warned_of_clamping: false,
    })
}

/// The model's tokenizer and chat template.
fn texts(checkpoint: &Checkpoint) -> Result<(ModelTokenizer, ChatTemplate), LoadError> {
    let path = checkpoint.path();
    let (tokenizer, template) = match checkpoint.gguf() {
        Some(file) => (ModelTokenizer::from_gguf(file), ChatTemplate::from_gguf(file)),
        None => (ModelTokenizer::from_hf_dir(path), ChatTemplate::from_hf_dir(path)),
    };
    let tokenizer = tokenizer.map_err(|source| LoadError::Tokenizer { path: path.to_owned(), source })?;
    let template = template.map_err(|source| LoadError::Template { path: path.to_owned(), source })?;
    Ok((tokenizer, template))
}

/// The `system_fingerprint`: `emberline-<version>-<8 hexadecimal digits>`.
///
/// The digits hash the model's name, and of each of its files the size and the first MiB, which holds
/// names and shapes: cheap, and the same on every worker that has the same files.
pub(super) fn fingerprint(path: &Path, name: &str) -> Result<String, LoadError> {
    const BEGINNING: u64 = 1 << 20;
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| CheckpointError::Io { path, source }
    };
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        let entries = path.read_dir().map_err(io(path))?.collect::<Result<Vec<_>, _>>().map_err(io(path))?;
        let weights = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "safetensors");
        files = entries.into_iter().map(|entry| entry.path()).filter(weights).collect();
        files.sort();
    }
    // FNV-1a, from http://www.isthe.com/chongo/tech/comp/fnv/
    let add = |hash: u64, bytes: &[u8]| {
        bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
    };
    let mut hash = add(0xcbf2_9ce4_8422_2325, name.as_bytes());
    for path in &files {
        let file = File::open(path).map_err(io(path))?;
        let size = file.metadata().map_err(io(path))?.len();
        let mut beginning = Vec::new();
        file.take(BEGINNING).read_to_end(&mut beginning).map_err(io(path))?;
        hash = add(add(hash, &size.to_le_bytes()), &beginning);
    }
    Ok(format!("emberline-{}-{:08x}", env!("CARGO_PKG_VERSION"), (hash >> 32) ^ (hash & 0xffff_ffff)))
}
