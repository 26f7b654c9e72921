//! `emberline nats setup` on a real nats-server and on a cluster of three: what it prints, what it changes, and
//! what it leaves as it is.

#![allow(clippy::unwrap_used, reason = "a step of a test that fails ends the test")]

use std::path::Path;
use std::time::Duration;

use async_nats::ConnectOptions;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, message::PublishMessage};
use emberline_protocol::lane::Lane;
use emberline_protocol::streams::{Layout, Stream, streams};
use emberline_protocol::subject::{self, JOBS_STREAM};
use emberline_test_kit::cli::{command, emberline, refused};
use emberline_test_kit::cluster::NatsCluster;
use emberline_test_kit::nats::{ADMIN_SEED, CONFIG, Nats, NatsServer, admin_client, public_key};
use serde_json::Value;
use tokio::process::Command;

const SETUP: [&str; 2] = ["nats", "setup"];

/// Runs `emberline nats setup` and returns the lines that it prints.
async fn setup(nats: &impl Nats, args: &[&str]) -> Vec<String> {
    let output = emberline(nats, &[&SETUP, args].concat()).await.unwrap();
    output.lines().map(str::to_owned).collect()
}

/// The configuration of a stream; `None` if it does not exist.
async fn stream(nats: &impl Nats, name: &str) -> Option<Config> {
    let jetstream = jetstream::new(admin_client(nats).await.unwrap());
    jetstream.get_stream(name).await.ok().map(|stream| stream.cached_info().config.clone())
}

