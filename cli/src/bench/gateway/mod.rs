//! `emberline bench gateway`: measures everything but the model, and other gateways under the same load.
//!
//! Workers simulate a model that needs no time, so what is measured is the way to them and back. [`load`] is the
//! clients, which share the machine with the servers and therefore cost little ([`http`], [`events`]). Each
//! [`system`] is started for itself: [`emberline`], on each [`way`] to its NATS, and its [`peer`]s. [`processes`] reads
//! what they used, [`cold`] lets instances end, [`takeover`] kills workers, and [`report`] shows the [`figures`] of all
//! systems in one table.

mod backend;
mod cold;
mod emberline;
mod events;
mod figures;
mod http;
mod load;
mod peer;
mod processes;
mod report;
mod system;
mod takeover;
mod way;

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};

use self::emberline::Emberline;
use super::report::{millis, rate};
use crate::cache::Cache;
use crate::console::Console;
use crate::runtime::runtime;
use crate::up::StopSignals;
use crate::up::host::FunctionHost;
use crate::up::plan::StackPlan;
use crate::up::transcript::Transcript;
pub(super) use backend::{BackendArgs, run as run_backend};
use figures::{LoadFigures, Usage, client_count};
use load::Generator;
use peer::{Dynamo, LiteLlm, PeerError};
use processes::Part;
use report::{Figure, GatewayReport, Machine, SystemReport};
use system::{Pace, System};
use way::Way;

/// Clients at once that ask for whole answers.
const ANSWER_CLIENTS: [usize; 3] = [1, 32, 128];
/// Clients at once that ask for streams, and for streams of workers that make [`TOKENS_PER_S`].
const STREAM_CLIENTS: [usize; 3] = [1, 64, 256];
const PACED_CLIENTS: [usize; 2] = [64, 256];
/// Tokens a second of each stream where workers have a pace.
const TOKENS_PER_S: u32 = 50;
/// Tokens of each stream.
const STREAM_TOKENS: u64 = 200;
/// How long each load lasts, how many instances are fresh, and how often a worker is killed.
const SECONDS: f64 = 10.0;
const INSTANCES: usize = 20;
const KILLS: usize = 10;
/// How much less `--quick` takes.
const QUICK: f64 = 5.0;
/// The part of a load's time for which it runs before it is measured.
const WARM_UP: f64 = 0.2;
/// Emberline's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How long after a load its CPU time is read: the end of a job comes after its answer.
const SETTLE: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, Args)]
pub(super) struct GatewayArgs {
    /// Other gateways to measure, and other ways from Emberline's function to NATS
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Peer::Dynamo, Peer::Litellm])]
    peers: Vec<Peer>,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Measurement::Answers, Measurement::Streams, Measurement::Paced, Measurement::Cold, Measurement::Takeover])]
    only: Vec<Measurement>,
    /// Take a fifth of the time
    #[arg(long)]
    quick: bool,
    /// Seconds of each load [default: 10, or 2 with --quick]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    seconds: Option<f64>,
    /// Clients at once, in place of the numbers of answers, streams and paced streams
    #[arg(long, value_delimiter = ',', value_name = "N")]
    clients: Vec<NonZeroUsize>,
    /// How many fresh instances of the function are asked [default: 20, or 4 with --quick]
    #[arg(long, value_name = "N")]
    instances: Option<NonZeroUsize>,
    /// How often a worker is killed [default: 10, or 2 with --quick]
    #[arg(long, value_name = "N")]
    kills: Option<usize>,
    /// A Python that has ai-dynamo
    #[arg(long, env = "EMBERLINE_DYNAMO_PYTHON", default_value = "python3", value_name = "PYTHON")]
    dynamo_python: String,
    /// A Python that has litellm[proxy]
    #[arg(long, env = "EMBERLINE_LITELLM_PYTHON", default_value = "python3", value_name = "PYTHON")]
    litellm_python: String,
    /// The host that runs the function [default: spin if 4.1 or newer is on PATH, local otherwise]
    #[arg(long, env = "EMBERLINE_HOST", value_enum)]
    host: Option<FunctionHost>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is measured beside Emberline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// Emberline, whose function reaches NATS with TLS
    Tls,
    /// Emberline, whose function reaches NATS by HTTP through an edge
    Edge,
    /// The same by HTTPS
    SecureEdge,
    /// NVIDIA Dynamo's frontend, with its mocker for workers
    Dynamo,
    /// LiteLLM's proxy, before a server that answers at once
    Litellm,
    /// Nothing
    None,
}

