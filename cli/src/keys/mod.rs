//! `emberline keys`: creates, lists, rotates and revokes API keys.
//!
//! A key is printed once, when it is created; the [`store`] holds only its SHA-256.

mod store;

use std::time::Duration;

use anyhow::ensure;
use clap::{Args, Subcommand};
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::key::{self, KeyId, KeyLimits, KeyRecord, KeyState, MAX_LIMIT};
use serde_json::json;

use crate::cache::Cache;
use crate::key_gen::new_api_key;
use crate::nats::access::AdminArgs;
use crate::runtime::runtime;
use crate::table::table;
use crate::time_format::{self, TimePoint, now_ms, parse_duration, parse_time_point};
pub(crate) use store::KeyStore;

#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
    #[command(flatten)]
    access: AdminArgs,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Create a key and print it; it is not shown again.
    Create(CreateArgs),
    /// List all keys.
    List(OutputArgs),
    /// Show the record of one key.
    Show(ShowArgs),
    /// Replace a key by a new one with the same settings, and print that.
    Rotate(RotateArgs),
    /// Revoke a key; it is refused within two seconds.
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
struct OutputArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// Its name
    #[arg(long, value_parser = parse_name)]
    name: String,
    /// The models that it may use, by name or alias, separated by commas [default: all]
    #[arg(long, value_delimiter = ',', value_name = "MODEL")]
    models: Option<Vec<String>>,
    /// When it expires: a time from now like 30d, or a date like 2027-01-31 (UTC)
    #[arg(long, value_parser = parse_time_point, value_name = "WHEN")]
    expires: Option<TimePoint>,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits [default: the function's default_limits, if none is given]")]
struct LimitArgs {
    #[arg(long, value_name = "N", value_parser = limit())]
    requests_per_minute: Option<u64>,
    #[arg(long, value_name = "N", value_parser = limit())]
    requests_per_hour: Option<u64>,
    #[arg(long, value_name = "N", value_parser = limit())]
    requests_per_day: Option<u64>,
    /// Prompts and completions together
    #[arg(long, value_name = "N", value_parser = limit())]
    tokens_per_minute: Option<u64>,
    #[arg(long, value_name = "N", value_parser = limit())]
    tokens_per_day: Option<u64>,
    /// Jobs that may wait or run at the same time
    #[arg(long, value_name = "N", value_parser = limit())]
    jobs_at_once: Option<u64>,
    /// Bytes of background responses and of requests with an Idempotency-Key that are stored [default: 16 MiB]
    #[arg(long, value_name = "N", value_parser = limit())]
    stored_bytes: Option<u64>,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// Its name or id
    key: String,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct RotateArgs {
    /// Its name or id
    key: String,
    /// How long the old key stays valid, such as 24h [default: it is revoked at once]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    grace: Option<Duration>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct RevokeArgs {
    /// Its name or id
    key: String,
}

fn limit() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=MAX_LIMIT)
}

fn parse_name(name: &str) -> Result<String, &'static str> {
    let fits = (1..=64).contains(&name.chars().count()) && !name.chars().any(char::is_control);
    if !fits || name.trim() != name {
        return Err("must be 1 to 64 characters, without spaces around them");
    }
    // Commands take a key's name or its id, so no name may look like an id.
    if KeyId::try_from(name.to_owned()).is_ok() {
        return Err("must not look like a key's id");
    }
    Ok(name.to_owned())
}

impl From<&LimitArgs> for KeyLimits {
    fn from(args: &LimitArgs) -> Self {
        Self {
            requests_per_minute: args.requests_per_minute,
            requests_per_hour: args.requests_per_hour,
            requests_per_day: args.requests_per_day,
            tokens_per_minute: args.tokens_per_minute,
            tokens_per_day: args.tokens_per_day,
            jobs_at_once: args.jobs_at_once,
            stored_bytes: args.stored_bytes,
        }
    }
}

