//! The report of `emberline bench engine`: both measurements as tables, as JSON and as plots.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use emberline_protocol::measurement::{
    CacheThroughput, EngineMeasurement, LlamaCpp, MemoryUse, ServingMeasurement, SpeculationGain, Throughput,
};
use serde::Serialize;

use super::plot::{Plot, PlotSeries};
use crate::table::table;

/// The report of a run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct EngineReport {
    pub(crate) engine: EngineMeasurement,
    pub(crate) comparison: Comparison,
}

/// The measurement of llama.cpp to compare with.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Comparison {
    LlamaCpp(LlamaCpp),
    /// There is none, for this reason.
    None(String),
}

/// Why the results can't be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("{}: {source}; choose another folder with --out", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the results can't be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Selects the points of a plot from measured rates.
type Points<'a> = &'a dyn Fn(&[Throughput]) -> Vec<(f64, f64)>;

impl Comparison {
    fn llama(&self) -> Option<&LlamaCpp> {
        match self {
            Self::LlamaCpp(llama) => Some(llama),
            Self::None(_) => None,
        }
    }
}

impl EngineReport {
    /// Writes JSON and plots to a folder for this device inside `out`, and returns that folder.
    pub(crate) fn write(&self, out: &Path) -> Result<PathBuf, WriteError> {
        let folder = out.join(self.device_folder());
        let failed = |path: &Path, source| WriteError::Io { path: path.to_owned(), source };
        fs::create_dir_all(&folder).map_err(|source| failed(&folder, source))?;
        let write = |name: String, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|source| failed(&path, source))
        };
        let model = slug(&self.engine.model.name);
        write(format!("{model}.json"), &(serde_json::to_string_pretty(self)? + "\n"))?;
        for (name, plot) in self.plots() {
            if let Some(svg) = plot.svg() {
                write(format!("{model}-{name}.svg"), &svg)?;
            }
        }
        Ok(folder)
    }

    /// The folder's name: the GPU's name, or `cpu-` and the processor's; then what was asked for of the
    /// arithmetic.
    fn device_folder(&self) -> String {
        let device = &self.engine.device;
        if !device.gpu && device.description.starts_with("CPU") {
            return slug(&format!("cpu {} {}", device.cpu, device.arithmetic));
        }
        slug(&device.description)
    }

    fn plots(&self) -> Vec<(&'static str, Plot)> {
        let model = &self.engine.model.name;
        let prompts = |rates: &[Throughput]| points(rates, |rate| rate.batch == 1, |rate| rate.prompt_tokens);
        let batches = |rates: &[Throughput]| points(rates, |_| true, |rate| rate.batch);
        let both = |select: Points<'_>, ours: &[Throughput], theirs: fn(&LlamaCpp) -> &[Throughput]| {
            let mut series = vec![PlotSeries { name: "emberline".to_owned(), points: select(ours) }];
            if let Some(llama) = self.comparison.llama() {
                let place = if llama.gpu || !self.engine.device.gpu { "" } else { " (on the CPU)" };
                series.push(PlotSeries { name: format!("llama.cpp{place}"), points: select(theirs(llama)) });
            }
            series
        };
        let plot = |title: &str, x_label, y_label, series| Plot {
            title: format!("{model}: {title}"),
            x_label,
            y_label,
            series,
        };
        let prefill = both(&prompts, &self.engine.prefill, |llama| &llama.prefill);
        let decode = both(&batches, &self.engine.decode, |llama| &llama.decode);
        let mut plots = vec![
            ("prefill", plot("one prompt", "prompt tokens", "tokens/s", prefill)),
            ("decode", plot("decoding", "sequences at once", "tokens/s, all together", decode)),
        ];
        if let Some(serving) = &self.engine.serving {
            let first = plot("time to the first token", "prompt tokens", "ms, median", first_tokens(serving));
            plots.push(("first-token", first));
            let title = "gap between tokens while a long prompt arrives";
            plots.push(("gap", plot(title, "prefill budget, tokens a step", "ms", gaps(serving))));
        }
        plots
    }

    /// The report as text.
    pub(crate) fn render(&self) -> String {
        let mut parts = vec![self.head()];
        parts.push(self.rates("prefill", &self.engine.prefill, |llama| &llama.prefill));
        parts.push(
            self.rates("decode, one token for each sequence", &self.engine.decode, |llama| &llama.decode),
        );
        if !self.engine.decode_profile.is_empty() {
            parts.push(self.profile());
        }
        if !self.engine.cache.is_empty() {
            parts.push(self.cache());
        }
        if let Some(serving) = &self.engine.serving {
            parts.extend(serving_tables(serving));
        }
        parts.join("\n\n")
    }

    fn head(&self) -> String {
        let EngineMeasurement { device, model, memory, quick, .. } = &self.engine;
        let mut text = format!(
            "{} on {}; {}, emberline {}{}{}\nweights {}, cache {} a token",
            model.name,
            device.description,
            device.cpu,
            device.version,
            if device.arithmetic.is_empty() { String::new() } else { format!(", {}", device.arithmetic) },
            if *quick { ", quick run" } else { "" },
            bytes(model.weight_bytes as f64),
            bytes(model.cache_bytes_per_token as f64),
        );
        let MemoryUse { loaded, peak, gpu_peak } = *memory;
        let known =
            [("; process", loaded, " when loaded"), (", at most", peak, ""), ("; GPU at most", gpu_peak, "")];
        for (before, amount, after) in known {
            if let Some(amount) = amount {
                let _ = write!(text, "{before} {}{after}", bytes(amount as f64));
            }
        }
        if let Some(serving) = &self.engine.serving {
            let ServingMeasurement { cache_tokens, prefill_budget, .. } = serving;
            let _ = write!(
                text,
                "\nengine: cache for {cache_tokens} tokens, at most {prefill_budget} prompt tokens a step"
            );
        }
        if let Some(ceiling) = self.engine.copy_bytes_per_s {
            let _ = write!(text, "\nmemory bandwidth by a large copy: {}/s", bytes(ceiling));
        }
        if let Some(share) = self.engine.bandwidth_share() {
            let _ = write!(text, "; decoding one sequence reads weights at {:.0} % of it", share * 100.0);
        }
        if let Some(dispatches) = self.engine.dispatches_per_step {
            let _ = write!(text, "\ndispatches in a decode step of one sequence: {dispatches:.0}");
        }
        match &self.comparison {
            Comparison::None(why) => {
                let _ = write!(text, "\nno comparison with llama.cpp: {why}");
            }
            Comparison::LlamaCpp(llama) => {
                let place = if llama.gpu { "GPU" } else { "CPU" };
                let LlamaCpp { version, threads, system, .. } = llama;
                let peak = bytes(llama.peak_memory as f64);
                let _ = write!(
                    text,
                    "\nllama.cpp of llama-cpp-python {version} on the {place}, {threads} threads, {peak} at most; {}",
                    system.trim().trim_end_matches('|').trim()
                );
            }
        }
        text
    }

    fn rates(&self, title: &str, ours: &[Throughput], theirs: fn(&LlamaCpp) -> &[Throughput]) -> String {
        let other = |rate: &Throughput| {
            let rates = self.comparison.llama().map(theirs).unwrap_or_default();
            let same =
                |other: &&Throughput| other.batch == rate.batch && other.prompt_tokens == rate.prompt_tokens;
            rates.iter().find(same).map(|rate| rate.tokens_per_s)
        };
        let rows = ours.iter().map(|rate| {
            let Throughput { batch, prompt_tokens, tokens_per_s, seconds, fastest_s, slowest_s } = *rate;
            let theirs = other(rate);
            [
                batch.to_string(),
                prompt_tokens.to_string(),
                number(tokens_per_s),
                format!(
                    "{} / {} / {}",
                    number(fastest_s * 1e3),
                    number(seconds * 1e3),
                    number(slowest_s * 1e3)
                ),
                theirs.map_or_else(|| "-".to_owned(), number),
                theirs.map_or_else(|| "-".to_owned(), |theirs| format!("{:.2}", tokens_per_s / theirs)),
            ]
        });
        let head = ["at once", "prompt", "tok/s", "ms (min / median / max)", "llama.cpp tok/s", "ratio"];
        format!("{title}\n{}", table(&head.map(String::from), rows))
    }

    fn cache(&self) -> String {
        let rows = self.engine.cache.iter().map(|CacheThroughput { dtype, rate }| {
            let depth = rate.prompt_tokens;
            let of_same_depth = |other: &&CacheThroughput| other.rate.prompt_tokens == depth;
            let first = self.engine.cache.iter().find(of_same_depth).map_or(rate, |first| &first.rate);
            let ratio = rate.tokens_per_s / first.tokens_per_s;
            [dtype.clone(), depth.to_string(), number(rate.tokens_per_s), format!("{ratio:.2}")]
        });
        let head = ["cache", "tokens in it", "tok/s", "ratio"].map(String::from);
        format!("decode of one sequence, by what the cache stores\n{}", table(&head, rows))
    }

    fn profile(&self) -> String {
        let total: f64 = self.engine.decode_profile.iter().map(|op| op.ms).sum();
        let rows = self.engine.decode_profile.iter().map(|op| {
            let share = if total > 0.0 { op.ms / total * 100.0 } else { 0.0 };
            [op.op.clone(), format!("{:.0}", op.calls), format!("{:.3}", op.ms), format!("{share:.0} %")]
        });
        let head = ["operation", "calls", "ms", "share"].map(String::from);
        format!("a decode step of one sequence, by operation\n{}", table(&head, rows))
    }
}