/// Creates a stream with somebody else's configuration.
async fn create(nats: &impl Nats, config: Config) {
    let jetstream = jetstream::new(admin_client(nats).await.unwrap());
    jetstream.create_stream(config).await.unwrap();
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_a_second_run_has_nothing_to_do() {
    let nats = NatsServer::start_empty().await.unwrap();
    let planned = setup(&nats, &["--dry-run", "--model", "some.model"]).await;
    assert_eq!(planned.last().unwrap(), "15 to change; nothing was changed");
    assert!(planned.iter().any(|line| line == "create     stream DEAD: file, 1 replica, 256 MiB, 7 d"));
    assert!(planned.iter().any(|line| line == "create     consumer worker-some=2Emodel-3 of JOBS"));
    assert!(stream(&nats, JOBS_STREAM).await.is_none());

    // Without a terminal it can't ask for confirmation.
    let (plan, complaint) = refused(&nats, &[&SETUP[..], &["--model", "some.model"]].concat()).await.unwrap();
    assert!(plan.contains("create     stream JOBS") && complaint.contains("--yes"), "{complaint}");
    assert!(stream(&nats, JOBS_STREAM).await.is_none());

    let done = setup(&nats, &["--yes", "--model", "some.model"]).await;
    assert_eq!(done.iter().filter(|line| line.starts_with("created ")).count(), 15, "{done:#?}");
    for wanted in streams(&Layout::default()) {
        let found = stream(&nats, wanted.name).await.unwrap();
        assert!(
            wanted.incompatible_fields(&serde_json::to_value(found).unwrap()).is_empty(),
            "{}",
            wanted.name
        );
    }

    let again = setup(&nats, &["--yes", "--model", "some.model"]).await;
    assert_eq!(again.last().unwrap(), "nothing to change");
    assert!(again.iter().rev().skip(1).all(|line| line.starts_with("unchanged  ")), "{again:#?}");
}

#[tokio::test]
async fn requested_settings_change_and_an_operators_own_settings_stay() {
    let nats = NatsServer::start_empty().await.unwrap();
    setup(&nats, &["--yes"]).await;
    let jetstream = jetstream::new(admin_client(&nats).await.unwrap());
    let own = Config {
        description: Some("ours".to_owned()),
        max_bytes: 99 << 20,
        ..stream(&nats, subject::USAGE_STREAM).await.unwrap()
    };
    jetstream.update_stream(own).await.unwrap();

    let lines = setup(&nats, &["--yes", "--queue-jobs", "50", "--events-bytes", "1GiB"]).await;
    let changed: Vec<&String> = lines.iter().filter(|line| !line.starts_with("unchanged")).collect();
    assert_eq!(
        changed,
        [
            "update     stream JOBS: max_msgs 10000 -> 500, max_msgs_per_subject 1000 -> 50",
            "update     stream EVENTS: max_bytes 256 MiB -> 1 GiB",
            "updated stream JOBS",
            "updated stream EVENTS",
        ]
    );
    assert_eq!(stream(&nats, JOBS_STREAM).await.unwrap().max_messages_per_subject, 50);
    assert_eq!(stream(&nats, subject::EVENTS_STREAM).await.unwrap().max_bytes, 1 << 30);
    let usage = stream(&nats, subject::USAGE_STREAM).await.unwrap();
    assert_eq!((usage.max_bytes, usage.description.as_deref()), (99 << 20, Some("ours")));
}

#[tokio::test]
async fn streams_of_an_older_shape_are_brought_up_to_date() {
    let nats = NatsServer::start_empty().await.unwrap();
    let jobs = Config {
        name: JOBS_STREAM.to_owned(),
        subjects: vec!["emberline.jobs.*".to_owned()],
        retention: RetentionPolicy::WorkQueue,
        ..Default::default()
    };
    create(&nats, jobs).await;
    let events = Config {
        name: subject::EVENTS_STREAM.to_owned(),
        subjects: vec![subject::EVENTS_SUBJECTS.to_owned()],
        storage: StorageType::Memory,
        max_age: Duration::from_secs(600),
        allow_direct: true,
        ..Default::default()
    };
    create(&nats, events).await;

    let lines = setup(&nats, &["--yes"]).await;
    assert!(
        lines[0].starts_with("update     stream JOBS: subjects emberline.jobs.* -> emberline.jobs.*.*"),
        "{}",
        lines[0]
    );
    assert_eq!(
        lines[1],
        "update     stream EVENTS: allow_rollup_hdrs false -> true, deny_delete false -> true, \
         allow_msg_ttl false -> true, max_age 10 min -> 25 h"
    );
    let again = setup(&nats, &["--yes"]).await;
    assert_eq!(again.last().unwrap(), "nothing to change", "{again:#?}");
}

/// As they were made before nobody could wipe them: buckets that take rollups, nothing denied but deleting single
/// entries, logs, heartbeats and minutes in memory, and usage events that make room for new ones.
fn of_the_release_before(wanted: &Stream) -> Config {
    let is_bucket = wanted.name.starts_with("KV_");
    let mut config: Config = serde_json::from_value(wanted.to_json()).unwrap();
    config.allow_rollup = is_bucket;
    config.deny_delete = is_bucket;
    config.deny_purge = false;
    if wanted.name == subject::USAGE_STREAM {
        config.discard = DiscardPolicy::Old;
    }
    config.storage = if wanted.volatile { StorageType::Memory } else { StorageType::File };
    config
}

#[tokio::test]
async fn what_the_release_before_has_made_is_kept_and_can_no_longer_be_wiped() {
    let nats = NatsServer::start_empty().await.unwrap();
    for wanted in streams(&Layout::default()) {
        if wanted.name == subject::WITHDRAWN_STREAM {
            continue;
        }
        create(&nats, of_the_release_before(&wanted)).await;
    }
    let function = jetstream::new(nats.function_client().await.unwrap());
    let record =
        function.publish("$KV.requests.00000000000000000000000000000001", "kept".into()).await.unwrap();
    record.await.unwrap();
    let worker = jetstream::new(nats.worker_client().await.unwrap());
    worker.publish("emberline.usage.0123456789abcdef", "{}".into()).await.unwrap().await.unwrap();

    let lines = setup(&nats, &["--yes"]).await;
    assert_eq!(lines.iter().filter(|line| line.starts_with("updated ")).count(), 10, "{lines:#?}");
    let usage = lines.iter().find(|line| line.starts_with("update     stream USAGE: ")).unwrap();
    assert!(usage.contains("discard old -> new"), "{usage}");
    for wanted in streams(&Layout::default()) {
        let found = stream(&nats, wanted.name).await.unwrap();
        let denies = (found.allow_rollup, found.deny_delete, found.deny_purge);
        let expected = (wanted.allow_rollup_hdrs, wanted.deny_delete, wanted.deny_purge);
        assert_eq!(denies, expected, "{}", wanted.name);
    }
    let admin = jetstream::new(admin_client(&nats).await.unwrap());
    for name in [subject::REQUESTS_STREAM, subject::USAGE_STREAM] {
        assert_eq!(admin.get_stream(name).await.unwrap().cached_info().state.messages, 1, "{name}");
    }
    let again = setup(&nats, &["--yes"]).await;
    assert_eq!(again.last().unwrap(), "nothing to change", "{again:#?}");
}

/// nats-server with deploy/nats.conf and one more entry.
async fn server_with(entry: &str) -> NatsServer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nats.conf");
    let config = std::fs::read_to_string(CONFIG).unwrap();
    let (before, after) = config.rsplit_once("\n  ]\n").unwrap();
    std::fs::write(&path, format!("{before}\n{entry}\n  ]\n{after}")).unwrap();
    NatsServer::start_with(&path).await.unwrap()
}