pub(crate) fn run(args: &KeysArgs, cache: &Cache) -> anyhow::Result<()> {
    let access = args.access.resolve(cache)?;
    runtime()?.block_on(async {
        let keys = KeyStore::open(&access).await?;
        match &args.command {
            KeysCommand::Create(args) => create(&keys, args).await,
            KeysCommand::List(output) => list(&keys, output).await,
            KeysCommand::Show(args) => show(&keys, args).await,
            KeysCommand::Rotate(args) => rotate(&keys, args).await,
            KeysCommand::Revoke(args) => revoke(&keys, args).await,
        }
    })
}

async fn create(keys: &KeyStore, args: &CreateArgs) -> anyhow::Result<()> {
    let now = now_ms();
    let expires = args.expires.map(|time| time.after(now));
    ensure!(
        expires.is_none_or(|expires| expires > now),
        "--expires lies in the past; give a time in the future"
    );
    let taken = keys
        .list()
        .await?
        .into_iter()
        .find(|entry| entry.record.name == args.name && entry.record.state(now) == KeyState::Active);
    if let Some(taken) = taken {
        anyhow::bail!(
            "key {} already has the name '{}'; choose another name, or replace that key with `emberline keys rotate`",
            taken.record.id,
            args.name
        );
    }
    let (name, models, limits) = (args.name.clone(), args.models.clone(), KeyLimits::from(&args.limits));
    let (secret, record) = new_key(now, |new| KeyRecord { name, models, limits, expires, ..new })?;
    keys.add(&secret, &record).await?;
    print_new(&secret, &record, &args.output);
    Ok(())
}

async fn rotate(keys: &KeyStore, args: &RotateArgs) -> anyhow::Result<()> {
    let now = now_ms();
    let mut old = keys.find(&args.key, now).await?;
    ensure!(
        old.record.state(now) == KeyState::Active,
        "key {} is already {}; create a new one with `emberline keys create`",
        old.record.id,
        state(&old.record, now)
    );
    let settings = old.record.clone();
    let (secret, record) = new_key(now, |new| KeyRecord {
        id: new.id,
        created: new.created,
        last_four: new.last_four,
        ..settings
    })?;
    keys.add(&secret, &record).await?;
    match args.grace {
        Some(grace) => {
            let end = now.saturating_add(time_format::milliseconds(grace));
            old.record.expires = Some(old.record.expires.map_or(end, |expires| expires.min(end)));
        }
        None => old.record.revoked = Some(now),
    }
    keys.replace(&old).await?;
    print_new(&secret, &record, &args.output);
    Ok(())
}

async fn revoke(keys: &KeyStore, args: &RevokeArgs) -> anyhow::Result<()> {
    let now = now_ms();
    let mut entry = keys.find(&args.key, now).await?;
    if entry.record.revoked.is_none() {
        entry.record.revoked = Some(now);
        keys.replace(&entry).await?;
    }
    eprintln!("key '{}' (id {}) is revoked", entry.record.name, entry.record.id);
    Ok(())
}

async fn list(keys: &KeyStore, output: &OutputArgs) -> anyhow::Result<()> {
    let now = now_ms();
    let records: Vec<KeyRecord> = keys.list().await?.into_iter().map(|entry| entry.record).collect();
    if output.json {
        let records: Vec<_> = records.iter().map(|record| described(record, now)).collect();
        println!("{}", serde_json::to_string_pretty(&records)?);
    } else if records.is_empty() {
        println!("there are no keys; create one with `emberline keys create`");
    } else {
        println!("{}", render(&records, now));
    }
    Ok(())
}

async fn show(keys: &KeyStore, args: &ShowArgs) -> anyhow::Result<()> {
    let now = now_ms();
    let record = keys.find(&args.key, now).await?.record;
    if args.output.json {
        println!("{}", serde_json::to_string_pretty(&described(&record, now))?);
    } else {
        println!("{}", render(&[record], now));
    }
    Ok(())
}

