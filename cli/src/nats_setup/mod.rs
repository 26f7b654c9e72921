//! `emberline nats setup`: creates and updates Emberline's streams, buckets and consumers in NATS.
//! `emberline nats user`: prints the configuration of users for nats-server ([`user`]).
//!
//! [`plan`] compares what exists with what is wanted. This module shows the plan, asks for confirmation and
//! carries it out.

mod plan;
mod user;

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use emberline_protocol::bytes::Bytes;
use emberline_protocol::jetstream_domain::JetStreamDomain;
use emberline_protocol::streams::{Storage, consumers};

use crate::cache::Cache;
use crate::nats::access::{AdminArgs, NatsAccess, NatsConnection};
use crate::nats::jetstream_api::JetStreamError;
use crate::runtime::runtime;
use crate::time_format::parse_duration;
pub(crate) use plan::Deviation;
use plan::{RequestedChanges, SetupPlan};
pub(crate) use user::RoleChoice;
use user::UserArgs;

/// Shortest time for which usage events may be stored.
const LEAST_AGE: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug, Args)]
pub(crate) struct NatsArgs {
    #[command(subcommand)]
    command: NatsCommand,
    #[command(flatten)]
    access: AdminArgs,
}

#[derive(Debug, Subcommand)]
enum NatsCommand {
    /// Create or update the streams, buckets and consumers; shows the plan first.
    Setup(SetupArgs),
    /// Make users for nats-server's configuration.
    User(UserArgs),
}

#[derive(Debug, Args)]
struct SetupArgs {
    #[command(flatten)]
    changes: ChangeArgs,
    /// Only show the plan
    #[arg(long)]
    dry_run: bool,
    /// Carry out the plan without asking
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What to change [default: what exists stays as it is]")]
struct ChangeArgs {
    /// Servers that hold each message: 1, 3 or 5
    #[arg(long, value_name = "N", value_parser = parse_replicas)]
    replicas: Option<u8>,
    /// Where events, heartbeats and the counters of minutes are stored [default of new streams: file]
    #[arg(long, value_enum)]
    storage: Option<StorageChoice>,
    /// Jobs that may wait or run, of one model and lane [default of a new queue: 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    queue_jobs: Option<i64>,
    /// Space for jobs that wait or run [default of a new queue: 512MiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    queue_bytes: Option<i64>,
    /// Space for the event logs of running jobs [default of a new stream: 256MiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    events_bytes: Option<i64>,
    /// Space for the event logs of background jobs [default of a new stream: 512MiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    kept_bytes: Option<i64>,
    /// Space for usage events; when they fill it, no job ends [default of a new stream: 1GiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    usage_bytes: Option<i64>,
    /// Age at which usage events are removed, such as 90d; export them before [default of a new stream: 400d]
    #[arg(long, value_name = "TIME", value_parser = parse_age)]
    usage_age: Option<Duration>,
    /// JetStream domain of another cell whose keys count here, too
    #[arg(long, value_name = "DOMAIN")]
    keys_from: Option<JetStreamDomain>,
    /// JetStream domain of another cell whose usage events are copied here; may be repeated
    #[arg(long, value_name = "DOMAIN")]
    usage_from: Vec<JetStreamDomain>,
    /// A model whose consumers to create before it has a worker, for scaling from zero; may be repeated
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<String>,
    /// Remove and recreate what can't be changed in place; the plan says what is lost
    #[arg(long)]
    recreate: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StorageChoice {
    Memory,
    File,
}

impl From<&ChangeArgs> for RequestedChanges {
    fn from(args: &ChangeArgs) -> Self {
        Self {
            replicas: args.replicas,
            storage: args.storage.map(|storage| match storage {
                StorageChoice::Memory => Storage::Memory,
                StorageChoice::File => Storage::File,
            }),
            queue_jobs: args.queue_jobs,
            queue_bytes: args.queue_bytes,
            events_bytes: args.events_bytes,
            kept_bytes: args.kept_bytes,
            usage_bytes: args.usage_bytes,
            usage_age: args.usage_age,
            keys_from: args.keys_from.clone(),
            usage_from: args.usage_from.clone(),
            consumers: args.models.iter().flat_map(|model| consumers(model)).collect(),
            recreate: args.recreate,
        }
    }
}

fn parse_replicas(text: &str) -> Result<u8, &'static str> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("give 1, 3 or 5: an even number tolerates no more failures than one replica less"),
    }
}

