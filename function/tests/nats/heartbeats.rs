//! What the function reads of its workers does not depend on how many there are.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::time::Instant;

use emberline_api::models::ModelNames;
use emberline_function::admission::heartbeats::ServedCache;
use emberline_function::admission::queue::Capacity;
use emberline_function::nats::connection::{Connection, subject};
use emberline_function::nats::jetstream;
use emberline_function::platform::Host;
use emberline_protocol::error::ErrorCode;
use emberline_protocol::heartbeat::{Heartbeat, ServedModel};
use emberline_protocol::model_summary::ModelSummary;
use emberline_protocol::subject::{self as names, WORKERS_STREAM};
use serde::Serialize;

use crate::generation::start;
use crate::server::{NatsServer, Proxy, bus};
use crate::tokio_platform::run;
use crate::worker::{MODEL, heartbeat};

/// Heartbeats and summaries that nobody has to write again while a test runs.
async fn keep_heartbeats(server: &NatsServer, host: &Host) {
    const HOUR_NS: u64 = 3_600_000_000_000;
    server.change_stream(host, WORKERS_STREAM, |stream| stream["max_age"] = HOUR_NS.into()).await;
}

/// Stores all entries, many at a time.
async fn store(connection: &mut Connection, entries: &[(String, Vec<u8>)]) {
    for some in entries.chunks(500) {
        let inbox = connection.new_inbox().unwrap();
        for (key, value) in some {
            connection.request(subject(key.clone()).unwrap(), Some(inbox.clone()), value.clone());
        }
        connection.flush().await.unwrap();
        for _ in some {
            let stored = poll_fn(|cx| connection.poll_message(cx)).await.unwrap();
            jetstream::read_ack(&stored).unwrap();
        }
    }
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

#[test]
fn five_thousand_workers_cost_the_function_as_much_as_one() {
    const WORKERS: u64 = 5000;
    run(async {
        let (host, server) = start().await;
        keep_heartbeats(&server, &host).await;
        let all: Vec<Heartbeat> = (0..WORKERS).map(|n| heartbeat(&format!("{n:016x}"), 8192)).collect();
        let mut entries: Vec<(String, Vec<u8>)> = Vec::new();
        for heartbeat in &all {
            let keys = names::heartbeats(&heartbeat.worker, [MODEL]);
            entries.extend(keys.into_iter().map(|key| (key, encode(heartbeat))));
        }
        let summary = ModelSummary::of(MODEL, Some("w"), all.into_iter().map(Ok)).unwrap();
        entries.push((names::model_summary(MODEL), encode(&summary)));
        // As a worker of version 4 writes it.
        let old = ServedModel { name: "old".into(), context_length: 10, created: 1 };
        let old = Heartbeat { v: 4, models: vec![old], ..heartbeat("0123456789abcdef", 10) };
        entries.push(("$KV.workers.0123456789abcdef".into(), encode(&old)));
        store(&mut server.bus(&host).connect().await.unwrap(), &entries).await;
        let state = server.ask(&host, &format!("$JS.API.STREAM.INFO.{WORKERS_STREAM}"), &().into()).await;
        assert_eq!(state["state"]["messages"], WORKERS + 2);

        let proxy = Proxy::start(server.address).await;
        let bus = bus(&host, proxy.address);
        // The connection is made, so that what follows are the answers alone.
        ServedCache::default().read(&bus).await.unwrap();
        let (before, started) = (proxy.replied(), Instant::now());
        let served = ServedCache::default().read(&bus).await.unwrap();
        let (bytes, took) = (proxy.replied() - before, started.elapsed());
        println!("what is served of {WORKERS} workers was read in {took:?} from {bytes} bytes");
        // Of the summary and of the old worker's heartbeat.
        assert!((1..2000).contains(&bytes), "{bytes}");
        assert_eq!(served.names(), [MODEL]);
        assert_eq!(served.get(MODEL).unwrap().context_length, 8192);
        assert_eq!(served.capacity(MODEL), Capacity { slots: 4 * WORKERS, pace: 5000.0 });
        let names = ModelNames::parse("", "").unwrap();
        assert_eq!(served.admit("old", &names).unwrap_err().code, ErrorCode::ModelNotFound);
    });
}

#[test]
fn more_models_than_one_read_brings_are_all_served() {
    const MODELS: usize = 2500;
    run(async {
        let (host, server) = start().await;
        keep_heartbeats(&server, &host).await;
        let entry = |n: usize| {
            let name = format!("model-{n}");
            let model = ServedModel { name: name.clone(), context_length: 100, created: 1 };
            let heartbeat = Heartbeat { models: vec![model], ..heartbeat("w", 1) };
            let summary = ModelSummary::of(&name, Some("w"), [Ok(heartbeat)]).unwrap();
            (names::model_summary(&name), encode(&summary))
        };
        let entries: Vec<_> = (0..MODELS).map(entry).collect();
        let mut connection = server.bus(&host).connect().await.unwrap();
        store(&mut connection, &entries).await;
        let bus = server.bus(&host);
        let served = ServedCache::default().read(&bus).await.unwrap();
        assert_eq!(served.models().len(), MODELS);

        // A model whose last worker has left is gone, and hides no other.
        store(&mut connection, &[(names::model_summary("model-7"), Vec::new())]).await;
        let served = ServedCache::default().read(&bus).await.unwrap();
        let known: BTreeMap<_, _> = served.models().iter().filter(|(name, _)| name.ends_with("-7")).collect();
        assert!(known.is_empty() && served.models().len() == MODELS - 1, "{known:?}");
    });
}
