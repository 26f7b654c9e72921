//! `emberline jobs`, with a real nats-server and a worker of the simulated engine.

#![allow(clippy::unwrap_used, reason = "a step of a test that fails ends the test")]

use std::process::Stdio;
use std::time::{Duration, SystemTime};

use async_nats::HeaderMap;
use async_nats::jetstream;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::control::Control;
use emberline_protocol::dead_letter::{
    ATTEMPTS_HEADER, PROMPTS_HEADER, Prompts, QUEUED_ON_HEADER, REASON_HEADER,
};
use emberline_protocol::job::{GenerationRequest, Job, Message, Role};
use emberline_protocol::lane::Lane;
use emberline_protocol::subject::{self, JobId};
use emberline_test_kit::cli::{command, emberline, refused};
use emberline_test_kit::nats::{NatsServer, admin_client};
use emberline_test_kit::stack::{Engine, Options};
use emberline_test_kit::workers::Workers;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::AsyncReadExt;

const MODEL: &str = "simulated-echo";
/// How long to wait for anything; only a failure takes so long.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A job of `max_tokens` words that a function queued an hour ago.
fn job(id: u128, max_tokens: u32) -> Job {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let created = u64::try_from(now.as_millis()).unwrap() - 3_600_000;
    Job {
        v: PROTOCOL_VERSION,
        id: JobId::from_random(id),
        model: MODEL.to_owned(),
        created,
        deadline: created + 60_000,
        request: GenerationRequest {
            messages: vec![Message::new(Role::User, "two words")],
            max_tokens: Some(max_tokens),
            ..GenerationRequest::default()
        },
        seed: 1,
        background: None,
        account: None,
    }
}

/// Adds a job to the dead letters, as a worker does.
async fn give_up(nats: &NatsServer, job: &Job) {
    put(nats, &job.id, &job.model, serde_json::to_vec(job).unwrap(), &[]).await;
}

async fn put(nats: &NatsServer, id: &JobId, model: &str, payload: Vec<u8>, more: &[(&str, &str)]) {
    let mut headers = HeaderMap::new();
    more.iter().for_each(|(name, value)| headers.insert(*name, *value));
    headers.insert("Nats-Msg-Id", id.as_str());
    headers.insert(REASON_HEADER, "3 workers died of it");
    headers.insert(ATTEMPTS_HEADER, "3");
    headers.insert(QUEUED_ON_HEADER, subject::jobs(model, Lane::default()).as_str());
    let jetstream = jetstream::new(nats.worker_client().await.unwrap());
    let put = jetstream
        .publish_with_headers(subject::dead(&subject::model_token(model)), headers, payload.into())
        .await
        .unwrap();
    put.await.unwrap();
}

/// A nats-server with all streams.
async fn nats() -> NatsServer {
    let nats = NatsServer::start_empty().await.unwrap();
    emberline(&nats, &["nats", "setup", "--yes", "--model", MODEL]).await.unwrap();
    nats
}

fn worker(nats: &NatsServer, tokens_per_s: &str) -> Workers {
    let worker_args = vec!["--simulated-tokens-per-s".to_owned(), tokens_per_s.to_owned()];
    let options = Options { engine: Engine::Simulated, worker_args, ..Options::default() };
    let mut workers = Workers::default();
    workers.add(&options, &nats.address()).unwrap();
    workers
}