/// The printed entry is put where it says, and the printed seed or password opens it.
#[tokio::test]
async fn a_new_user_works_as_it_is_printed() {
    let nats = NatsServer::start_empty().await.unwrap();
    for (args, name) in [
        (&["worker", "--models", "a,b.c"][..], "worker-a-b=2Ec"),
        (&["worker", "--name", "pool", "--password"], "pool"),
        (&["function", "--name", "edge"], "edge"),
        (&["function", "--name", "old", "--password"], "old"),
        (&["admin", "--name", "ops"], "ops"),
    ] {
        let by_password = args.contains(&"--password");
        let args = [&["nats", "user", "add"], args].concat();
        let printed = command(&nats, &args).unwrap().output().await.unwrap();
        let (entry, said) =
            (String::from_utf8(printed.stdout).unwrap(), String::from_utf8(printed.stderr).unwrap());
        let is_secret = |line: &&str| line.len() == if by_password { 44 } else { 58 } && !line.contains(' ');
        let secret = said.lines().find(is_secret).unwrap();
        assert!(!entry.contains(secret) && said.contains("nats-server --signal reload"), "{said}");
        assert!(said.contains(&format!("={name} and ")), "{said}");

        let nats = server_with(&entry).await;
        let connect = |secret: &str| {
            let options = if by_password {
                ConnectOptions::with_user_and_password(name.to_owned(), secret.to_owned())
            } else {
                ConnectOptions::with_nkey(secret.to_owned())
            };
            options.connect(nats.address())
        };
        connect(secret).await.unwrap();
        let wrong = if by_password { "wrong".to_owned() } else { nkeys::KeyPair::new_user().seed().unwrap() };
        assert!(connect(&wrong).await.is_err());
    }
    let (_, complaint) = refused(&nats, &["nats", "user", "add", "admin", "--models", "a"]).await.unwrap();
    assert!(complaint.contains("--models is for workers"), "{complaint}");
}

/// The lines are an environment in which nats-server starts with deploy/nats.conf, and each seed opens it.
#[tokio::test]
async fn the_printed_keys_are_those_of_the_configuration() {
    let nats = NatsServer::start_empty().await.unwrap();
    let printed = emberline(&nats, &["nats", "user", "keys"]).await.unwrap();
    let variables: Vec<(&str, &str)> = printed.lines().filter_map(|line| line.split_once('=')).collect();
    assert_eq!(variables.len(), 6, "{printed}");
    for name in ["FUNCTION", "WORKER", "ADMIN"] {
        let value = |variable: String| variables.iter().find(|(name, _)| *name == variable).unwrap().1;
        let public = value(format!("EMBERLINE_{name}_NKEY"));
        let seed = value(format!("EMBERLINE_{name}_NKEY_SEED"));
        assert_eq!(public_key(seed).unwrap(), public);
        let config = std::fs::read_to_string(CONFIG).unwrap();
        assert!(config.contains(&format!("nkey: $EMBERLINE_{name}_NKEY\n")));
    }
}

#[tokio::test]
async fn commands_reach_a_server_by_tls_and_say_what_is_wrong_with_it() {
    let nats = NatsServer::start_with_tls().await.unwrap();
    let address = nats.address();
    let port = address.rsplit_once(':').unwrap().1;
    let ca = nats.ca().unwrap();
    let run = async |host: &str, ca: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_emberline"));
        command.args(["nats", "setup", "--dry-run", "--nats", &format!("tls://{host}:{port}"), "--nats-ca"]);
        let command = command.arg(ca).env("EMBERLINE_ADMIN_NKEY_SEED", ADMIN_SEED);
        let output = command.output().await.unwrap();
        let (plan, said) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        if output.status.success() { Ok(plan) } else { Err(said) }
    };
    let plan = run("localhost", &ca).await.unwrap();
    assert!(plan.contains("stream JOBS"), "{plan}");
    let other_name = run("127.0.0.1", &ca).await.unwrap_err();
    assert!(other_name.contains("not for 127.0.0.1. Use a name that is in it"), "{other_name}");
    let no_ca = run("localhost", Path::new("/dev/null")).await.unwrap_err();
    assert!(no_ca.contains("there is no certificate in it"), "{no_ca}");
}

#[tokio::test]
async fn what_cannot_be_changed_is_reported_and_nothing_is_lost_unless_requested() {
    let nats = NatsServer::start_empty().await.unwrap();
    setup(&nats, &["--yes"]).await;
    let worker = jetstream::new(nats.worker_client().await.unwrap());
    let event = worker.publish("emberline.events.x", "{}".into()).await.unwrap();
    event.await.unwrap();

    let memory = [&SETUP[..], &["--yes", "--storage", "memory", "--queue-jobs", "7"]].concat();
    let (plan, complaint) = refused(&nats, &memory).await.unwrap();
    let blocked = "blocked    stream EVENTS: storage file -> memory can't be changed in place; --recreate removes and recreates it: its 1 messages are lost";
    assert!(plan.contains(blocked), "{plan}");
    assert!(complaint.contains("nothing was changed"), "{complaint}");
    assert_ne!(stream(&nats, JOBS_STREAM).await.unwrap().max_messages_per_subject, 7);

    let done = emberline(&nats, &[&memory[..], &["--recreate"]].concat()).await.unwrap();
    assert!(done.contains("recreated stream EVENTS") && done.contains("updated stream JOBS"), "{done}");
    for volatile in ["EVENTS", "KV_workers", "LIMITS"] {
        assert_eq!(stream(&nats, volatile).await.unwrap().storage, StorageType::Memory);
    }
}

