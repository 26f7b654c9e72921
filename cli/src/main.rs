//! `emberline`: starts the whole stack on one machine, administers it, and measures it.
//!
//! Each command has a module: [`up`] starts nats-server, the workers and the function and restarts them;
//! [`pull`] fetches models and nats-server from the [`catalogue`] into the [`cache`]; [`bench`] and
//! [`status`] query a stack, and [`doctor`] says what is wrong with one; [`keys`] and [`usage`] administer API
//! keys; [`nats_setup`] lays out the streams; [`jobs`] handles dead letters; [`edge`] passes NATS through HTTP.
//! Commands find the stack that runs on this machine by [`running_stack`] and reach it through [`nats`]. Start
//! reading at [`up`].

mod bench;
mod cache;
mod catalogue;
mod console;
mod doctor;
mod edge;
mod jobs;
mod key_gen;
mod keys;
mod nats;
mod nats_setup;
mod programs;
mod pull;
mod running_stack;
mod runtime;
mod status;
mod table;
mod time_format;
mod up;
mod usage;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use cache::Cache;

/// Large language models behind the OpenAI API, on Spin, NATS and burn.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start nats-server, workers and the function, and stop them all on Ctrl-C.
    Up(up::UpArgs),
    /// Fetch a model or nats-server into the cache and print its path.
    Pull(pull::PullArgs),
    /// Measure the running stack, or one that is started for it.
    Bench(Box<bench::BenchArgs>),
    /// Show the workers of a running stack.
    Status(nats::access::AccessArgs),
    /// Say what is wrong with a deployment: NATS, workers, GPU, and the function's URL.
    Doctor(Box<doctor::DoctorArgs>),
    /// Create, list, rotate and revoke API keys.
    Keys(Box<keys::KeysArgs>),
    /// Show how much keys and models have used.
    Usage(usage::UsageArgs),
    /// List the queues and the dead letters (jobs that were given up); run one of them again.
    Jobs(jobs::JobsArgs),
    /// Let functions reach nats-server by HTTP where their host gives them no sockets.
    Edge(edge::EdgeArgs),
    /// Set up the streams, buckets and consumers in NATS.
    Nats(Box<nats_setup::NatsArgs>),
    /// Run a program that is sent SIGTERM when this process's parent dies.
    #[command(hide = true)]
    EndWithParent(up::parent_death::EndWithParentArgs),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let done = match command {
        Command::Up(args) => up::run(&args, &Cache::from_env()?),
        Command::Pull(args) => pull::run(&args, &Cache::from_env()?),
        Command::Bench(args) => bench::run(&args, &Cache::from_env()?),
        Command::Status(args) => status::run(&args, &Cache::from_env()?),
        Command::Doctor(args) => return Ok(doctor::run(&args)),
        Command::Keys(args) => keys::run(&args, &Cache::from_env()?),
        Command::Usage(args) => usage::run(&args, &Cache::from_env()?),
        Command::Jobs(args) => jobs::run(&args, &Cache::from_env()?),
        Command::Edge(args) => edge::run(args),
        Command::Nats(args) => nats_setup::run(&args, &Cache::from_env()?),
        Command::EndWithParent(args) => {
            Err(up::parent_death::run(&args)).context("emberline end-with-parent")
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}
