//! `emberline usage export`: writes each usage event as a line, once or as jobs end.
//!
//! A named export has its position in NATS: a durable consumer of `USAGE`, whose events are acknowledged when their
//! lines are written. So an export that was killed goes on where it ended, and may write again what it had written
//! last. Each line has the event's sequence in the stream and its message id, by which a reader drops repeats.

mod writer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::{AckKind, Message};
use clap::{Args, ValueEnum};
use emberline_protocol::subject::{USAGE_STREAM, USAGE_SUBJECTS};
use futures::StreamExt;
use time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};

use super::room::warn_if_nearly_full;
use crate::nats::access::{NatsAccess, NatsConnection};
use crate::nats::name::parse_name;
use crate::nats::stored::{Start, each_stored};
use crate::runtime::runtime;
use crate::time_format::{TimePoint, now_ms, parse_time_point};
use writer::ExportWriter;

/// Header in which a publisher gives a message's id.
const MESSAGE_ID_HEADER: &str = "Nats-Msg-Id";
/// Most events that are written at once, and that a named export has unacknowledged.
const BATCH: usize = 500;
/// How long a batch waits for its next event before what it has is written.
const LINGER: Duration = Duration::from_millis(50);
/// How long JetStream waits for an event's acknowledgement before it delivers the event again.
const ACK_WAIT: Duration = Duration::from_secs(10);
/// How long one request to a consumer waits for events.
const PULL_WAIT: Duration = Duration::from_secs(20);
/// The same where others have taken the last events and not acknowledged them yet.
const LAST_PULL_WAIT: Duration = Duration::from_secs(1);
/// Pause before an unnamed export looks for new events, and before a named one tries again after an error.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// How each event is written; CSV begins with a line of names
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    /// Go on with events as they come, until Ctrl-C
    #[arg(long)]
    follow: bool,
    /// Only events stored since then: a time before now like 30d, or a date like 2026-11-01 (UTC); with --name,
    /// where a new export begins
    #[arg(long, value_parser = parse_time_point, value_name = "WHEN")]
    since: Option<TimePoint>,
    /// Keep the position in NATS under this name: the next export of that name goes on where this one ended
    #[arg(long, value_parser = parse_name)]
    name: Option<String>,
    /// Where to write [default: stdout]; a file is replaced, with --name appended to
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A JSON object a line
    Jsonl,
    Csv,
}

pub(super) fn run(args: &ExportArgs, access: &NatsAccess) -> anyhow::Result<()> {
    let mut writer = ExportWriter::open(args.format, args.output.as_deref(), args.name.is_some())
        .with_context(|| {
            format!("can't write {}", args.output.as_deref().unwrap_or(Path::new("stdout")).display())
        })?;
    let since = args.since.map(|since| since.before(now_ms()));
    runtime()?.block_on(async {
        let client = access.connect().await?;
        warn_if_nearly_full(&client).await?;
        let mut terminate = signal(SignalKind::terminate())?;
        let export = async {
            match &args.name {
                Some(name) => {
                    NamedExport::open(&client, name, since).await?.run(&mut writer, args.follow).await
                }
                None => export_stored(&client, since, &mut writer, args.follow).await,
            }
        };
        // Events whose lines are not written yet are not acknowledged.
        tokio::select! {
            ended = export => ended,
            interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
            _ = terminate.recv() => Ok(()),
        }
    })
}

/// Writes what is stored, and if told to follow, what comes; its position ends with it.
async fn export_stored(
    client: &NatsConnection,
    since: Option<u64>,
    writer: &mut ExportWriter,
    follow: bool,
) -> anyhow::Result<()> {
    let mut start = since.map_or(Start::FIRST, Start::Time);
    loop {
        let (mut next, mut written) = (start, Ok(()));
        each_stored(client, USAGE_STREAM, USAGE_SUBJECTS, start, |stored| {
            next = Start::Sequence(stored.sequence.saturating_add(1));
            let id = stored.header(MESSAGE_ID_HEADER).unwrap_or_default();
            writer.push(stored.sequence, id, &stored.payload);
            if writer.pending() >= BATCH && written.is_ok() {
                written = writer.commit();
            }
        })
        .await?;
        written.and_then(|()| writer.commit()).context("writing failed")?;
        if !follow {
            return Ok(());
        }
        start = next;
        tokio::time::sleep(PAUSE).await;
    }
}

/// An export whose position is a consumer.
struct NamedExport(PullConsumer);

