//! The launches of a step.
//!
//! The operations run on a device that computes nothing and records what is launched on it. So the kernels, their
//! variants and the number of cubes are those of a real step, by construction.

use std::collections::HashMap;

use burn::backend::wgpu::CubeTensor;
use burn::backend::{CubeDevice, DType, Shape};
use burn::cubecl::CompilationError;
use burn::cubecl::client::Client;
use burn::cubecl::prelude::KernelId;
use serde::Serialize;

use crate::cube::attention::{self, AttentionInputs};
use crate::cube::matmul::matrix_units::Layout;
use crate::cube::matmul::{self, Matmul};
use crate::cube::{embedding, pack, rotary, sample};
use crate::device::Gpu;
use crate::ggml::GgmlType;
use crate::recorder::{KernelSource, RecordedLaunch, Recorder};
use crate::types::{
    Activation, BLOCK_SIZE, HeadShape, MatrixSpec, Precision, SAMPLE_WORDS, SamplingStages, WorkList,
};

/// A network's dimensions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NetworkShape {
    /// Width of the residual stream.
    pub(crate) hidden: usize,
    /// Number of layers.
    pub(crate) layers: usize,
    /// Number of query heads.
    pub(crate) heads: usize,
    /// Number of key/value heads.
    pub(crate) kv_heads: usize,
    /// Width of a head.
    pub(crate) head_dim: usize,
    /// Width of the feed-forward layer.
    pub(crate) feed_forward: usize,
    /// Number of tokens.
    pub(crate) vocabulary: usize,
}

impl NetworkShape {
    fn heads(&self) -> HeadShape {
        HeadShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            rotary_dim: self.head_dim,
            head_norm: None,
            bias: false,
            scale: 1.0,
            window: None,
        }
    }
}

/// What a step computes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    /// One token of each of `rows` sequences, and a sample from each.
    Decode {
        /// Number of sequences.
        rows: usize,
        /// What sampling takes besides the largest logits.
        stages: SamplingStages,
    },
    /// `rows` consecutive tokens of one sequence, and a sample after the last.
    Prefill {
        /// Number of tokens.
        rows: usize,
    },
}

/// One kernel launch of a step.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Launch {
    /// What it computes.
    pub(crate) operation: &'static str,
    /// Index of its kernel in [`StepRecorder::kernels`].
    pub(crate) kernel: usize,
    /// How often a step launches it: once a layer, or once.
    pub(crate) count: usize,
    /// Number of cubes.
    pub(crate) cubes: u64,
    /// Threads of a cube.
    pub(crate) threads: u32,
    /// Bytes of memory that it reads or writes at least once.
    pub(crate) bytes: u64,
    /// Reads from memory that a thread makes one after another, each of several words.
    pub(crate) rounds: usize,
    /// For a product: how it goes through its matrix.
    pub(crate) product: Option<Product>,
}

/// A product, and how a thread goes through its matrix.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Product {
    /// Storage format.
    format: &'static str,
    /// Number of matrix rows.
    outputs: usize,
    /// Number of matrix columns.
    inputs: usize,
    /// Rows that a thread multiplies with each weight that it reads.
    rows: usize,
    /// Weights that a thread reads in an iteration of the kernel's loop.
    weights: usize,
    /// Bytes that a cube reads.
    cube_bytes: usize,
}

impl From<matmul::Product> for Product {
    fn from(product: matmul::Product) -> Self {
        let matmul::Product { spec, rows, weights, cube_bytes, .. } = product;
        let MatrixSpec { outputs, inputs, .. } = spec;
        Self { format: spec.dtype.name(), outputs, inputs, rows, weights, cube_bytes }
    }
}

/// What is computed in the same launch as a product.
#[derive(Debug, Clone, Copy)]
enum Around {
    Norm,
    NormAndGate,
    Residual,
}

/// What a thread of an operation does.
#[derive(Debug, Clone, Copy)]
enum Work {
    Product(matmul::Product),
    /// See [`Launch::rounds`].
    Rounds(usize),
}

/// Collects the kernels of steps.
pub(crate) struct StepRecorder {
    gpu: Gpu,
    client: Client,
    recorder: Recorder,
    kernels: Vec<KernelSource>,
    /// By ids, which have all that is compiled into a kernel.
    indices: HashMap<KernelId, usize>,
}

impl StepRecorder {
    /// Starts a device that records. A process has only one of each kind.
    pub(crate) fn new(gpu: Gpu) -> Self {
        let recorder = Recorder::default();
        let client = recorder.client(gpu);
        Self { gpu, client, recorder, kernels: Vec::new(), indices: HashMap::new() }
    }

