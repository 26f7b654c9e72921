//! What deploy/nats.conf lets each user do, and nothing more: by the tables of `emberline_protocol::permissions`,
//! tried on a real nats-server.

use std::collections::BTreeSet;
use std::path::PathBuf;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{self, AckKind};
use async_nats::{Client, ConnectOptions};
use data_encoding::BASE64URL_NOPAD;
use emberline_protocol::jetstream_domain::JetStreamDomain;
use emberline_protocol::lane::Lane;
use emberline_protocol::permissions::{Identity, Permissions, Role, User, default_users};
use emberline_protocol::streams::{Consumer, Layout, streams};
use emberline_protocol::subject::{self, JOBS_STREAM, JobId};
use emberline_protocol::tokens::TokensRequest;
use emberline_test_kit::nats::{ADMIN_SEED, CONFIG, FUNCTION_SEED, NatsServer, WORKER_SEED, set_up};
use futures::StreamExt;
use nkeys::{KeyPair, KeyPairType};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::support::{MODEL, Relay, Worker, job, text_of, within};

/// A worker pool of one model.
fn pool(name: &str, model: &str) -> User {
    let role = Role::WorkerPool(vec![model.to_owned()]);
    let identity = Identity::Nkey(key(name).public_key());
    User { name: name.to_owned(), identity, role, domain: JetStreamDomain::default() }
}

/// deploy/nats.conf with more users.
fn config_with(users: &[User]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nats.conf");
    let config = std::fs::read_to_string(CONFIG).unwrap();
    let (before, after) = config.rsplit_once("\n  ]\n").unwrap();
    let entries: Vec<String> = users.iter().map(ToString::to_string).collect();
    std::fs::write(&path, format!("{before}\n{}\n  ]\n{after}", entries.join("\n"))).unwrap();
    (folder, path)
}

/// The NKEY of a user; a pool's is made of its name.
fn key(user: &str) -> KeyPair {
    let seed = match user {
        "function" => FUNCTION_SEED,
        "worker" => WORKER_SEED,
        "admin" => ADMIN_SEED,
        pool => {
            let mut bytes = [0; 32];
            bytes[..pool.len()].copy_from_slice(pool.as_bytes());
            return KeyPair::new_from_raw(KeyPairType::User, bytes).unwrap();
        }
    };
    KeyPair::from_seed(seed).unwrap()
}

/// The verbs of JetStream's API that have a stream's name at their end.
const STREAM_VERBS: [&str; 17] = [
    "STREAM.CREATE",
    "STREAM.UPDATE",
    "STREAM.INFO",
    "STREAM.DELETE",
    "STREAM.PURGE",
    "STREAM.SNAPSHOT",
    "STREAM.RESTORE",
    "STREAM.MSG.GET",
    "STREAM.MSG.DELETE",
    "STREAM.PEER.REMOVE",
    "STREAM.LEADER.STEPDOWN",
    "DIRECT.GET",
    "CONSUMER.CREATE",
    "CONSUMER.LIST",
    "CONSUMER.NAMES",
    "CONSUMER.LEADER.STEPDOWN",
    "CONSUMER.DURABLE.CREATE",
];