/// Reads `1000000`, `512MiB` or `2GB`; JetStream takes 0 for no limit, so that is refused.
fn parse_bytes(text: &str) -> Result<i64, &'static str> {
    let bytes: Option<i64> = text.parse::<Bytes>().ok().and_then(|Bytes(bytes)| bytes.try_into().ok());
    bytes
        .filter(|bytes| *bytes > 0)
        .ok_or("give a number of bytes above 0, or an amount such as 512MiB or 2GB")
}

/// Reads `90d`. A day is the least, well above the hour for which the stream must know message ids.
fn parse_age(text: &str) -> Result<Duration, String> {
    let age = parse_duration(text)?;
    if age < LEAST_AGE { Err("give a day or more".to_owned()) } else { Ok(age) }
}

pub(crate) fn run(args: &NatsArgs, cache: &Cache) -> anyhow::Result<()> {
    let access = &args.access;
    let args = match &args.command {
        NatsCommand::Setup(args) => args,
        NatsCommand::User(args) => return user::run(args, &access.domain.0.nats_jetstream_domain),
    };
    let access = access.resolve(cache)?;
    runtime()?.block_on(async {
        let client = access.connect().await?;
        setup(&client, args).await
    })
}

/// Creates what is missing and updates what an older version created; an error if that would lose anything.
pub(crate) async fn bring_up_to_date(access: &NatsAccess) -> anyhow::Result<()> {
    let client = access.connect().await?;
    let plan = SetupPlan::make(&client, &RequestedChanges::default()).await?;
    ensure!(
        !plan.is_blocked(),
        "the streams in NATS don't fit this version, and can't be changed in place:\n{plan}"
    );
    plan.carry_out(&client, drop).await
}

/// What of the streams that `wanted` names, and of the consumers of `models`, does not fit this release.
pub(crate) async fn deviations(
    client: &NatsConnection,
    wanted: impl Fn(&str) -> bool,
    models: &[String],
) -> Result<Vec<Deviation>, JetStreamError> {
    let consumers = models.iter().flat_map(|model| consumers(model)).collect();
    let requested = RequestedChanges { consumers, ..RequestedChanges::default() };
    Ok(SetupPlan::of_streams(client, &requested, wanted).await?.deviations())
}

async fn setup(client: &NatsConnection, args: &SetupArgs) -> anyhow::Result<()> {
    let plan = SetupPlan::make(client, &RequestedChanges::from(&args.changes)).await?;
    println!("{plan}");
    ensure!(!plan.is_blocked(), "nothing was changed; the plan says what prevents it");
    let changes = plan.changes();
    if changes == 0 {
        println!("nothing to change");
        return Ok(());
    }
    if args.dry_run {
        println!("{changes} to change; nothing was changed");
        return Ok(());
    }
    if !args.yes && !confirm(changes)? {
        bail!("nothing was changed");
    }
    plan.carry_out(client, |done| println!("{done}")).await
}

fn confirm(changes: usize) -> anyhow::Result<bool> {
    ensure!(
        io::stdin().is_terminal(),
        "nothing was changed; give --yes to carry out the plan without being asked"
    );
    eprint!("Change {changes}? [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("no answer")?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

#[cfg(test)]
mod manifest_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read() {
        for (text, bytes) in [
            ("1", 1),
            ("10B", 10),
            ("3KiB", 3072),
            ("512MiB", 512 << 20),
            ("2GiB", 2 << 30),
            ("1.5GiB", 3 << 29),
            ("1MB", 1_000_000),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes));
        }
        for wrong in ["", "0", "MiB", "-1", "99999999999GiB", "1 MeB", "é"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
        assert!(parse_age("90d").is_ok() && parse_age("23h").is_err() && parse_age("soon").is_err());
        assert!(parse_replicas("3").is_ok() && parse_replicas("2").is_err());
    }
}