impl NamedExport {
    /// Finds the position of this name; a new one is that of the first event stored at `since` (Unix
    /// milliseconds) or later.
    async fn open(client: &NatsConnection, name: &str, since: Option<u64>) -> anyhow::Result<Self> {
        let context = client.jetstream();
        let consumer_name = format!("export-{name}");
        let found = context.get_consumer_from_stream(&consumer_name, USAGE_STREAM).await;
        if let Ok(found) = found {
            return Ok(Self(found));
        }
        let start_time =
            since.map(|since| OffsetDateTime::from_unix_timestamp_nanos(i128::from(since) * 1_000_000));
        let deliver_policy = match start_time.transpose()? {
            Some(start_time) => DeliverPolicy::ByStartTime { start_time },
            None => DeliverPolicy::All,
        };
        let config = pull::Config {
            durable_name: Some(consumer_name),
            description: Some("Emberline: how far an export of usage events has come".to_owned()),
            deliver_policy,
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_ack_pending: i64::try_from(BATCH)?,
            ..Default::default()
        };
        let created = context.create_consumer_on_stream(config, USAGE_STREAM).await;
        Ok(Self(created.with_context(|| {
            format!("the position of the export {name} can't be kept in NATS; check with `emberline nats setup --dry-run`")
        })?))
    }

    /// Writes what is stored beyond the position, and if told to follow, what comes.
    async fn run(&self, writer: &mut ExportWriter, follow: bool) -> anyhow::Result<()> {
        loop {
            match self.step(writer, follow).await {
                Ok(true) if !follow => return Ok(()),
                Ok(_) => {}
                Err(ExportError::Bus(error)) if follow => {
                    eprintln!("warning: {error:#}; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(ExportError::Bus(error) | ExportError::Fatal(error)) => return Err(error),
            }
        }
    }

    /// Writes one batch of events; whether there was nothing left to write.
    async fn step(&self, writer: &mut ExportWriter, follow: bool) -> Result<bool, ExportError> {
        let info = self.0.get_info().await.map_err(|error| {
            let is_gone = error.kind() == ConsumerInfoErrorKind::NotFound;
            let error = anyhow::Error::new(error).context("the position of the export can't be read");
            if is_gone { ExportError::Fatal(error) } else { ExportError::Bus(error) }
        })?;
        if info.num_pending == 0 && info.num_ack_pending == 0 && !follow {
            commit(writer, &mut Vec::new()).await?;
            return Ok(true);
        }
        let size = usize::try_from(info.num_pending).unwrap_or(BATCH).clamp(1, BATCH);
        let wait = if follow { PULL_WAIT } else { LAST_PULL_WAIT };
        let pulled = self.0.batch().max_messages(size).expires(wait).messages().await;
        let mut batch = pulled.map_err(|error| ExportError::Bus(error.into()))?;
        let mut taken = Vec::new();
        loop {
            match tokio::time::timeout(LINGER, batch.next()).await {
                Ok(Some(Ok(message))) => {
                    let position = message.info().map_err(|error| ExportError::Fatal(anyhow!(error)))?;
                    let id = message.headers.as_ref().and_then(|headers| headers.get(MESSAGE_ID_HEADER));
                    let id = id.map_or("", |id| id.as_str());
                    writer.push(position.stream_sequence, id, &message.payload);
                    taken.push(message);
                }
                Ok(Some(Err(error))) => {
                    commit(writer, &mut taken).await?;
                    return Err(ExportError::Bus(anyhow!(error).context("events can't be taken")));
                }
                Ok(None) => break,
                Err(_idle) => commit(writer, &mut taken).await?,
            }
        }
        commit(writer, &mut taken).await?;
        Ok(false)
    }
}

/// Why a batch ended early.
enum ExportError {
    /// NATS can't be used at the moment.
    Bus(anyhow::Error),
    /// Trying again does not help.
    Fatal(anyhow::Error),
}

/// Writes the lines, and then acknowledges their events. Returns when the position is stored.
async fn commit(writer: &mut ExportWriter, taken: &mut Vec<Message>) -> Result<(), ExportError> {
    writer
        .commit()
        .map_err(|error| ExportError::Fatal(anyhow::Error::new(error).context("writing failed")))?;
    let acknowledge = async {
        let last = taken.pop();
        for message in taken.drain(..) {
            message.ack_with(AckKind::Ack).await?;
        }
        if let Some(last) = last {
            last.double_ack().await?;
        }
        Ok::<_, async_nats::Error>(())
    };
    acknowledge.await.map_err(|error| {
        ExportError::Bus(
            anyhow!(error).context("events that were written can't be acknowledged and will come again"),
        )
    })
}
