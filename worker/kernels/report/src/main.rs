//! Writes the CUDA source of every kernel that a step of a well-known network launches, and `launches.json` with the
//! launches of each step: `emberline-kernels-report FOLDER [NETWORK [FORMAT]]`. Needs no GPU; `make kernels-report` runs it.

// The sources of the kernels' package, of which this one does not use everything.
#[allow(dead_code)]
mod cube;
#[allow(dead_code, unused_imports)]
#[path = "../../src/ggml/mod.rs"]
mod ggml;
#[allow(dead_code)]
#[path = "../../src/traffic.rs"]
mod traffic;
#[allow(dead_code)]
mod types;

mod device;
#[cfg(test)]
mod emulator;
mod networks;
mod recorder;
mod step;

use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;

use self::device::Gpu;
use self::networks::{NETWORKS, STEPS, TYPES};
use self::step::{Launch, StepRecorder};

#[derive(Serialize)]
struct Recorded {
    kernels: Vec<Kernel>,
    steps: Vec<Step>,
}

#[derive(Serialize)]
struct Kernel {
    file: String,
    shared_bytes: usize,
}

#[derive(Serialize)]
struct Step {
    gpu: &'static str,
    network: &'static str,
    format: &'static str,
    step: &'static str,
    layers: usize,
    launches: Vec<Launch>,
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder =
        PathBuf::from(arguments.next().context("usage: emberline-kernels-report FOLDER [NETWORK [FORMAT]]")?);
    let (only_network, only_format) = (arguments.next(), arguments.next());
    let is_asked_for = |network: &str, format: &str| {
        only_network.as_ref().is_none_or(|only| only == network)
            && only_format.as_ref().is_none_or(|only| only == format)
    };
    std::fs::create_dir_all(&folder)?;
    let mut recorder = StepRecorder::new(Gpu::MatrixUnits);
    let mut steps = record(&mut recorder, "with matrix units", &is_asked_for)?;
    recorder.change_to(Gpu::Plain);
    steps.extend(record(&mut recorder, "without", &is_asked_for)?);
    let mut kernels = Vec::new();
    for (index, kernel) in recorder.kernels().iter().enumerate() {
        let file = format!("{index:03}-{}.cu", kernel.name);
        std::fs::write(folder.join(&file), &kernel.source)?;
        kernels.push(Kernel { file, shared_bytes: kernel.shared_bytes });
    }
    std::fs::write(folder.join("launches.json"), serde_json::to_vec(&Recorded { kernels, steps })?)?;
    Ok(())
}

/// The launches of all steps on the recorder's device.
fn record(
    recorder: &mut StepRecorder,
    gpu: &'static str,
    is_asked_for: &dyn Fn(&str, &str) -> bool,
) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    for (network, shape) in NETWORKS {
        for dtype in TYPES.into_iter().filter(|dtype| is_asked_for(network, dtype.name())) {
            // Rows of other widths have no such blocks.
            if [shape.hidden, shape.feed_forward].iter().any(|width| width % dtype.block_len() != 0) {
                continue;
            }
            for (name, step, context) in STEPS {
                let launches = recorder.step(shape, dtype, step, context)?;
                steps.push(Step {
                    gpu,
                    network,
                    format: dtype.name(),
                    step: name,
                    layers: shape.layers,
                    launches,
                });
            }
        }
    }
    Ok(steps)
}