/// Generates a key, and its record with the settings that `configure` gives it. `now` is in Unix milliseconds.
fn new_key(now: u64, configure: impl FnOnce(KeyRecord) -> KeyRecord) -> anyhow::Result<(String, KeyRecord)> {
    let secret = new_api_key()?;
    let record = KeyRecord {
        v: PROTOCOL_VERSION,
        id: KeyId::of_hash(&key::hash(secret.as_bytes())),
        name: String::new(),
        created: now,
        last_four: secret.chars().skip(secret.len().saturating_sub(4)).collect(),
        expires: None,
        revoked: None,
        models: None,
        limits: KeyLimits::default(),
    };
    Ok((secret, configure(record)))
}

/// Prints a new key. Only the key goes to standard output, so that a script can read it from there.
fn print_new(secret: &str, record: &KeyRecord, output: &OutputArgs) {
    if output.json {
        let mut described = described(record, record.created);
        described["key"] = secret.into();
        println!("{described:#}");
    } else {
        eprintln!("key '{}' (id {}); it is not shown again:", record.name, record.id);
        println!("{secret}");
    }
}

fn described(record: &KeyRecord, now: u64) -> serde_json::Value {
    let mut value = json!(record);
    value["state"] = state(record, now).into();
    value
}

fn state(record: &KeyRecord, now: u64) -> &'static str {
    match record.state(now) {
        KeyState::Active => "active",
        KeyState::Expired => "expired",
        KeyState::Revoked => "revoked",
    }
}

fn render(records: &[KeyRecord], now: u64) -> String {
    let head = ["id", "name", "key", "state", "created", "expires", "models", "limits"].map(String::from);
    let row = |record: &KeyRecord| {
        [
            record.id.to_string(),
            record.name.clone(),
            format!("…{}", record.last_four),
            state(record, now).to_owned(),
            time_format::date_and_minute(record.created),
            record.expires.map_or_else(|| "never".to_owned(), time_format::date_and_minute),
            record.models.as_ref().map_or_else(|| "all".to_owned(), |models| models.join(",")),
            limits(&record.limits),
        ]
    };
    table(&head, records.iter().map(row))
}

/// `60 requests a minute, 4 jobs at once`, or `default`.
fn limits(limits: &KeyLimits) -> String {
    let all = [
        ("requests a minute", limits.requests_per_minute),
        ("requests an hour", limits.requests_per_hour),
        ("requests a day", limits.requests_per_day),
        ("tokens a minute", limits.tokens_per_minute),
        ("tokens a day", limits.tokens_per_day),
        ("jobs at once", limits.jobs_at_once),
        ("stored bytes", limits.stored_bytes),
    ];
    let set: Vec<String> =
        all.into_iter().filter_map(|(unit, limit)| Some(format!("{} {unit}", limit?))).collect();
    if set.is_empty() { "default".to_owned() } else { set.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_recorded_by_its_hash_and_last_four_characters() {
        let (secret, record) = new_key(now_ms(), |new| new).unwrap();
        assert_eq!((secret.len(), &secret[..7]), (50, "sk-emb-"));
        assert_eq!(record.id, KeyId::of_key(secret.as_bytes()));
        assert!(secret.ends_with(&record.last_four) && record.last_four.len() == 4);
        assert!(!serde_json::to_string(&record).unwrap().contains(&secret[7..]));
    }

    #[test]
    fn a_name_that_looks_like_an_id_is_refused() {
        assert!(parse_name("Ada's laptop").is_ok());
        for wrong in ["", " a", "a\nb", "0123456789abcdef", &"x".repeat(65)] {
            assert!(parse_name(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_key_is_one_line_of_the_list() {
        let (_, record) = new_key(now_ms(), |new| KeyRecord {
            name: "n".into(),
            last_four: "wxyz".into(),
            created: 0,
            expires: Some(60_000),
            models: Some(vec!["a".into(), "b".into()]),
            limits: KeyLimits {
                requests_per_minute: Some(60),
                jobs_at_once: Some(4),
                ..KeyLimits::default()
            },
            ..new
        })
        .unwrap();
        let text = render(&[record], 60_000);
        let line = text.lines().nth(1).unwrap();
        for part in ["…wxyz", "expired", "1970-01-01 00:01", "a,b", "60 requests a minute, 4 jobs at once"]
        {
            assert!(line.contains(part), "{line}");
        }
    }
}