fn points(
    rates: &[Throughput],
    keep: impl Fn(&Throughput) -> bool,
    x: impl Fn(&Throughput) -> usize,
) -> Vec<(f64, f64)> {
    rates.iter().filter(|rate| keep(rate)).map(|rate| (x(rate) as f64, rate.tokens_per_s)).collect()
}

fn first_tokens(serving: &ServingMeasurement) -> Vec<PlotSeries> {
    let mut loads: Vec<usize> = serving.first_token.iter().map(|row| row.load).collect();
    loads.sort_unstable();
    loads.dedup();
    let of = |load: usize| {
        let rows = serving.first_token.iter().filter(move |row| row.load == load);
        rows.map(|row| (row.prompt_tokens as f64, row.median_ms)).collect()
    };
    let name = |load| match load {
        0 => "alone".to_owned(),
        load => format!("beside {load} running streams"),
    };
    loads.into_iter().map(|load| PlotSeries { name: name(load), points: of(load) }).collect()
}

fn gaps(serving: &ServingMeasurement) -> Vec<PlotSeries> {
    type Select = fn(&emberline_protocol::measurement::InterTokenLatency) -> f64;
    let lines: [(&str, Select); 4] = [
        ("median before", |gap| gap.before_ms),
        ("median while it is prefilled", |gap| gap.median_ms),
        ("longest while it is prefilled", |gap| gap.max_ms),
        ("before + the last chunk alone", |gap| gap.before_ms + gap.chunk_ms),
    ];
    let of =
        |select: Select| serving.gaps.iter().map(|gap| (gap.prefill_budget as f64, select(gap))).collect();
    lines.map(|(name, select)| PlotSeries { name: name.to_owned(), points: of(select) }).into()
}