/// The peers that are Emberline, with their ways to NATS.
const WAYS: [(Peer, Way); 3] =
    [(Peer::Tls, Way::Tls), (Peer::Edge, Way::Edge), (Peer::SecureEdge, Way::SecureEdge)];

/// What is measured of each system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measurement {
    /// Whole answers of one token
    Answers,
    /// Streams of 200 tokens, as fast as they come
    Streams,
    /// Streams of 200 tokens, 50 tokens a second
    Paced,
    /// First requests of fresh instances of Emberline's function
    Cold,
    /// Deaths of workers
    Takeover,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "must be a number".to_owned())?;
    if (0.1..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("must be from 0.1 to 3600".to_owned()) }
}

pub(super) fn run(args: &GatewayArgs, cache: &Cache) -> anyhow::Result<()> {
    let console = Console::default();
    let log = cache.folder("run")?.join("bench-gateway.log");
    let transcript = Transcript::create(&log, console.clone()).with_context(|| log.display().to_string())?;
    console.print(&format!("the programs' log: {}", log.display()));
    // Workers are killed, and others complain about it.
    transcript.mute();
    let folder = tempfile::tempdir().context("a folder for temporary files")?;
    let generator = Generator::new().context("the load generator's threads")?;
    let count = |all: usize| if args.quick { (all as f64 / QUICK) as usize } else { all };
    let bench = Bench {
        args,
        cache,
        console: &console,
        transcript: &transcript,
        folder: folder.path(),
        generator: &generator,
        time: Duration::from_secs_f64(args.seconds.unwrap_or(if args.quick {
            SECONDS / QUICK
        } else {
            SECONDS
        })),
        instances: args.instances.map_or_else(|| count(INSTANCES), NonZeroUsize::get),
        kills: args.kills.unwrap_or_else(|| count(KILLS)),
    };
    let systems = runtime()?.block_on(bench.measure_until_stopped())?;
    let machine = Machine {
        cores: std::thread::available_parallelism()?.get(),
        processor: processes::processor().unwrap_or_else(|| "unknown processor".to_owned()),
        profile: if cfg!(debug_assertions) { "dev" } else { "release" },
    };
    let report = GatewayReport::new(machine, bench.time.as_secs_f64(), systems);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.render());
    }
    Ok(())
}

/// What all measurements share.
struct Bench<'a> {
    args: &'a GatewayArgs,
    cache: &'a Cache,
    console: &'a Console,
    transcript: &'a Transcript,
    folder: &'a Path,
    generator: &'a Generator,
    time: Duration,
    instances: usize,
    kills: usize,
}

