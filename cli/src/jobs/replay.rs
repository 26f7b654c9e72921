//! Runs a job again: queues it as a new one, keeps it alive, and reads its event log to the end.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, bail};
use async_nats::jetstream::message::PublishMessage;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::chunk::Chunk;
use emberline_protocol::control::{ALIVE_INTERVAL_S, Control};
use emberline_protocol::event::{EventKind, FinishReason};
use emberline_protocol::job::Job;
use emberline_protocol::log::EventLog;
use emberline_protocol::subject::{self, EVENTS_STREAM, JobId};
use rand::TryRng;
use rand::rngs::SysRng;

use crate::nats::access::NatsConnection;
use crate::nats::stored::{Start, each_stored};
use crate::time_format::now_ms;

/// How often the log is looked into.
const LOOK: Duration = Duration::from_millis(200);
/// The least time that the job gets, in milliseconds: it may have been given up for the lack of it.
const LEAST_TIME_MS: u64 = 60_000;
/// How long after its deadline its end may be written.
const GRACE_MS: u64 = 5000;

/// Runs `given_up` as a new job and prints what it says; an error if it does not end well.
pub(super) async fn replay(client: &NatsConnection, given_up: Job) -> anyhow::Result<()> {
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

async fn queue(client: &NatsConnection, job: &Job) -> anyhow::Result<()> {
    let message =
        PublishMessage::build().payload(serde_json::to_vec(job)?.into()).message_id(job.id.as_str());
    let sent = client.jetstream().send_publish(subject::jobs(&job.model, job.lane()), message).await?;
    sent.await.context("the job was not queued")?;
    Ok(())
}

async fn control(client: &NatsConnection, job: &JobId, control: Control) -> anyhow::Result<()> {
    Ok(client.publish(subject::control(job), serde_json::to_vec(&control)?.into()).await?)
}

/// A job's event log, as far as it was read and printed.
struct Log {
    subject: String,
    next: Start,
    stored: Vec<Chunk>,
    log: EventLog,
    /// Bytes of the only choice's text that are printed. Of several choices the texts are printed at the
    /// end.
    printed: usize,
}

impl Log {
    fn of(job: &Job) -> Self {
        Self {
            subject: subject::events(&job.id),
            next: Start::FIRST,
            stored: Vec::new(),
            log: EventLog::new(job.request.n, job.request.logs_prompt()),
            printed: 0,
        }
    }

    /// Reads and prints what is new; whether the job has ended well.
    async fn read(&mut self, client: &NatsConnection) -> anyhow::Result<bool> {
        let mut stored = Vec::new();
        each_stored(client, EVENTS_STREAM, &self.subject, self.next, |message| stored.push(message)).await?;
        if stored.is_empty() {
            return Ok(false);
        }
        for message in stored {
            self.next = Start::Sequence(message.sequence.saturating_add(1));
            let chunk = serde_json::from_slice(&message.payload)
                .context("a chunk of events can't be read; upgrade emberline")?;
            self.stored.push(chunk);
        }
        let reading = self.log.read(&self.stored, |_, _, _| {});
        self.print()?;
        if let Some(conflict) = reading.conflict {
            bail!("the workers disagree about the job: {conflict}");
        }
        match self.log.end() {
            Some(EventKind::Error(error)) => {
                bail!("the job failed again: {} ({})", error.message, error.status)
            }
            Some(EventKind::Done { .. }) if self.is_cancelled() => bail!("the job was cancelled"),
            Some(EventKind::Done { usage, .. }) => {
                eprintln!("done: {} tokens in, {} out", usage.prompt_tokens, usage.completion_tokens);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn is_cancelled(&self) -> bool {
        self.log.choices().iter().any(|choice| choice.finish() == Some(FinishReason::Cancelled))
    }

    /// Prints the text that is new, and at the end all texts if there are several.
    fn print(&mut self) -> io::Result<()> {
        let mut out = io::stdout();
        if let [choice] = self.log.choices() {
            out.write_all(choice.text().as_bytes().get(self.printed..).unwrap_or_default())?;
            self.printed = choice.text().len();
            if self.log.end().is_some() {
                writeln!(out)?;
            }
        } else if self.log.end().is_some() {
            for (number, choice) in self.log.choices().iter().enumerate() {
                writeln!(out, "[{number}] {}", choice.text())?;
            }
        }
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
}