    /// Has steps run on another device.
    pub(crate) fn change_to(&mut self, gpu: Gpu) {
        self.client = self.recorder.client(gpu);
        self.gpu = gpu;
    }

    /// The kernels of all steps so far.
    pub(crate) fn kernels(&self) -> &[KernelSource] {
        &self.kernels
    }

    /// The launches of a step at position `context` of each sequence, with all matrices in `dtype`.
    ///
    /// # Errors
    /// Fails if a kernel can't be compiled.
    pub(crate) fn step(
        &mut self,
        shape: NetworkShape,
        dtype: GgmlType,
        step: Step,
        context: usize,
    ) -> Result<Vec<Launch>, CompilationError> {
        let (rows, sequences, stages) = match step {
            Step::Decode { rows, stages } => (rows, rows, stages),
            Step::Prefill { rows } => (rows, 1, SamplingStages::default()),
        };
        let NetworkShape { hidden, layers, feed_forward, vocabulary, .. } = shape;
        let heads = shape.heads();
        let (queries, keys) = (heads.query_width(), heads.kv_width());
        let matrix = |outputs, inputs| MatrixSpec { dtype, outputs, inputs };
        let table = matrix(vocabulary, hidden);
        let mut launches = Vec::new();

        embedding::embedding(self.words(&[rows]), &self.matrix(table), table);
        let bytes = rows * (table.row_bytes() + 4 * hidden);
        self.collect(&mut launches, "embedding", 1, bytes, Work::Rounds(2))?;
        let spec = matrix(queries + 2 * keys, hidden);
        self.product(&mut launches, "query, key, value", layers, rows, spec, Around::Norm)?;
        self.attention(&mut launches, heads, step, context, layers)?;
        self.product(&mut launches, "output", layers, rows, matrix(hidden, queries), Around::Residual)?;
        let spec = matrix(2 * feed_forward, hidden);
        self.product(&mut launches, "gate, up", layers, rows, spec, Around::NormAndGate)?;
        self.product(&mut launches, "down", layers, rows, matrix(hidden, feed_forward), Around::Residual)?;
        self.product(&mut launches, "head", 1, sequences, table, Around::Norm)?;
        let samples = self.words(&[sequences, SAMPLE_WORDS]);
        sample::sample(self.floats(&[sequences, vocabulary]), samples, stages);
        let bytes = 4 * sequences * vocabulary;
        self.collect(&mut launches, "sample", 1, bytes, Work::Rounds(sample::ROUNDS))?;
        Ok(launches)
    }

    /// Rotation, store and attention of a layer.
    fn attention(
        &mut self,
        launches: &mut Vec<Launch>,
        heads: HeadShape,
        step: Step,
        context: usize,
        layers: usize,
    ) -> Result<(), CompilationError> {
        let (rows, sequences) = match step {
            Step::Decode { rows, .. } => (rows, rows),
            Step::Prefill { rows } => (rows, 1),
        };
        let (queries, keys) = (heads.query_width(), heads.kv_width());
        let positions = context + rows / sequences;
        let blocks = positions.div_ceil(BLOCK_SIZE);
        let words = heads.head_dim / 2;
        let keys_pool = self.floats(&[sequences * blocks, heads.kv_heads, words, BLOCK_SIZE]);
        let values_pool = self.floats(&[sequences * blocks, heads.kv_heads, BLOCK_SIZE, words]);
        let projections = rotary::Projections {
            qkv: self.floats(&[rows, queries + 2 * keys]),
            bias: self.floats(&[0]),
            norms: self.floats(&[0, heads.head_dim]),
            rotary: self.floats(&[positions, 2, heads.head_dim / 2]),
            rows: self.words(&[rows, 3]),
        };
        rotary::rotate_and_store(projections, &keys_pool, &values_pool, heads);
        let bytes = rows * (8 * queries + (4 + 2) * 2 * keys);
        self.collect(launches, "rotate, store", layers, bytes, Work::Rounds(2))?;
        let mut work = WorkList::default();
        for sequence in 0..sequences {
            work.push(sequence, sequence, context, rows / sequences);
        }
        let inputs = AttentionInputs {
            keys: keys_pool,
            values: values_pool,
            tables: self.words(&[sequences, blocks]),
            tiles: self.words(&[work.tiles.len() / 4, 4]),
            singles: self.words(&[work.singles.len() / 3, 3]),
            parts: self.words(&[work.parts.len() / 4, 4]),
        };
        attention::attention(self.floats(&[rows, queries]), &inputs, &work.passes, heads);
        // Two bytes for each number of keys and values; partial results are written and read.
        let parts: usize = work.passes.iter().map(|pass| pass.parts).sum();
        let partials = 8 * parts * heads.heads * (heads.head_dim + 2);
        let bytes = 8 * rows * queries + 4 * sequences * positions * keys + partials;
        let rounds = attention::rounds((rows > sequences).then_some(positions));
        self.collect(launches, "attention", layers, bytes, Work::Rounds(rounds))?;
        if let (false, Some(merge)) = (work.passes.is_empty(), launches.last_mut()) {
            merge.rounds = attention::merge_rounds(positions);
        }
        Ok(())
    }