/// Subjects of every kind that any role may publish to, and of those that none may.
fn publications(all: &[Permissions]) -> BTreeSet<String> {
    let granted = all.iter().flat_map(|one| &one.publish).flat_map(|grant| &grant.subjects);
    let mut subjects: BTreeSet<String> = granted.map(|subject| concrete(subject)).collect();
    for stream in streams(&Layout::default()) {
        let name = stream.name;
        subjects.extend(stream.subjects.iter().map(|subject| concrete(subject)));
        subjects.extend(STREAM_VERBS.map(|verb| format!("$JS.API.{verb}.{name}")));
        let by_subject = stream.subjects.iter().map(|s| format!("$JS.API.DIRECT.GET.{name}.{}", concrete(s)));
        subjects.extend(by_subject);
        for verb in ["CREATE", "INFO", "DELETE", "MSG.NEXT", "PAUSE", "UNPIN"] {
            subjects.extend(
                ["x", "worker-a-0", "worker-b-0"].map(|c| format!("$JS.API.CONSUMER.{verb}.{name}.{c}")),
            );
        }
        subjects.extend(["x", "worker-a-0", "worker-b-0"].map(|c| format!("$JS.ACK.{name}.{c}.1.1.1.1.1")));
    }
    for (consumer, model) in [("worker-a-0", "b"), ("worker-b-0", "a"), ("x", "a")] {
        subjects.insert(format!("$JS.API.CONSUMER.CREATE.JOBS.{consumer}.emberline.jobs.{model}.0"));
    }
    subjects
        .extend(["function", "worker", "admin", "pool-a", "pool-b"].map(|user| format!("_INBOX_{user}.x")));
    for other in [
        "elsewhere",
        "$JS.API.INFO",
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.CREATE.OTHER",
        "$SYS.REQ.SERVER.PING",
    ] {
        subjects.insert(other.to_owned());
    }
    subjects
}

/// The same for subscriptions, which may have wildcards.
fn subscriptions(all: &[Permissions]) -> BTreeSet<String> {
    let granted = all.iter().flat_map(|one| one.subscribe.iter().chain(&one.publish));
    let granted = granted.flat_map(|grant| &grant.subjects);
    let mut subjects: BTreeSet<String> = granted.flat_map(|s| [s.clone(), concrete(s)]).collect();
    subjects
        .extend([">", "*", "emberline.>", "$JS.>", "$KV.>", "_INBOX_*.>", "elsewhere"].map(str::to_owned));
    subjects
}

/// A subject that a pattern covers.
fn concrete(pattern: &str) -> String {
    let token = |token| {
        if token == ">" {
            "x.y"
        } else if token == "*" {
            "x"
        } else {
            token
        }
    };
    pattern.split('.').map(token).collect::<Vec<_>>().join(".")
}

