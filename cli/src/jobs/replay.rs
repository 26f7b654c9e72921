//! Runs a job again: queues it as a new one, keeps it alive, and reads its event log to the end.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, bail};
use async_nats::Client;
use async_nats::jetstream::{self, message::PublishMessage};
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::control::{ALIVE_INTERVAL_S, Control};
use emberline_protocol::event::{Event, EventKind, FinishReason};
use emberline_protocol::job::Job;
use emberline_protocol::subject::{self, EVENTS_STREAM, JobId};
use rand::TryRng;
use rand::rngs::SysRng;

use crate::access::{Start, each_stored};
use crate::when::now_ms;

/// How often the log is looked into.
const LOOK: Duration = Duration::from_millis(200);
/// The least time that the job gets, in milliseconds: it may have been given up for the lack of it.
const LEAST_TIME_MS: u64 = 60_000;
/// How long after its deadline its end may be written.
const GRACE_MS: u64 = 5000;

/// Runs `given_up` as a new job and prints what it says; an error if it does not end well.
pub(super) async fn replay(client: &Client, given_up: Job) -> anyhow::Result<()> {
    let job = renewed(given_up, new_id()?, now_ms());
    queue(client, &job).await?;
    eprintln!("queued again as job {}", job.id);
    let mut log = Log::of(&job);
    let mut alive = tokio::time::interval(Duration::from_secs(ALIVE_INTERVAL_S));
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.context("can't listen for Ctrl-C")?;
                control(client, &job.id, Control::Cancel).await?;
                client.flush().await?;
                bail!("cancelled; the job that was given up stays");
            }
            _ = alive.tick() => control(client, &job.id, Control::Alive).await?,
            _ = look.tick() => {
                if log.read(client).await? {
                    return Ok(());
                }
                if now_ms() > job.deadline.saturating_add(GRACE_MS) {
                    bail!("no worker of {} ended the job by its deadline; `emberline status` shows who serves what", job.model);
                }
            }
        }
    }
}

/// The same work as a new job that nobody is charged for and that ends with its listener.
fn renewed(given_up: Job, id: JobId, now_ms: u64) -> Job {
    let time = given_up.deadline.saturating_sub(given_up.created).max(LEAST_TIME_MS);
    Job {
        v: PROTOCOL_VERSION,
        id,
        created: now_ms,
        deadline: now_ms.saturating_add(time),
        background: None,
        account: None,
        ..given_up
    }
}

fn new_id() -> io::Result<JobId> {
    let mut bits = [0; 16];
    SysRng.try_fill_bytes(&mut bits).map_err(io::Error::other)?;
    Ok(JobId::from_random(u128::from_be_bytes(bits)))
}

async fn queue(client: &Client, job: &Job) -> anyhow::Result<()> {
    let message =
        PublishMessage::build().payload(serde_json::to_vec(job)?.into()).message_id(job.id.as_str());
    let jetstream = jetstream::new(client.clone());
    let sent = jetstream.send_publish(subject::jobs(&job.model, job.lane()), message).await?;
    sent.await.context("the job was not queued")?;
    Ok(())
}

async fn control(client: &Client, job: &JobId, control: Control) -> anyhow::Result<()> {
    Ok(client.publish(subject::control(job), serde_json::to_vec(&control)?.into()).await?)
}

/// A job's event log, as far as it was read and printed.
struct Log {
    subject: String,
    next: Start,
    choices: u32,
    fold: Fold,
    /// Texts that are printed at the end, because there are several.
    texts: BTreeMap<u32, String>,
    is_cancelled: bool,
}

impl Log {
    fn of(job: &Job) -> Self {
        Self {
            subject: subject::events(&job.id),
            next: Start::FIRST,
            choices: job.request.n,
            fold: Fold::default(),
            texts: BTreeMap::new(),
            is_cancelled: false,
        }
    }

