//! Faults of what is in NATS: permissions, streams, consumers, room, clocks, distance and workers.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::Config;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::heartbeat::{Heartbeat, ModelState, ModelStatus};
use emberline_protocol::streams::{Layout, streams};
use emberline_protocol::subject;
use emberline_test_kit::cli::emberline;
use emberline_test_kit::cluster::NatsCluster;
use emberline_test_kit::nats::{Nats, NatsServer, admin_client, set_up};
use emberline_test_kit::stack::Options;
use emberline_test_kit::wait;
use emberline_test_kit::workers::Workers;
use futures::StreamExt as _;

use crate::support::{Doctor, Server, config, start, start_with_unlimited_user, unlimited};

/// How many messages each stream has taken so far.
async fn stored(nats: &impl Nats) -> Vec<(&'static str, u64)> {
    let jetstream = jetstream::new(admin_client(nats).await.unwrap());
    let mut stored = Vec::new();
    for stream in streams(&Layout::default()) {
        let found = jetstream.get_stream(stream.name).await.unwrap();
        stored.push((stream.name, found.cached_info().state.last_sequence));
    }
    stored
}

/// As each role: what it may do is found, and neither a stream nor a subscriber gets anything of it.
#[tokio::test]
async fn looking_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let nats = start_with_unlimited_user(folder.path()).await;
    emberline(&nats, &["nats", "setup", "--yes", "--model", "m"]).await.unwrap();
    let before = stored(&nats).await;
    let client = unlimited(&nats).await;
    let mut seen = Vec::new();
    for subjects in ["emberline.>", "$KV.>", "$JS.ACK.>", "$JS.API.STREAM.*.*", "$JS.API.CONSUMER.>"] {
        seen.push(client.subscribe(subjects).await.unwrap());
    }
    client.flush().await.unwrap();

    for role in ["function", "worker", "admin"] {
        let diagnosis = Doctor::at(role, &nats.address()).args(&["--models", "m"]).diagnose().await;
        diagnosis.is_ok("permissions");
        diagnosis.is_ok("latency");
        if role != "function" {
            for name in ["streams", "consumers", "usage", "clock"] {
                diagnosis.is_ok(name);
            }
        }
    }
    assert_eq!(stored(&nats).await, before);
    client.publish("emberline.end", "".into()).await.unwrap();
    let mut messages = futures::stream::select_all(seen);
    let mut passed = Vec::new();
    wait::within("the last message", async {
        while let Some(message) = messages.next().await {
            if message.subject.as_str() == "emberline.end" {
                return Ok(());
            }
            passed.push(message.subject.to_string());
        }
        anyhow::bail!("disconnected")
    })
    .await
    .unwrap();
    passed.retain(|subject| !subject.contains("INFO"));
    assert!(passed.is_empty(), "{passed:?}");
}

#[tokio::test]
async fn each_permission_that_a_role_lacks_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (role, line, words) in [
        (
            "worker",
            "          \"emberline.usage.*\"\n",
            "may not publish to emberline.usage.* (Correct the counters",
        ),
        (
            "function",
            "          \"emberline.jobs.*.*\"\n",
            "may not publish to emberline.jobs.*.* (Enqueue jobs",
        ),
        (
            "function",
            "          \"emberline.live.*\"\n",
            "may not subscribe to emberline.live.* (Follow jobs)",
        ),
        ("admin", "          \"$JS.API.STREAM.UPDATE.KV_keys\"\n", "$JS.API.STREAM.UPDATE.KV_keys"),
    ] {
        let mut config = config();
        // The one of this role.
        let at = config.find(&format!("nkey: $EMBERLINE_{}_NKEY", role.to_uppercase())).unwrap();
        let kind = if words.contains("subscribe") { "subscribe: [" } else { "publish: [" };
        let at = at + config[at..].find(kind).unwrap();
        let at = at + config[at..].find(line).unwrap();
        config.replace_range(at..at + line.len(), "");
        let nats = start(folder.path(), &config).await;
        set_up(&nats, &Layout::default()).await.unwrap();
        let diagnosis = Doctor::at(role, &nats.address()).diagnose().await;
        diagnosis.has_fault("permissions", words, "nats-server --signal reload");
        assert_eq!(diagnosis.findings("permissions", "fault").len(), 1, "{diagnosis:#?}");
    }
}