/// Sends commands of NATS's protocol as a user; the subjects for which it has no permission.
async fn violations(
    nats: &NatsServer,
    user: &str,
    commands: impl Iterator<Item = String>,
) -> BTreeSet<String> {
    let mut stream = BufReader::new(TcpStream::connect(nats.address()).await.unwrap());
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    let info: Value = serde_json::from_str(line.strip_prefix("INFO ").unwrap()).unwrap();
    let (key, nonce) = (key(user), info["nonce"].as_str().unwrap());
    let signature = BASE64URL_NOPAD.encode(&key.sign(nonce.as_bytes()).unwrap());
    let public = key.public_key();
    let connect = format!(r#"CONNECT {{"verbose":false,"nkey":"{public}","sig":"{signature}"}}"#);
    let commands: String = commands.map(|command| format!("{command}\r\n")).collect();
    stream.write_all(format!("{connect}\r\n{commands}PING\r\n").as_bytes()).await.unwrap();
    let mut refused = BTreeSet::new();
    loop {
        line.clear();
        within("nats-server's answer", stream.read_line(&mut line)).await.unwrap();
        match line.trim_end() {
            "PONG" => return refused,
            "PING" => stream.write_all(b"PONG\r\n").await.unwrap(),
            error => {
                assert!(error.starts_with("-ERR 'Permissions Violation"), "{user}: {error}");
                refused.insert(error.split('"').nth(1).unwrap().to_owned());
            }
        }
    }
}

#[tokio::test]
async fn each_user_may_do_what_the_table_says_and_nothing_else() {
    let pools = [pool("pool-a", "a"), pool("pool-b", "b")];
    let (_folder, config) = config_with(&pools);
    let nats = NatsServer::start_with(&config).await.unwrap();
    let users: Vec<User> = default_users().into_iter().chain(pools).collect();
    let tables: Vec<Permissions> = users.iter().map(|user| user.role.permissions(&user.name)).collect();
    let (publications, subscriptions) = (publications(&tables), subscriptions(&tables));
    assert!(publications.len() > 300, "{publications:#?}");

    for (User { name, .. }, table) in users.iter().zip(&tables) {
        // No request of JetStream's API is like this, so what is permitted does nothing.
        let commands = publications.iter().map(|subject| format!("PUB {subject} 1\r\n?"));
        let found = violations(&nats, name, commands).await;
        let expected: BTreeSet<String> =
            publications.iter().filter(|subject| !table.may_publish(subject)).cloned().collect();
        assert_eq!(found, expected, "publications of {name}");

        let commands = subscriptions.iter().zip(1..).map(|(subject, id)| format!("SUB {subject} {id}"));
        let found = violations(&nats, name, commands).await;
        let expected: BTreeSet<String> =
            subscriptions.iter().filter(|subject| !table.may_subscribe(subject)).cloned().collect();
        assert_eq!(found, expected, "subscriptions of {name}");
    }
}

#[tokio::test]
async fn what_each_part_does_is_within_its_rights() {
    let user = pool("pool", MODEL);
    let (_folder, config) = config_with(std::slice::from_ref(&user));
    let nats = NatsServer::start_with(&config).await.unwrap();
    set_up(&nats, &Layout::default()).await.unwrap();
    let (relay, address) = (Relay::new(&nats).await, nats.address());
    for (user, number) in [("worker", 1), ("pool", 2)] {
        let args = ["--nats-user", user, "--nats", address.as_str(), "--engine", "simulated"];
        let mut worker = Worker::start_with(&args, &key(user).seed().unwrap());
        relay.wait_for_load(&[0]).await;
        let events = relay.send(&job(number, 3)).await.rest().await;
        assert_eq!(text_of(&events, 1), "The quick ember");
        crate::tokens::ask(&relay, MODEL, &TokensRequest::Detokenize { tokens: vec![1] }).await;
        worker.signal("TERM");
        assert!(worker.exit().await.success());
        assert!(!worker.log().to_lowercase().contains("violation"), "{}", worker.log());
    }
    assert!(!nats.log().to_lowercase().contains("violation"), "{}", nats.log());
}

async fn client(nats: &NatsServer, user: &str) -> Client {
    ConnectOptions::with_nkey(key(user).seed().unwrap())
        .custom_inbox_prefix(subject::inbox_prefix(user))
        .connect(nats.address())
        .await
        .unwrap()
}

/// NATS checks the consumer's name in an acknowledgement, and the server which of its jobs the consumer gave out.
#[tokio::test]
async fn a_pool_cannot_acknowledge_another_pools_job() {
    let (_folder, config) = config_with(&[pool("pool-a", "a"), pool("pool-b", "b")]);
    let nats = NatsServer::start_with(&config).await.unwrap();
    set_up(&nats, &Layout::default()).await.unwrap();
    let (a, b) = (client(&nats, "pool-a").await, client(&nats, "pool-b").await);
    let consumer = async |client: &Client, model: &str| -> PullConsumer {
        let wanted = Consumer::of_jobs(model, Lane::default());
        let config: jetstream::consumer::pull::Config = serde_json::from_value(wanted.to_json()).unwrap();
        jetstream::new(client.clone()).create_consumer_on_stream(config, JOBS_STREAM).await.unwrap()
    };
    let (_, of_b) = (consumer(&a, "a").await, consumer(&b, "b").await);
    let function = jetstream::new(nats.function_client().await.unwrap());
    for model in ["a", "b"] {
        let stored = function.publish(subject::jobs(model, Lane::default()), "{}".into()).await.unwrap();
        stored.await.unwrap();
    }
    let mut taken = of_b.batch().max_messages(1).messages().await.unwrap();
    let theirs = within("the job", taken.next()).await.unwrap().unwrap();
    let sequence = theirs.info().unwrap().stream_sequence;

    let forged = format!("$JS.ACK.{JOBS_STREAM}.worker-a-0.1.{sequence}.1.1.0");
    // The answer comes when the acknowledgement was dealt with.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), a.request(forged, "+ACK".into())).await;
    let queued = async || {
        let jobs = jetstream::new(b.clone()).get_stream(JOBS_STREAM).await.unwrap();
        jobs.cached_info().state.messages
    };
    assert_eq!(queued().await, 2);
    theirs.double_ack_with(AckKind::Ack).await.unwrap();
    assert_eq!(queued().await, 1);
}

/// A batch takes any filter, so the function has the form that names the subject.
#[tokio::test]
async fn the_function_reads_a_stored_request_by_its_id_and_lists_none() {
    let nats = NatsServer::start().await.unwrap();
    let function = nats.function_client().await.unwrap();
    let jetstream = jetstream::new(function.clone());
    let (one, two) = (JobId::from_random(1), JobId::from_random(2));
    for id in [&one, &two] {
        let stored = jetstream.publish(subject::request(id), id.to_string().into()).await.unwrap();
        stored.await.unwrap();
    }
    let get = format!("$JS.API.DIRECT.GET.{}", subject::REQUESTS_STREAM);
    let found = function.request(format!("{get}.{}", subject::request(&one)), "".into()).await.unwrap();
    assert_eq!(found.payload, one.as_str());
    let commands = [format!("PUB {get} _INBOX_function.x 2\r\n{{}}")];
    assert_eq!(violations(&nats, "function", commands.into_iter()).await, BTreeSet::from([get]));
}

/// A message with a rollup header would remove all that came before it. Only workers' logs take one.
#[tokio::test]
async fn no_header_wipes_a_stream() {
    let nats = NatsServer::start().await.unwrap();
    let id = JobId::from_random(1);
    let (function, worker) = (nats.function_client().await.unwrap(), nats.worker_client().await.unwrap());
    let writes = [
        (&function, subject::request(&id)),
        (&function, subject::withdrawn(&id)),
        (&worker, format!("$KV.{}.x", subject::WORKERS_BUCKET)),
        (&worker, subject::dead("m")),
    ];
    for (client, subject) in writes {
        let jetstream = jetstream::new(client.clone());
        for scope in ["all", "sub"] {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Rollup", scope);
            let sent = jetstream.publish_with_headers(subject.clone(), headers, "x".into()).await.unwrap();
            let refused = sent.await.unwrap_err().to_string();
            assert!(refused.contains("rollup"), "{subject} {scope}: {refused}");
        }
    }
}

/// Where permissions end, as docs/design/nats.md says: nobody checks where a request wants its answer.
#[tokio::test]
async fn an_answer_of_jetstream_goes_where_the_request_says() {
    let nats = NatsServer::start().await.unwrap();
    let worker = nats.worker_client().await.unwrap();
    let (event, key) = (subject::events(&JobId::from_random(1)), subject::key(&[1; 32]));
    let stored = jetstream::new(worker.clone()).publish(event.clone(), "forged".into()).await.unwrap();
    stored.await.unwrap();
    let refused = [format!("PUB {key} 6\r\nforged")];
    assert_eq!(violations(&nats, "worker", refused.into_iter()).await, BTreeSet::from([key.clone()]));

    let get = format!("$JS.API.DIRECT.GET.{}", subject::EVENTS_STREAM);
    let query = serde_json::json!({"last_by_subj": event}).to_string();
    worker.publish_with_reply(get, key.clone(), query.into()).await.unwrap();
    worker.flush().await.unwrap();
    let admin = jetstream::new(nats.admin_client().await.unwrap());
    let keys = admin.get_stream(subject::KEYS_STREAM).await.unwrap();
    within("the forged entry", async {
        while keys.get_info().await.unwrap().state.messages == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