/// The ids of the jobs that were given up.
async fn given_up(nats: &NatsServer) -> Vec<String> {
    let all: Value =
        serde_json::from_str(&emberline(nats, &["jobs", "list", "--json"]).await.unwrap()).unwrap();
    let letters = all["given_up"].as_array().unwrap();
    letters.iter().map(|letter| letter["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn jobs_that_were_given_up_are_listed_shown_and_dropped() {
    let nats = nats().await;
    let none = emberline(&nats, &["jobs", "list"]).await.unwrap();
    assert!(none.ends_with("no job was given up"), "{none}");
    let (first, second) = (job(1, 5), job(2, 5));
    give_up(&nats, &first).await;
    give_up(&nats, &second).await;

    let list = emberline(&nats, &["jobs", "list"]).await.unwrap();
    let line = list.lines().find(|line| line.contains(first.id.as_str())).unwrap();
    assert!(line.contains(MODEL) && line.ends_with("3         3 workers died of it"), "{list}");
    assert!(list.contains("simulated-echo  0        0"), "{list}");
    let shown: Value =
        serde_json::from_str(&emberline(&nats, &["jobs", "show", first.id.as_str()]).await.unwrap()).unwrap();
    assert_eq!(shown["job"], serde_json::to_value(&first).unwrap());
    assert_eq!(
        (&shown["attempts"], &shown["queued_on"]),
        (&3.into(), &"emberline.jobs.simulated-echo.0".into())
    );

    emberline(&nats, &["jobs", "drop", first.id.as_str()]).await.unwrap();
    assert_eq!(given_up(&nats).await, [second.id.to_string()]);
    for verb in ["show", "replay", "drop"] {
        let (_, unknown) = refused(&nats, &["jobs", verb, first.id.as_str()]).await.unwrap();
        assert!(unknown.contains(first.id.as_str()) && unknown.contains("emberline jobs list"), "{unknown}");
        let (_, invalid) = refused(&nats, &["jobs", verb, "no-id"]).await.unwrap();
        assert!(invalid.contains("32 lower-case hexadecimal digits"), "{invalid}");
    }
}

#[tokio::test]
async fn a_job_runs_again_and_is_no_longer_given_up() {
    let nats = nats().await;
    let _worker = worker(&nats, "0");
    let job = job(1, 9);
    give_up(&nats, &job).await;

    let kept = emberline(&nats, &["jobs", "replay", job.id.as_str(), "--keep"]).await.unwrap();
    assert_eq!(kept, "The quick ember glows along the line. The");
    assert_eq!(given_up(&nats).await, [job.id.to_string()]);
    let again = emberline(&nats, &["jobs", "replay", job.id.as_str()]).await.unwrap();
    assert_eq!(again, kept);
    assert_eq!(given_up(&nats).await, Vec::<String>::new());

    let several = Job { request: GenerationRequest { n: 2, ..job.request.clone() }, ..job };
    let several = Job { id: JobId::from_random(2), ..several };
    give_up(&nats, &several).await;
    let both = emberline(&nats, &["jobs", "replay", several.id.as_str()]).await.unwrap();
    assert_eq!(both.lines().count(), 2, "{both}");
    assert!(both.starts_with("[0] The quick") && both.contains("\n[1]  quick ember"), "{both}");
}

#[tokio::test]
async fn what_fails_again_and_what_cannot_be_read_stays() {
    let nats = nats().await;
    let _worker = worker(&nats, "0");
    let long = vec![Message::new(Role::User, "word ".repeat(40_000))];
    let long = Job { request: GenerationRequest { messages: long, ..job(1, 1).request }, ..job(1, 1) };
    give_up(&nats, &long).await;
    let (_, failed) = refused(&nats, &["jobs", "replay", long.id.as_str()]).await.unwrap();
    assert!(failed.contains("the job failed again") && failed.contains("(400)"), "{failed}");

    let hashed = JobId::from_random(3);
    let payload = Prompts::Hash.of_job(&Job { id: hashed.clone(), ..job(3, 1) });
    put(&nats, &hashed, MODEL, payload, &[(PROMPTS_HEADER, Prompts::Hash.as_str())]).await;
    let (_, kept) = refused(&nats, &["jobs", "replay", hashed.as_str()]).await.unwrap();
    assert!(kept.contains("not kept (hash)") && kept.contains("--dead-letter-prompts"), "{kept}");
    let shown = emberline(&nats, &["jobs", "show", hashed.as_str()]).await.unwrap();
    assert!(shown.contains("\"prompts\": \"hash\"") && !shown.contains("two words"), "{shown}");
    emberline(&nats, &["jobs", "drop", hashed.as_str()]).await.unwrap();

    let newer = JobId::from_random(2);
    put(&nats, &newer, MODEL, br#"{"v":99,"what":"ever"}"#.to_vec(), &[]).await;
    let (_, unreadable) = refused(&nats, &["jobs", "replay", newer.as_str()]).await.unwrap();
    assert!(unreadable.contains("version 99") && unreadable.contains("upgrade emberline"), "{unreadable}");
    let shown = emberline(&nats, &["jobs", "show", newer.as_str()]).await.unwrap();
    assert!(shown.contains("\"what\": \"ever\""), "{shown}");
    assert_eq!(given_up(&nats).await, [long.id.to_string(), newer.to_string()]);
}

#[tokio::test]
async fn an_interrupt_cancels_the_job_and_it_stays_given_up() {
    let nats = nats().await;
    let _worker = worker(&nats, "50");
    let job = job(1, 30_000);
    give_up(&nats, &job).await;
    let mut replay = command(&nats, &["jobs", "replay", job.id.as_str()]).unwrap();
    let mut replay = replay.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut text = [0; 3];
    replay.stdout.as_mut().unwrap().read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"The");

    let pid = Pid::from_raw(replay.id().unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let output = tokio::time::timeout(TIMEOUT, replay.wait_with_output()).await.unwrap().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && log.contains("cancelled"), "{log}");
    assert_eq!(given_up(&nats).await, [job.id.to_string()]);
    // The worker also ends a job whose listener has gone silent. So the job is kept alive from here: only the
    // cancel can end it, which generates for ten minutes otherwise.
    let id = log.lines().find_map(|line| line.strip_prefix("queued again as job ")).unwrap();
    let control = subject::control(&JobId::try_from(id.to_owned()).unwrap());
    let alive = serde_json::to_vec(&Control::Alive).unwrap();
    let client = admin_client(&nats).await.unwrap();
    let idle = async {
        while !emberline(&nats, &["jobs", "list"]).await.unwrap().contains("simulated-echo  0        0") {
            client.publish(control.clone(), alive.clone().into()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, idle).await.unwrap();
}