#[tokio::test]
async fn a_single_server_refuses_three_replicas_and_it_is_told() {
    let nats = NatsServer::start_empty().await.unwrap();
    let (_, complaint) = refused(&nats, &["nats", "setup", "--yes", "--replicas", "3"]).await.unwrap();
    for word in ["stream JOBS was not created", "cluster of at least 3 servers", "non-clustered"] {
        assert!(complaint.contains(word), "{complaint}");
    }
    assert!(stream(&nats, JOBS_STREAM).await.is_none());
}

#[tokio::test]
async fn a_cluster_gets_its_replicas_wherever_the_leaders_are() {
    let nats = NatsCluster::start().await.unwrap();
    setup(&nats, &["--yes", "--model", "m"]).await;
    let lines =
        setup(&nats, &["--yes", "--model", "m", "--replicas", "3", "--storage", "file", "--recreate"]).await;
    assert!(lines.iter().any(|line| line == "update     stream JOBS: num_replicas 1 -> 3"), "{lines:#?}");
    let replicated = lines.iter().filter(|line| line.ends_with(" has its 3 replicas")).count();
    assert_eq!(replicated, streams(&Layout::default()).len(), "{lines:#?}");
    // The queue's consumers go with it, and what is new from now on has as many replicas.
    let jetstream = jetstream::new(admin_client(&nats).await.unwrap());
    let jobs = jetstream.get_stream(JOBS_STREAM).await.unwrap();
    let followed = async {
        while jobs.consumer_info("worker-m-0").await.unwrap().cluster.unwrap().replicas.len() != 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), followed).await.unwrap();
    let again = setup(&nats, &["--yes", "--model", "m"]).await;
    assert_eq!(again.last().unwrap(), "nothing to change", "{again:#?}");
}

/// KEDA's scaler sums up the waiting and running messages of the consumers that the manifest names.
#[tokio::test]
async fn the_manifest_scales_by_waiting_and_running_jobs() {
    let nats = NatsServer::start_empty().await.unwrap();
    let model = "qwen3-8b";
    setup(&nats, &["--yes", "--model", model]).await;
    let function = jetstream::new(nats.function_client().await.unwrap());
    for (id, lane) in [("a", Lane::ALL[0]), ("b", Lane::ALL[0]), ("c", Lane::ALL[2])] {
        let message = PublishMessage::build().payload("{}".into()).message_id(id);
        function.send_publish(subject::jobs(model, lane), message).await.unwrap().await.unwrap();
    }
    let worker = jetstream::new(nats.worker_client().await.unwrap());
    let consumer: async_nats::jetstream::consumer::PullConsumer =
        worker.get_consumer_from_stream("worker-qwen3-8b-0", JOBS_STREAM).await.unwrap();
    let mut taken = consumer.batch().max_messages(1).messages().await.unwrap();
    let _taken = futures::StreamExt::next(&mut taken).await.unwrap().unwrap();

    let seen = nats.monitoring("jsz?acc=$G&consumers=true&config=true").await.unwrap();
    let stream = find(&seen["account_details"], "$G", "stream_detail", "JOBS");
    let lag = |consumer: &str| {
        let consumers = stream["consumer_detail"].as_array().unwrap();
        let consumer = consumers.iter().find(|found| found["name"] == consumer).unwrap();
        (consumer["num_pending"].as_u64().unwrap(), consumer["num_ack_pending"].as_u64().unwrap())
    };
    let manifest = include_str!("../../deploy/kubernetes/gpu.yaml");
    let consumers = manifest.lines().filter_map(|line| line.trim().strip_prefix("consumer: "));
    let lags: Vec<_> = consumers.map(|name| lag(name.trim_matches('"'))).collect();
    assert_eq!(lags, [(1, 1), (0, 0), (1, 0), (0, 0)]);
}

/// The entry of a stream in nats-server's list of accounts.
fn find<'a>(accounts: &'a Value, account: &str, streams: &str, stream: &str) -> &'a Value {
    let named = |list: &'a Value, name: &str| -> &'a Value {
        list.as_array().unwrap().iter().find(|entry| entry["name"] == name).unwrap()
    };
    named(&named(accounts, account)[streams], stream)
}