    /// A product with a matrix.
    fn product(
        &mut self,
        launches: &mut Vec<Launch>,
        operation: &'static str,
        count: usize,
        rows: usize,
        spec: MatrixSpec,
        around: Around,
    ) -> Result<(), CompilationError> {
        let (weight, x) = (self.matrix(spec), self.floats(&[rows, spec.inputs]));
        let (gamma, residual) = (self.floats(&[spec.inputs]), self.floats(&[rows, spec.outputs]));
        let product = Matmul::new(&weight, spec, Precision::Exact);
        let norm = Some((&gamma, 1e-5));
        let product = match around {
            Around::Norm => Matmul { norm, ..product },
            Around::NormAndGate => Matmul { norm, activation: Some(Activation::Silu), ..product },
            Around::Residual => Matmul { residual: Some(&residual), ..product },
        };
        product.launch(x);
        let layout = self.layout(spec);
        let bytes = 4 * (pack::words(spec, layout) + rows * (spec.inputs + spec.outputs));
        self.collect(launches, operation, count, bytes, Work::Product(product.product(rows, layout)))
    }

    fn floats(&self, shape: &[usize]) -> CubeTensor {
        self.tensor(shape, DType::F32)
    }

    fn words(&self, shape: &[usize]) -> CubeTensor {
        self.tensor(shape, DType::I32)
    }

    fn matrix(&self, spec: MatrixSpec) -> CubeTensor {
        self.words(&[pack::words(spec, self.layout(spec))])
    }

    fn layout(&self, spec: MatrixSpec) -> Layout {
        Layout::of(self.client.properties(), spec)
    }

    fn tensor(&self, shape: &[usize], dtype: DType) -> CubeTensor {
        let size = shape.iter().product::<usize>() * dtype.size();
        CubeTensor::new_contiguous(
            self.client.clone(),
            CubeDevice::Cuda(self.gpu.device()),
            Shape::from(shape.to_vec()),
            self.client.empty(size.max(4)),
            dtype,
        )
    }

    /// Appends what was launched since the last call. Of several launches, a product's last does its work; of another
    /// operation those with the most threads, each all of it.
    fn collect(
        &mut self,
        launches: &mut Vec<Launch>,
        operation: &'static str,
        count: usize,
        bytes: usize,
        work: Work,
    ) -> Result<(), CompilationError> {
        let recorded = self.recorder.take(&self.client);
        let threads = |launch: &RecordedLaunch| launch.cubes * u64::from(launch.threads());
        let most = recorded.iter().map(threads).max();
        for (at, launch) in recorded.iter().enumerate() {
            let (bytes, rounds, product) = match work {
                Work::Rounds(rounds) if most == Some(threads(launch)) => (bytes, rounds, None),
                Work::Rounds(_) => (0, 1, None),
                Work::Product(product) if at + 1 == recorded.len() => {
                    (bytes, product.iterations, Some(product.into()))
                }
                Work::Product(product) => (product.prepared_bytes, 1, None),
            };
            launches.push(Launch {
                operation,
                kernel: self.kernel(launch)?,
                count,
                cubes: launch.cubes,
                threads: launch.threads(),
                bytes: bytes as u64,
                rounds,
                product,
            });
        }
        Ok(())
    }

    fn kernel(&mut self, launch: &RecordedLaunch) -> Result<usize, CompilationError> {
        let id = launch.id();
        if let Some(index) = self.indices.get(&id) {
            return Ok(*index);
        }
        self.kernels.push(launch.compile()?);
        self.indices.insert(id, self.kernels.len() - 1);
        Ok(self.kernels.len() - 1)
    }
}