fn serving_tables(serving: &ServingMeasurement) -> Vec<String> {
    let mut parts = Vec::new();
    let rows = serving.streams.iter().map(|row| {
        let one = serving.streams.first().map_or(row.tokens_per_s, |first| first.tokens_per_s);
        [row.streams.to_string(), number(row.tokens_per_s), format!("{:.1}", row.tokens_per_s / one)]
    });
    let head = ["streams", "tok/s, all", "times the first"].map(String::from);
    parts.push(format!("streams through the engine\n{}", table(&head, rows)));
    let rows = serving.first_token.iter().map(|row| {
        let times = [row.min_ms, row.median_ms, row.max_ms].map(number).join(" / ");
        [row.prompt_tokens.to_string(), row.load.to_string(), times]
    });
    let head = ["prompt", "running streams", "ms (min / median / max)"].map(String::from);
    parts.push(format!("time to the first token\n{}", table(&head, rows)));
    let rows = serving.gaps.iter().map(|gap| {
        [
            gap.prefill_budget.to_string(),
            format!("{} + {}", gap.streams, gap.prompt_tokens),
            number(gap.before_ms),
            format!("{} / {} / {}", number(gap.median_ms), number(gap.p99_ms), number(gap.max_ms)),
            number(gap.chunk_ms),
            number(gap.first_token_ms),
        ]
    });
    let head = [
        "budget",
        "streams + prompt",
        "before",
        "median / p99 / max",
        "chunk alone",
        "first token of the prompt",
    ];
    let title = "gap between tokens of running streams while a prompt arrives, ms";
    parts.push(format!("{title}\n{}", table(&head.map(String::from), rows)));
    if let Some(prefix) = &serving.prefix {
        parts.push(format!(
            "a system prompt of about {} tokens: first {} ms; again {} ms, {:.1} % of that, with {} tokens cached \
             (the request without it: {} ms)",
            prefix.system_tokens,
            number(prefix.first_ms),
            number(prefix.repeated_ms),
            prefix.repeated_ms / prefix.first_ms * 100.0,
            prefix.cached_tokens,
            number(prefix.own_ms),
        ));
    }
    if let Some(constrained) = &serving.constrained {
        parts.push(format!(
            "{count} streams beside {count} that obey a JSON schema: {:.1} % of the steps' time waits for masks, {} ms \
             each; {} tok/s, {:.2} of what they have beside as many plain ones, {:.2} of alone",
            constrained.wait_share * 100.0,
            number(constrained.mask_ms),
            number(constrained.tokens_per_s),
            constrained.tokens_per_s / constrained.beside_plain_tokens_per_s,
            constrained.tokens_per_s / constrained.alone_tokens_per_s,
            count = constrained.streams,
        ));
    }
    if !serving.speculation.is_empty() {
        parts.push(speculation(&serving.speculation));
    }
    parts
}

fn speculation(gains: &[SpeculationGain]) -> String {
    let rows = gains.iter().map(|gain| {
        [
            gain.prompt.clone(),
            gain.streams.to_string(),
            gain.tokens.to_string(),
            format!("{} of {}", gain.steps, gain.plain_steps),
            format!("{} of {}", gain.accepted, gain.drafted),
            format!("{} / {}", number(gain.tokens_per_s), number(gain.plain_tokens_per_s)),
            format!("{:.2}", gain.tokens_per_s / gain.plain_tokens_per_s),
        ]
    });
    let head = ["prompt", "streams", "tokens", "steps", "drafts accepted", "tok/s with / without", "ratio"];
    format!("speculation by prompt look-up, and one token a step\n{}", table(&head.map(String::from), rows))
}

/// Three significant digits, or the whole integer part if that is longer.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 | 100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

fn bytes(value: f64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.into_iter().find(|(unit, _)| value >= *unit) {
        Some((unit, name)) => format!("{} {name}", number(value / unit)),
        None => format!("{value:.0} B"),
    }
}

/// Lower-case ASCII letters and digits, everything else as single hyphens.
fn slug(text: &str) -> String {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
