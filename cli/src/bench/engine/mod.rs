//! `emberline bench engine`: measures the engine on this machine's device, without the function and NATS.
//!
//! `emberline-worker bench` measures the engine; then llama.cpp is measured with the same weights. [`report`]
//! shows both, [`plot`] draws them.

mod llama;
mod plot;
mod report;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use emberline_protocol::measurement::EngineMeasurement;

use crate::cache::Cache;
use crate::catalogue::Catalogue;
use crate::console::Console;
use crate::programs;
use crate::pull::Puller;
use crate::up;
use crate::up::plan::{Backend, Model, device_select_off};
use llama::LlamaLoad;
use report::{Comparison, EngineReport};

/// Largest batch to measure llama.cpp with on a CPU: larger ones take minutes and show nothing new.
const LARGEST_LLAMA_BATCH: usize = 32;

#[derive(Debug, Clone, Args)]
pub(crate) struct EngineArgs {
    /// A model of the catalogue, or a path to a .gguf file
    #[arg(long, env = "EMBERLINE_MODEL", default_value = "smollm2-135m-instruct")]
    model: String,
    /// Random weights of this shape in place of a model; speed does not depend on the values
    #[arg(long, value_name = "SHAPE")]
    random: Option<String>,
    /// Where to compute; `auto` takes the GPU if there is one
    #[arg(long, env = "EMBERLINE_BACKEND", value_enum, default_value_t = Backend::Auto)]
    backend: Backend,
    /// The adapter that wgpu is to use: its number, or part of its name
    #[arg(long, env = "EMBERLINE_ADAPTER", value_name = "NAME")]
    adapter: Option<String>,
    /// How products with weights are computed: exact, fast or fastest [default: exact]
    #[arg(long, value_name = "PRECISION")]
    precision: Option<String>,
    /// The best instruction set of the CPU to use: portable, avx2, avx-vnni, avx512 or avx512-vnni
    /// [default: the best there is]
    #[arg(long, value_name = "NAME")]
    instruction_set: Option<String>,
    /// Fail if there is no GPU
    #[arg(long)]
    require_gpu: bool,
    /// Threads on the CPU, also for llama.cpp [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Measure fewer sizes, with fewer repetitions
    #[arg(long)]
    quick: bool,
    /// Where to create a folder for this device with JSON and plots [default: docs/benchmarks in the checkout]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// A Python that has llama-cpp-python
    #[arg(long, env = "EMBERLINE_LLAMA_PYTHON", default_value = "python3", value_name = "PYTHON")]
    llama_python: String,
    /// Don't measure llama.cpp
    #[arg(long)]
    no_llama: bool,
    /// Print JSON in place of tables
    #[arg(long)]
    json: bool,
    /// A catalogue to use in place of the built-in one
    #[arg(long, value_name = "FILE")]
    catalogue: Option<PathBuf>,
}

pub(crate) fn run(args: &EngineArgs, cache: &Cache) -> anyhow::Result<()> {
    let console = Console::default();
    let model = match &args.random {
        Some(_) => None,
        None => {
            let catalogue = Catalogue::load(args.catalogue.as_deref())?;
            Some(up::find_model(&args.model, &Puller::new(cache, &catalogue, &console))?)
        }
    };
    let out = match &args.out {
        Some(out) => out.clone(),
        None => up::find_root()
            .context("the current folder is unknown")?
            .context("no spin.toml here or in a folder above; name a folder for the results with --out")?
            .join("docs/benchmarks"),
    };
    let engine = measure_engine(args, model.as_ref())?;
    let comparison = compare(args, model.as_ref(), &engine, &console);
    let report = EngineReport { engine, comparison };
    let written = report.write(&out)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.render());
    }
    console.print(&format!("wrote {}", written.display()));
    Ok(())
}

/// Runs `emberline-worker bench`: only the worker is linked with burn.
fn measure_engine(args: &EngineArgs, model: Option<&Model>) -> anyhow::Result<EngineMeasurement> {
    let program = programs::sibling("emberline-worker")?;
    let mut command = Command::new(&program);
    let backend = args.backend.to_possible_value();
    command
        .args(["bench", "--backend", backend.as_ref().map_or("auto", |value| value.get_name())])
        .envs(device_select_off())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    if let Some(model) = model {
        command.arg("--model").arg(&model.path).args(["--model-name", &model.name]);
    }
    for (option, value) in [
        ("--random", &args.random),
        ("--adapter", &args.adapter),
        ("--precision", &args.precision),
        ("--instruction-set", &args.instruction_set),
    ] {
        if let Some(value) = value {
            command.args([option, value]);
        }
    }
    for (option, wanted) in [("--require-gpu", args.require_gpu), ("--quick", args.quick)] {
        if wanted {
            command.arg(option);
        }
    }
    if let Some(threads) = args.threads {
        command.env("RAYON_NUM_THREADS", threads.to_string());
    }
    let output = command.output().with_context(|| format!("{} can't be started", program.display()))?;
    // The worker has printed the reason.
    ensure!(
        output.status.success(),
        "the engine was not measured: emberline-worker ended with {}",
        programs::describe_exit(output.status)
    );
    serde_json::from_slice(&output.stdout)
        .context("the results of emberline-worker can't be read; rebuild both programs")
}

/// Measures llama.cpp with the same file, or returns the reason why not.
fn compare(
    args: &EngineArgs,
    model: Option<&Model>,
    engine: &EngineMeasurement,
    console: &Console,
) -> Comparison {
    let Some(model) = model else {
        return Comparison::None("random weights are in no file that llama.cpp could read".to_owned());
    };
    if args.no_llama {
        return Comparison::None("not asked for".to_owned());
    }
    let working = console.spinner("llama.cpp");
    let measured = load(&model.path, engine).measure(&args.llama_python);
    working.finish_and_clear();
    match measured {
        Ok(llama) => Comparison::LlamaCpp(llama),
        Err(error) => {
            console.print(&error.to_string());
            Comparison::None(error.to_string())
        }
    }
}

/// The part of our own measurement that llama.cpp repeats.
fn load<'a>(model: &'a Path, engine: &EngineMeasurement) -> LlamaLoad<'a> {
    let alone = engine.prefill.iter().filter(|rate| rate.batch == 1);
    let batches = engine.decode.iter().map(|rate| rate.batch);
    LlamaLoad {
        model,
        threads: engine.device.threads,
        gpu: engine.device.gpu,
        prompts: alone.map(|rate| rate.prompt_tokens).collect(),
        batches: batches.filter(|batch| engine.device.gpu || *batch <= LARGEST_LLAMA_BATCH).collect(),
        quick: engine.quick,
    }
}