#[tokio::test]
async fn a_user_of_a_pool_is_judged_by_its_models() {
    let nats = NatsServer::start().await.unwrap();
    // The worker of every model may do all that one of a pool may.
    let diagnosis =
        Doctor::at("worker", &nats.address()).args(&["--models", "a,b.c", "--pool"]).diagnose().await;
    diagnosis.is_ok("permissions");
    diagnosis.has_fault("consumers", "consumer worker-b=2Ec-0 of JOBS is missing", "--model a --model b.c");
    diagnosis.has_fault("workers", "no worker is running", "emberline-worker");
}

#[tokio::test]
async fn streams_that_are_missing_or_different_are_named() {
    let nats = NatsServer::start_empty().await.unwrap();
    let diagnosis = Doctor::at("admin", &nats.address()).diagnose().await;
    assert_eq!(diagnosis.findings("streams", "fault").len(), streams(&Layout::default()).len());
    diagnosis.has_fault("streams", "stream KV_keys is missing", "emberline nats setup");

    set_up(&nats, &Layout::default()).await.unwrap();
    let admin = jetstream::new(admin_client(&nats).await.unwrap());
    let mut usage = admin.get_stream(subject::USAGE_STREAM).await.unwrap().cached_info().config.clone();
    usage.discard = jetstream::stream::DiscardPolicy::Old;
    admin.update_stream(usage).await.unwrap();
    let diagnosis = Doctor::at("worker", &nats.address()).diagnose().await;
    diagnosis.has_fault("streams", "stream USAGE differs: discard old -> new", "emberline nats setup");

    // A queue of another kind can't be changed in place.
    let other = NatsServer::start_empty().await.unwrap();
    let admin = jetstream::new(admin_client(&other).await.unwrap());
    let jobs =
        Config { name: "JOBS".into(), subjects: vec!["emberline.jobs.*.*".into()], ..Config::default() };
    admin.create_stream(jobs).await.unwrap();
    let diagnosis = Doctor::at("worker", &other.address()).diagnose().await;
    diagnosis.has_fault(
        "streams",
        "stream JOBS differs: retention limits -> workqueue",
        "nats stream rm JOBS",
    );
}

#[tokio::test]
async fn a_missing_consumer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let nats = start_with_unlimited_user(folder.path()).await;
    emberline(&nats, &["nats", "setup", "--yes", "--model", "m"]).await.unwrap();
    let jobs = jetstream::new(unlimited(&nats).await);
    let jobs = jobs.get_stream(subject::JOBS_STREAM).await.unwrap();
    jobs.delete_consumer("worker-m-2").await.unwrap();
    let diagnosis = Doctor::at("worker", &nats.address()).args(&["--models", "m"]).diagnose().await;
    let missing = diagnosis.findings("consumers", "fault");
    assert_eq!(missing, ["consumer worker-m-2 of JOBS is missing"]);
}

#[tokio::test]
async fn full_usage_is_found_before_and_when_no_job_ends() {
    let nats = NatsServer::start().await.unwrap();
    emberline(&nats, &["nats", "setup", "--yes", "--usage-bytes", "200KiB"]).await.unwrap();
    let worker = jetstream::new(nats.worker_client().await.unwrap());
    let fill = async |until: u64| {
        let mut stored = 0;
        while stored < until {
            let sent =
                worker.publish("emberline.usage.0123456789abcdef", vec![b' '; 4096].into()).await.unwrap();
            if sent.await.is_err() {
                return;
            }
            stored += 4096;
        }
    };
    fill(170_000).await;
    let diagnosis = Doctor::at("worker", &nats.address()).diagnose().await;
    diagnosis.has_warning("usage", "% full; when it is full, no job ends", "emberline usage export");
    fill(u64::MAX).await;
    let diagnosis = Doctor::at("worker", &nats.address()).diagnose().await;
    diagnosis.has_fault("usage", "no job ends any more", "--usage-bytes");
}

/// Another century is as long as this one, so nothing moves in what passes.
#[tokio::test]
async fn a_clock_that_is_wrong_is_found() {
    let nats = NatsServer::start().await.unwrap();
    let skewed = Server::before(nats.address(), async |mut bytes| {
        let key = b"\"ts\":\"20";
        let found = bytes.windows(key.len()).position(|window| window == key);
        if let Some(at) = found {
            bytes[at + key.len() - 1] = b'1';
        }
        bytes
    })
    .await;
    let diagnosis = Doctor::at("worker", &skewed.address.to_string()).diagnose().await;
    diagnosis.has_fault("clock", "behind the server's", "NTP");
    let diagnosis = Doctor::at("worker", &nats.address()).diagnose().await;
    diagnosis.is_ok("clock");
}