impl Bench<'_> {
    /// Measures all systems; an error if a signal comes before that is done.
    async fn measure_until_stopped(&self) -> anyhow::Result<Vec<SystemReport>> {
        let mut stop_signals = StopSignals::listen()?;
        tokio::select! {
            // What has been started ends with this process.
            () = stop_signals.recv() => Err(anyhow::anyhow!("interrupted")),
            systems = self.measure_all() => systems,
        }
    }

    /// Emberline and then the others. An error of Emberline is one of the run, one of a peer is part of the report.
    async fn measure_all(&self) -> anyhow::Result<Vec<SystemReport>> {
        let mut own = SystemReport::of(Way::Plain.system());
        own.version = Some(VERSION.to_owned());
        self.measure_emberline(Way::Plain, &mut own).await?;
        let mut systems = vec![own];
        for (_, way) in WAYS.into_iter().filter(|(peer, _)| self.args.peers.contains(peer)) {
            let measure = async |report: &mut SystemReport| self.measure_emberline(way, report).await;
            systems.push(self.peer(way.system(), Ok(VERSION.to_owned()), measure).await);
        }
        if self.args.peers.contains(&Peer::Dynamo) {
            systems.push(self.measure_dynamo().await);
        }
        if self.args.peers.contains(&Peer::Litellm) {
            systems.push(self.measure_litellm().await);
        }
        Ok(systems)
    }

    fn wants(&self, measurement: Measurement) -> bool {
        self.args.only.contains(&measurement)
    }

    /// The numbers of clients that the options name, or a load's own.
    fn clients(&self, own: &[usize]) -> Vec<usize> {
        let named: Vec<usize> = self.args.clients.iter().map(|clients| clients.get()).collect();
        if named.is_empty() { own.to_vec() } else { named }
    }

    fn wants_load(&self) -> bool {
        self.wants(Measurement::Answers) || self.wants(Measurement::Streams)
    }

    fn emberline<'a>(&'a self, plan: &'a StackPlan) -> Emberline<'a> {
        Emberline::new(plan, self.transcript, self.console)
    }

    async fn measure_emberline(&self, way: Way, report: &mut SystemReport) -> anyhow::Result<()> {
        let plan = |pace: Pace, name: &str| {
            let folder = self.folder.join(format!("{way:?}-{name}"));
            emberline::plan(way, pace, self.args.host, &folder, self.cache, self.console)
        };
        let (unpaced, paced) = (Pace { tokens_per_s: None }, Pace { tokens_per_s: Some(TOKENS_PER_S) });
        if self.wants_load() {
            self.load(&mut self.emberline(&plan(unpaced, "load")?), &mut report.figures).await?;
        }
        if self.wants(Measurement::Paced) {
            self.paced(&mut self.emberline(&plan(paced, "paced")?), &mut report.figures).await?;
        }
        if self.wants(Measurement::Cold) {
            self.cold(&mut self.emberline(&plan(unpaced, "cold")?), &mut report.figures).await?;
        }
        if self.wants(Measurement::Takeover) {
            self.takeover(&mut self.emberline(&plan(paced, "takeover")?), report).await?;
        }
        Ok(())
    }

    async fn measure_dynamo(&self) -> SystemReport {
        let python = &self.args.dynamo_python;
        self.peer("Dynamo", peer::DYNAMO.version(python), async |report| {
            let system =
                |pace: Pace, name: &str| Dynamo::new(python, pace, &self.folder.join(name), self.transcript);
            if self.wants_load() {
                let mut dynamo = system(Pace { tokens_per_s: None }, "dynamo")?;
                self.load(&mut dynamo, &mut report.figures).await?;
            }
            let paced = Pace { tokens_per_s: Some(TOKENS_PER_S) };
            if self.wants(Measurement::Paced) {
                self.paced(&mut system(paced, "dynamo-paced")?, &mut report.figures).await?;
            }
            if self.wants(Measurement::Takeover) {
                self.takeover(&mut system(paced, "dynamo-takeover")?, report).await?;
            }
            Ok(())
        })
        .await
    }

    async fn measure_litellm(&self) -> SystemReport {
        let python = &self.args.litellm_python;
        self.peer("LiteLLM", peer::LITELLM.version(python), async |report| {
            if self.wants_load() {
                let folder = self.folder.join("litellm");
                std::fs::create_dir_all(&folder)?;
                let mut proxy = LiteLlm::new(python, &folder, self.transcript)?;
                self.load(&mut proxy, &mut report.figures).await?;
            }
            Ok(())
        })
        .await
    }

    /// The report of a peer: what `measure` adds to it, and what went wrong.
    async fn peer(
        &self,
        name: &'static str,
        version: Result<String, PeerError>,
        measure: impl AsyncFnOnce(&mut SystemReport) -> anyhow::Result<()>,
    ) -> SystemReport {
        let mut report = SystemReport::of(name);
        let outcome = match version {
            Ok(version) => {
                report.version = Some(version);
                measure(&mut report).await
            }
            Err(missing) => Err(missing.into()),
        };
        if let Err(error) = outcome {
            self.console.print(&format!("{name}: {error:#}"));
            report.errors.push(format!("{error:#}"));
        }
        report
    }

    /// Starts a system, measures it under each load and stops it.
    async fn load(&self, system: &mut impl System, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
        let outcome = async {
            system.start().await?;
            let parts = system.parts();
            let at_start = processes::memory(&parts)?;
            processes::reset_largest(&parts)?;
            for clients in self.clients(&ANSWER_CLIENTS) {
                if self.wants(Measurement::Answers) {
                    self.answers(system, clients, figures).await?;
                }
            }
            for clients in self.clients(&STREAM_CLIENTS) {
                if self.wants(Measurement::Streams) {
                    self.streams(system, "streams", clients, figures).await?;
                }
            }
            for ((part, start), end) in parts.iter().zip(at_start).zip(processes::memory(&parts)?) {
                let mut push = |measure: String, value: u64| {
                    let value = value as f64 / f64::from(1 << 20);
                    figures.push(Figure { load: "memory".to_owned(), measure, value });
                };
                push(format!("{} at start, MiB", part.name), start.now);
                push(format!("{} largest, MiB", part.name), end.largest);
            }
            Ok::<_, anyhow::Error>(())
        };
        let outcome = outcome.await;
        system.stop().await;
        outcome
    }

    /// Starts a system whose workers have a pace, measures its streams and stops it.
    async fn paced(&self, system: &mut impl System, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
        let outcome = async {
            system.start().await?;
            for clients in self.clients(&PACED_CLIENTS) {
                self.streams(system, "paced streams", clients, figures).await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        let outcome = outcome.await;
        system.stop().await;
        outcome
    }

    /// Starts Emberline, asks fresh instances of its function and stops it.
    async fn cold(&self, system: &mut Emberline<'_>, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
        let outcome = async {
            system.start().await?;
            self.metered(system, cold::measure(system, self.generator, self.instances)).await
        };
        let outcome = outcome.await;
        system.stop().await;
        let (first_bytes, usage) = outcome?;
        let mut load = LoadFigures::new("cold, 1 client".to_owned(), figures);
        load.push_quantiles("first byte ", &first_bytes);
        load.push_way_usage(&usage, first_bytes.len() as f64);
        Ok(())
    }

    async fn answers(
        &self,
        system: &impl System,
        clients: usize,
        figures: &mut Vec<Figure>,
    ) -> anyhow::Result<()> {
        let (generator, target) = (self.generator, system.target());
        generator.answers(target, clients, self.time.mul_f64(WARM_UP)).await?;
        let (answers, usage) = self.metered(system, generator.answers(target, clients, self.time)).await?;
        let count = answers.latencies.len() as f64;
        let mut load = LoadFigures::new(format!("answers, {}", client_count(clients)), figures);
        load.push("requests/s", rate(count, answers.total.as_secs_f64()));
        load.push_quantiles("", &answers.latencies);
        load.push_usage(&usage, "ms/request", count, 1e3, count);
        Ok(())
    }

    async fn streams(
        &self,
        system: &impl System,
        name: &str,
        clients: usize,
        figures: &mut Vec<Figure>,
    ) -> anyhow::Result<()> {
        let (generator, target) = (self.generator, system.target());
        generator.streams(target, clients, STREAM_TOKENS, self.time.mul_f64(WARM_UP)).await?;
        let measured = generator.streams(target, clients, STREAM_TOKENS, self.time);
        let (streams, usage) = self.metered(system, measured).await?;
        let (count, total) = (streams.count() as f64, streams.total.as_secs_f64());
        let tokens = count * STREAM_TOKENS as f64;
        let mut load = LoadFigures::new(format!("{name}, {}", client_count(clients)), figures);
        load.push("tokens/s", rate(tokens, total));
        load.push("events/s", rate(streams.events as f64, total));
        load.push_quantiles("first byte ", &streams.first_bytes);
        load.push_quantiles("first text ", &streams.first_texts);
        load.push_usage(&usage, "µs/token", tokens, 1e6, count);
        Ok(())
    }

    /// Runs a load and reads what the system's processes used for it.
    async fn metered<T, E: Into<anyhow::Error>>(
        &self,
        system: &impl System,
        load: impl Future<Output = Result<T, E>>,
    ) -> anyhow::Result<(T, Usage)> {
        // What the warm-up has left to do is no part of the load.
        tokio::time::sleep(SETTLE).await;
        let parts = system.parts();
        let nats = system.nats_counts().await?;
        let (cpu, own) = (processes::cpu(&parts)?, processes::own_cpu()?);
        let done = load.await.map_err(E::into)?;
        let generator = processes::own_cpu()?.saturating_sub(own);
        tokio::time::sleep(SETTLE).await;
        let spent =
            processes::cpu(&parts)?.into_iter().zip(cpu).map(|(end, start)| end.saturating_sub(start));
        let cpu = parts.iter().map(|Part { name, .. }| *name).zip(spent).collect();
        let nats = system.nats_counts().await?.zip(nats).map(|(end, start)| end.since(&start));
        Ok((done, Usage { cpu, generator, nats }))
    }

    /// Starts a system, kills its workers and stops it.
    async fn takeover(&self, system: &mut impl System, report: &mut SystemReport) -> anyhow::Result<()> {
        let outcome = async {
            system.start().await?;
            takeover::measure(system, self.generator, self.kills).await
        };
        let outcome = outcome.await;
        system.stop().await;
        let takeover = outcome.context("takeover")?;
        let load = format!("takeover, {} streams at once", takeover::STREAMS);
        let mut figures = LoadFigures::new(load, &mut report.figures);
        figures.push("workers killed", takeover.kills as f64);
        figures.push("streams on them", takeover.streams as f64);
        figures.push("streams lost", takeover.lost as f64);
        figures.push_quantiles("longest gap ", &takeover.gaps);
        if let Some(longest) = takeover.gaps.iter().max() {
            figures.push("longest gap max ms", millis(*longest));
        }
        report.errors.extend(takeover.reason.map(|reason| format!("a stream was lost: {reason}")));
        Ok(())
    }
}
