//! `emberline usage`: sums up the usage events that workers publish at the end of each job. [`export`] writes them out
//! one by one.

mod export;
pub(crate) mod room;

use std::collections::{BTreeMap, HashMap};
use std::io;

use clap::{Args, Subcommand, ValueEnum};
use emberline_protocol::key::KeyId;
use emberline_protocol::subject::{USAGE_STREAM, USAGE_SUBJECTS};
use emberline_protocol::usage::{Outcome, UsageEvent};

use crate::cache::Cache;
use crate::keys::KeyStore;
use crate::nats::access::AdminArgs;
use crate::nats::stored::{Start, each_stored};
use crate::runtime::runtime;
use crate::table::table;
use crate::time_format::{self, TimePoint, now_ms, parse_time_point};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct UsageArgs {
    #[command(subcommand)]
    command: Option<UsageCommand>,
    /// What to group the sums by
    #[arg(long, value_enum, default_value_t = By::Key)]
    by: By,
    /// Only jobs that ended since then: a time before now like 30d, or a date like 2026-11-01 (UTC)
    #[arg(long, value_parser = parse_time_point, value_name = "WHEN")]
    since: Option<TimePoint>,
    /// Print CSV
    #[arg(long)]
    csv: bool,
    #[command(flatten)]
    access: AdminArgs,
}

#[derive(Debug, Subcommand)]
enum UsageCommand {
    /// Write each job's usage as a line, once or as jobs end.
    Export(export::ExportArgs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Key,
    Model,
    Day,
}

/// The usage of a group of jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Sum {
    jobs: u64,
    cancelled: u64,
    failed: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    completion_tokens: u64,
}

impl Sum {
    fn add(&mut self, event: &UsageEvent) {
        self.jobs += 1;
        match event.outcome {
            Outcome::Done => {}
            Outcome::Cancelled => self.cancelled += 1,
            Outcome::Failed(_) => self.failed += 1,
        }
        self.prompt_tokens += u64::from(event.usage.prompt_tokens);
        self.cached_tokens += u64::from(event.usage.cached_tokens);
        self.completion_tokens += u64::from(event.usage.completion_tokens);
    }
}

/// The names of keys by their ids.
type Names = HashMap<KeyId, String>;

pub(crate) fn run(args: &UsageArgs, cache: &Cache) -> anyhow::Result<()> {
    let access = args.access.resolve(cache)?;
    if let Some(UsageCommand::Export(args)) = &args.command {
        return export::run(args, &access);
    }
    let since = args.since.map(|since| since.before(now_ms()));
    let (names, sums, unreadable) = runtime()?.block_on(async {
        let keys = KeyStore::open(&access).await?;
        let names: Names =
            keys.list().await?.into_iter().map(|entry| (entry.record.id, entry.record.name)).collect();
        let client = access.connect().await?;
        room::warn_if_nearly_full(&client).await?;
        let start = since.map_or(Start::FIRST, Start::Time);
        let (mut sums, mut unreadable) = (BTreeMap::<String, Sum>::new(), 0_u64);
        each_stored(&client, USAGE_STREAM, USAGE_SUBJECTS, start, |stored| {
            match serde_json::from_slice::<UsageEvent>(&stored.payload) {
                // Stored after `since`, but the job ended a moment before it.
                Ok(event) if since.is_some_and(|since| event.finished < since) => {}
                Ok(event) => sums.entry(group(args.by, &event)).or_default().add(&event),
                Err(_) => unreadable += 1,
            }
        })
        .await?;
        anyhow::Ok((names, sums, unreadable))
    })?;
    if unreadable > 0 {
        eprintln!("{unreadable} usage events can't be read and are left out; upgrade emberline");
    }
    let (head, rows) = (head(args.by), rows(args.by, &sums, &names));
    if args.csv {
        write_csv(&head, &rows)
    } else if rows.is_empty() {
        println!("nothing was used");
        Ok(())
    } else {
        println!("{}", table(&head, rows.into_iter()));
        Ok(())
    }
}

fn group(by: By, event: &UsageEvent) -> String {
    match by {
        By::Key => event.key.to_string(),
        By::Model => event.model.clone(),
        By::Day => time_format::date(event.finished),
    }
}

fn head(by: By) -> Vec<String> {
    let group: &[&str] = match by {
        By::Key => &["key", "name"],
        By::Model => &["model"],
        By::Day => &["day"],
    };
    let sums = ["jobs", "cancelled", "failed", "prompt_tokens", "cached_tokens", "completion_tokens"];
    group.iter().chain(&sums).map(|&name| name.to_owned()).collect()
}

fn rows(by: By, sums: &BTreeMap<String, Sum>, names: &Names) -> Vec<Vec<String>> {
    let name = |group: &String| {
        let id = KeyId::try_from(group.clone()).ok()?;
        Some(names.get(&id).cloned().unwrap_or_default())
    };
    let row = |(group, sum): (&String, &Sum)| {
        let numbers = [
            sum.jobs,
            sum.cancelled,
            sum.failed,
            sum.prompt_tokens,
            sum.cached_tokens,
            sum.completion_tokens,
        ];
        let name = Some(group).filter(|_| by == By::Key).map(|group| name(group).unwrap_or_default());
        let group = [group.clone()].into_iter().chain(name);
        group.chain(numbers.map(|number| number.to_string())).collect()
    };
    sums.iter().map(row).collect()
}

fn write_csv(head: &[String], rows: &[Vec<String>]) -> anyhow::Result<()> {
    let mut writer = csv::Writer::from_writer(io::stdout());
    writer.write_record(head)?;
    for row in rows {
        writer.write_record(row)?;
    }
    Ok(writer.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use emberline_protocol::error::ErrorCode;
    use emberline_protocol::event::{Timings, Usage};
    use emberline_protocol::subject::JobId;

    fn event(key: &[u8], outcome: Outcome) -> UsageEvent {
        UsageEvent {
            v: 2,
            job: JobId::from_random(1),
            key: KeyId::of_key(key),
            model: "m".into(),
            usage: Usage { prompt_tokens: 10, cached_tokens: 4, completion_tokens: 3 },
            timings: Timings::default(),
            created: 0,
            finished: 86_400_000,
            outcome,
        }
    }

    #[test]
    fn jobs_are_summed_up_by_group() {
        let failed = Outcome::Failed(ErrorCode::Timeout);
        let events = [event(b"abc", Outcome::Done), event(b"abc", Outcome::Cancelled), event(b"x", failed)];
        let table = |by| {
            let mut sums = BTreeMap::<String, Sum>::new();
            events.iter().for_each(|event| sums.entry(group(by, event)).or_default().add(event));
            let names = Names::from([(KeyId::of_key(b"abc"), "Ada".to_owned())]);
            let rows = rows(by, &sums, &names);
            assert!(rows.iter().all(|row| row.len() == head(by).len()));
            rows
        };
        assert_eq!(table(By::Model), [["m", "3", "1", "1", "30", "12", "9"].map(String::from)]);
        assert_eq!(table(By::Day), [["1970-01-02", "3", "1", "1", "30", "12", "9"].map(String::from)]);
        let keys = table(By::Key);
        assert_eq!(keys.len(), 2);
        let ada = keys.iter().find(|row| row[1] == "Ada").unwrap();
        assert_eq!(ada[2..], ["2", "1", "0", "20", "8", "6"]);
    }
}
