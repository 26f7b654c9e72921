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

use self::networks::{CONTEXT, NETWORKS, STEPS, TYPES};
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
    let is_asked = |only: &Option<String>, name: &str| only.as_ref().is_none_or(|only| only == name);
    std::fs::create_dir_all(&folder)?;
    let mut recorder = StepRecorder::new();
    let mut steps = Vec::new();
    for (network, shape) in NETWORKS.iter().filter(|(network, _)| is_asked(&only_network, network)) {
        for dtype in TYPES.into_iter().filter(|dtype| is_asked(&only_format, dtype.name())) {
            // Rows of other widths have no such blocks.
            if [shape.hidden, shape.feed_forward].iter().any(|width| width % dtype.block_len() != 0) {
                continue;
            }
            for (name, step) in STEPS {
                let launches = recorder.step(*shape, dtype, step, CONTEXT)?;
                steps.push(Step {
                    network,
                    format: dtype.name(),
                    step: name,
                    layers: shape.layers,
                    launches,
                });
            }
        }
    }
    let mut kernels = Vec::new();
    for (index, kernel) in recorder.kernels().iter().enumerate() {
        let file = format!("{index:03}-{}.cu", kernel.name);
        std::fs::write(folder.join(&file), &kernel.source)?;
        kernels.push(Kernel { file, shared_bytes: kernel.shared_bytes });
    }
    std::fs::write(folder.join("launches.json"), serde_json::to_vec(&Recorded { kernels, steps })?)?;
    Ok(())
}