    /// Reads and prints what is new; whether the job has ended well.
    async fn read(&mut self, client: &Client) -> anyhow::Result<bool> {
        let mut stored = Vec::new();
        each_stored(client, EVENTS_STREAM, &self.subject, self.next, |event| stored.push(event)).await?;
        for event in stored {
            self.next = Start::Sequence(event.sequence.saturating_add(1));
            let event: Event = serde_json::from_slice(&event.payload)
                .context("an event can't be read; upgrade emberline")?;
            for kind in self.fold.take(event) {
                if self.apply(kind)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Prints what an event says; whether it is the job's good end.
    fn apply(&mut self, kind: EventKind) -> anyhow::Result<bool> {
        match kind {
            EventKind::Tokens { choice, text, .. } => self.print(choice, &text)?,
            EventKind::Finish { reason: FinishReason::Cancelled, .. } => self.is_cancelled = true,
            EventKind::Done { usage, .. } => {
                self.end()?;
                if self.is_cancelled {
                    bail!("the job was cancelled");
                }
                let (prompt, answer) = (usage.prompt_tokens, usage.completion_tokens);
                eprintln!("done: {prompt} tokens in, {answer} out");
                return Ok(true);
            }
            EventKind::Error(error) => {
                self.end()?;
                bail!("the job failed again: {} ({})", error.message, error.status);
            }
            _ => {}
        }
        Ok(false)
    }

    fn print(&mut self, choice: u32, text: &str) -> io::Result<()> {
        if self.choices > 1 {
            self.texts.entry(choice).or_default().push_str(text);
            return Ok(());
        }
        let mut out = io::stdout();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    fn end(&self) -> io::Result<()> {
        let mut out = io::stdout();
        if self.texts.is_empty() {
            return writeln!(out);
        }
        self.texts.iter().try_for_each(|(choice, text)| writeln!(out, "[{choice}] {text}"))
    }
}

/// Of a log, the events that count, in the order of their indexes: of each attempt those that follow each
/// other without a gap, and of these no tokens that an earlier attempt has written. An event that had to be
/// sent again is stored behind later ones of its attempt.
#[derive(Debug, Default)]
struct Fold {
    attempt: u32,
    index: u32,
    /// Events of the attempt that were stored before one that precedes them.
    early: BTreeMap<u32, EventKind>,
    /// Of each choice, the position of its next token.
    positions: HashMap<u32, u32>,
}

impl Fold {
    /// What can be told now that `event` is known.
    fn take(&mut self, event: Event) -> Vec<EventKind> {
        if event.attempt > self.attempt {
            self.attempt = event.attempt;
            self.index = 0;
            self.early.clear();
        }
        if event.attempt < self.attempt || event.index < self.index {
            return Vec::new();
        }
        self.early.insert(event.index, event.kind);
        let mut due = Vec::new();
        while let Some(kind) = self.early.remove(&self.index) {
            self.index = self.index.saturating_add(1);
            due.extend(self.is_fresh(&kind).then_some(kind));
        }
        due
    }

    /// Whether no earlier attempt has written the same.
    fn is_fresh(&mut self, kind: &EventKind) -> bool {
        let EventKind::Tokens { choice, position, ids, .. } = kind else { return true };
        let next = self.positions.entry(*choice).or_default();
        if position != next {
            return false;
        }
        *next = next.saturating_add(u32::try_from(ids.len()).unwrap_or(u32::MAX));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emberline_protocol::event::{Timings, Usage};
    use emberline_protocol::job::GenerationRequest;

    #[test]
    fn a_renewed_job_is_the_same_work_at_nobodys_charge() {
        let request = GenerationRequest { max_tokens: Some(9), ..GenerationRequest::default() };
        let old = Job {
            v: 2,
            id: JobId::from_random(1),
            model: "m".into(),
            created: 1000,
            deadline: 101_000,
            request,
            seed: 5,
            background: Some(60),
            account: None,
        };
        let new = renewed(old.clone(), JobId::from_random(2), 500_000);
        assert_eq!(
            (new.created, new.deadline, new.background, new.v),
            (500_000, 600_000, None, PROTOCOL_VERSION)
        );
        assert_eq!((&new.request, new.seed), (&old.request, 5));
        let hurried = renewed(Job { deadline: 1500, ..old }, JobId::from_random(2), 500_000);
        assert_eq!(hurried.deadline, 560_000);
    }

    fn event(attempt: u32, index: u32, kind: EventKind) -> Event {
        Event { v: PROTOCOL_VERSION, attempt, index, kind }
    }

    fn taken() -> EventKind {
        EventKind::Taken { worker: "w".into() }
    }

    fn tokens(position: u32, text: &str) -> EventKind {
        EventKind::Tokens { choice: 0, position, ids: vec![0], text: text.into(), logprobs: Vec::new() }
    }

    /// The text of a log, and whether its end is seen.
    fn told(log: impl IntoIterator<Item = Event>) -> (String, bool) {
        let mut fold = Fold::default();
        let (mut said, mut is_done) = (String::new(), false);
        for kind in log.into_iter().flat_map(|event| fold.take(event)) {
            match kind {
                EventKind::Tokens { text, .. } => said += &text,
                EventKind::Done { .. } => is_done = true,
                _ => {}
            }
        }
        (said, is_done)
    }

    #[test]
    fn an_event_that_was_sent_again_is_told_in_its_place() {
        let done = EventKind::Done { usage: Usage::default(), timings: Timings::default(), at: None };
        let log = [
            event(1, 0, taken()),
            event(1, 2, tokens(1, "b")),
            event(1, 3, done),
            event(1, 1, tokens(0, "a")),
        ];
        assert_eq!(told(log), ("ab".to_owned(), true));
    }

    #[test]
    fn what_counts_is_told_once() {
        let log = [
            event(1, 0, taken()),
            event(1, 1, tokens(0, "a")),
            event(1, 1, tokens(0, "a")),
            event(1, 2, tokens(1, "b")),
            event(1, 4, tokens(3, "lost")),
            event(2, 0, taken()),
            event(1, 3, tokens(2, "late")),
            event(2, 1, tokens(1, "b")),
            event(2, 2, tokens(2, "c")),
        ];
        assert_eq!(told(log), ("abc".to_owned(), false));
    }
}
