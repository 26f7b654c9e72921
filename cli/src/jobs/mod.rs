//! `emberline jobs`: shows the queues; shows, replays and drops dead letters (jobs that were given up).

mod dead_letters;
mod queues;
mod replay;

use clap::{Args, Subcommand};
use emberline_protocol::subject::{InvalidJobId, JobId};
use serde_json::json;

use crate::cache::Cache;
use crate::nats::access::AdminArgs;
use crate::runtime::runtime;
use crate::table::table;
use crate::time_format;
use dead_letters::{DeadLetter, DeadLetters};
use queues::Queue;

#[derive(Debug, Args)]
pub(crate) struct JobsArgs {
    #[command(subcommand)]
    command: JobsCommand,
    #[command(flatten)]
    access: AdminArgs,
}

#[derive(Debug, Subcommand)]
enum JobsCommand {
    /// Count each model's waiting and running jobs, and list the jobs that were given up.
    List(ListArgs),
    /// Show a job that was given up, as JSON.
    Show(JobArgs),
    /// Run a job that was given up again, without charging its key, and print its answer.
    Replay(ReplayArgs),
    /// Delete a job that was given up.
    Drop(JobArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct JobArgs {
    /// Its id, as `emberline jobs list` shows it
    #[arg(value_parser = parse_id)]
    id: JobId,
}

#[derive(Debug, Args)]
struct ReplayArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Keep the dead letter even if the job now succeeds
    #[arg(long)]
    keep: bool,
}

fn parse_id(id: &str) -> Result<JobId, InvalidJobId> {
    JobId::try_from(id.to_owned())
}

pub(crate) fn run(args: &JobsArgs, cache: &Cache) -> anyhow::Result<()> {
    let access = args.access.resolve(cache)?;
    runtime()?.block_on(async {
        let client = access.connect().await?;
        let letters = DeadLetters::new(client.clone());
        match &args.command {
            JobsCommand::List(args) => {
                list(&queues::queues(&client).await?, &letters.list().await?, args)?;
            }
            JobsCommand::Show(args) => println!("{:#}", letters.find(&args.id).await?.details()),
            JobsCommand::Replay(args) => {
                let letter = letters.find(&args.job.id).await?;
                replay::replay(&client, letter.job()?).await?;
                if !args.keep {
                    letters.remove(&letter).await?;
                    eprintln!("removed {} from the jobs that were given up", args.job.id);
                }
            }
            JobsCommand::Drop(args) => {
                letters.remove(&letters.find(&args.id).await?).await?;
                eprintln!("deleted {}", args.id);
            }
        }
        Ok(())
    })
}

fn list(queues: &[Queue], letters: &[DeadLetter], args: &ListArgs) -> anyhow::Result<()> {
    if args.json {
        let letters: Vec<_> = letters.iter().map(DeadLetter::summary).collect();
        let all = json!({"queues": queues, "given_up": letters});
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        println!("{}\n\n{}", render_queues(queues), render_dead_letters(letters));
    }
    Ok(())
}

fn render_queues(queues: &[Queue]) -> String {
    if queues.is_empty() {
        return "no model has a queue".to_owned();
    }
    let head = ["model", "waiting", "running"].map(String::from);
    let row = |queue: &Queue| [queue.model.clone(), queue.waiting.to_string(), queue.running.to_string()];
    table(&head, queues.iter().map(row))
}

fn render_dead_letters(letters: &[DeadLetter]) -> String {
    if letters.is_empty() {
        return "no job was given up".to_owned();
    }
    let head = ["given up", "model", "when", "attempts", "reason"].map(String::from);
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "?".to_owned());
    let row = |letter: &DeadLetter| {
        [
            or_unknown(letter.id.as_ref().map(ToString::to_string)),
            letter.model.clone(),
            or_unknown(letter.given_up_at.map(time_format::date_and_minute)),
            or_unknown(letter.attempts.clone()),
            letter.reason.clone(),
        ]
    };
    table(&head, letters.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_lists_are_shown_in_words() {
        assert_eq!(render_queues(&[]), "no model has a queue");
        assert_eq!(render_dead_letters(&[]), "no job was given up");
        let queues = [Queue { model: "m".into(), waiting: 12, running: 3 }];
        assert_eq!(render_queues(&queues), "model  waiting  running\nm      12       3");
    }
}