#[tokio::test]
async fn a_server_far_away_is_a_warning() {
    let nats = NatsServer::start().await.unwrap();
    let far = Server::before(nats.address(), async |bytes| {
        tokio::time::sleep(Duration::from_millis(70)).await;
        bytes
    })
    .await;
    let diagnosis = Doctor::at("worker", &far.address.to_string()).diagnose().await;
    diagnosis.has_warning("latency", "a round trip", "close to each other");
}

#[tokio::test]
async fn workers_that_serve_nothing_are_told_from_none() {
    let nats = NatsServer::start().await.unwrap();
    let diagnosis = Doctor::at("function", &nats.address()).diagnose().await;
    diagnosis.has_fault("workers", "no worker is running", "emberline-worker");

    let worker = jetstream::new(nats.worker_client().await.unwrap());
    let failed = ModelStatus {
        name: "big".into(),
        state: ModelState::Failed,
        reason: Some("it needs more memory".into()),
        capacity: 0,
        active: 0,
        pace: 0.0,
        memory: None,
        loaded_percent: None,
    };
    let failing =
        Heartbeat { v: PROTOCOL_VERSION, worker: "w1".into(), states: vec![failed], ..Heartbeat::default() };
    let old = Heartbeat { v: PROTOCOL_VERSION - 1, worker: "w0".into(), ..Heartbeat::default() };
    for beat in [failing, old] {
        let subject = format!("$KV.workers.=.{}", beat.worker);
        worker.publish(subject, serde_json::to_vec(&beat).unwrap().into()).await.unwrap().await.unwrap();
    }
    let diagnosis = Doctor::at("worker", &nats.address()).args(&["--models", "big"]).diagnose().await;
    diagnosis.has_fault("workers", "w1 can't serve big: it needs more memory", "restart");
    diagnosis.has_fault("workers", "w0 is of protocol version", "upgrade");
    diagnosis.has_fault("workers", "no worker serves big", "emberline status");
}

#[tokio::test]
async fn a_worker_that_serves_is_seen_with_its_consumers() {
    let nats = NatsServer::start().await.unwrap();
    let mut workers = Workers::default();
    workers.add(&Options::simulated(&[]), &nats.address()).unwrap();
    wait::until("the worker is seen", async || {
        let diagnosis = Doctor::at("worker", &nats.address()).diagnose().await;
        Ok(!diagnosis.findings("workers", "ok").is_empty()
            && !diagnosis.findings("consumers", "ok").is_empty())
    })
    .await
    .unwrap();
    let diagnosis = Doctor::at("worker", &nats.address()).diagnose().await;
    assert_eq!(diagnosis.findings("workers", "ok"), ["1 worker, serving simulated-echo"]);
    diagnosis.has_faults_only_of(&[]);
}

#[tokio::test]
async fn a_domain_that_nobody_has_and_a_cluster_without_a_majority_are_found() {
    let nats = NatsServer::start().await.unwrap();
    let doctor = Doctor::at("admin", &nats.address()).args(&["--nats-jetstream-domain", "hub"]);
    let diagnosis = doctor.diagnose().await;
    diagnosis.has_fault("permissions", "$JS.hub.API.STREAM.INFO.JOBS", "reload");

    let folder = tempfile::tempdir().unwrap();
    let open = start(folder.path(), "max_payload: 8MB\njetstream {}\n").await;
    let doctor = Doctor::at("admin", &open.address()).args(&["--nats-jetstream-domain", "hub"]);
    doctor.diagnose().await.has_fault("streams", "no responders", "JetStream is on");

    let mut cluster = NatsCluster::start().await.unwrap();
    emberline(&cluster, &["nats", "setup", "--yes", "--replicas", "3"]).await.unwrap();
    cluster.kill(1).unwrap();
    cluster.kill(2).unwrap();
    let first = cluster.addresses()[0].clone();
    let diagnosis = Doctor::at("admin", &first).diagnose().await;
    diagnosis.has_fault("streams", "JetStream can't be asked", "most servers of a cluster");
}
