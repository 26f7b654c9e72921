//! What deploy/nats.conf lets each user do, and nothing more.

use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};
use emberline_protocol::lane::Lane;
use emberline_protocol::subject::{self, JobId};
use emberline_protocol::tokens::TokensRequest;
use emberline_test_kit::nats::NatsServer;
use tokio::sync::mpsc;

use crate::support::{Relay, Worker, within};

/// A client that hears of violations.
async fn client(nats: &NatsServer, user: &str, password: &str) -> (Client, mpsc::UnboundedReceiver<String>) {
    let (sender, violations) = mpsc::unbounded_channel();
    let client = ConnectOptions::with_user_and_password(user.into(), password.into())
        .custom_inbox_prefix(format!("_INBOX_{user}"))
        .event_callback(move |event| {
            if let Event::ServerError(error) = event {
                let _ = sender.send(error.to_string());
            }
            std::future::ready(())
        })
        .connect(nats.address())
        .await
        .unwrap();
    (client, violations)
}

#[tokio::test]
async fn each_user_is_refused_what_only_another_may_do() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &[]);
    Relay::new(&nats).await.wait_for_load(&[0]).await;
    let id = JobId::from_random(1);
    let (events, live, jobs) =
        (subject::events(&id), subject::live(&id), subject::jobs("m", Lane::default()));

    let function = client(&nats, "function", emberline_test_kit::nats::FUNCTION_PASSWORD).await;
    let kept = subject::kept_events(&id);
    let function_may_not = [
        kept.as_str(),
        live.as_str(),
        "$KV.workers.x",
        "$JS.API.STREAM.CREATE.JOBS",
        "$JS.API.STREAM.INFO.JOBS",
        "$JS.API.STREAM.DELETE.JOBS",
        "$JS.API.STREAM.PURGE.JOBS",
        "$JS.API.CONSUMER.CREATE.JOBS.c",
        "$JS.API.CONSUMER.MSG.NEXT.JOBS.worker-m-0",
        "$JS.API.DIRECT.GET.JOBS",
        "$JS.ACK.JOBS.worker-m-0.1.1.1.1.1",
        "$KV.keys.x",
        "$JS.API.DIRECT.GET.KV_keys",
        "emberline.usage.x",
        "$JS.API.DIRECT.GET.USAGE",
        "elsewhere",
    ];
    refused(
        function,
        &function_may_not,
        &["emberline.jobs.*.*", "emberline.control.*", "emberline.tokens.*", "_INBOX_worker.>", ">"],
    )
    .await;

    let worker = client(&nats, "worker", emberline_test_kit::nats::WORKER_PASSWORD).await;
    let worker_may_not = [
        jobs.as_str(),
        "$KV.requests.x",
        "emberline.tokens.m",
        "emberline.orphans.m",
        "_INBOX_function.unasked",
        "$JS.API.STREAM.DELETE.JOBS",
        "$JS.API.STREAM.PURGE.JOBS",
        "$JS.API.STREAM.UPDATE.JOBS",
        "$JS.API.STREAM.CREATE.OTHER",
        "$JS.API.CONSUMER.CREATE.EVENTS.c",
        "$JS.API.CONSUMER.CREATE.KEPT.c",
        "$JS.API.CONSUMER.DELETE.JOBS.worker-m-0",
        "$KV.keys.x",
        "$JS.API.DIRECT.GET.KV_keys",
        "$JS.API.DIRECT.GET.DEAD",
        "$JS.API.STREAM.MSG.DELETE.DEAD",
        "elsewhere",
    ];
    refused(worker, &worker_may_not, &["emberline.jobs.*.*", "_INBOX_function.>", "$KV.workers.*", ">"])
        .await;

    let admin = client(&nats, "admin", emberline_test_kit::nats::ADMIN_PASSWORD).await;
    let admin_may_not = [
        "emberline.jobs.m.1",
        events.as_str(),
        kept.as_str(),
        "emberline.dead.m",
        "emberline.limits.x",
        "emberline.usage.x",
        "$KV.workers.x",
        "$KV.requests.x",
        "$JS.API.STREAM.CREATE.OTHER",
        "$JS.API.STREAM.DELETE.KV_keys",
        "$JS.API.STREAM.DELETE.JOBS",
        "$JS.API.STREAM.DELETE.DEAD",
        "$JS.API.STREAM.PURGE.USAGE",
        "$JS.API.STREAM.MSG.DELETE.JOBS",
        "$JS.API.CONSUMER.DELETE.JOBS.worker-m-0",
        "$JS.API.CONSUMER.MSG.NEXT.JOBS.worker-m-0",
        "$JS.API.DIRECT.GET.KEPT",
        "elsewhere",
    ];
    refused(admin, &admin_may_not, &["emberline.live.*", "_INBOX_function.>", "$KV.keys.*", ">"]).await;
}

async fn refused(
    (client, mut violations): (Client, mpsc::UnboundedReceiver<String>),
    publish: &[&str],
    subscribe: &[&str],
) {
    for &subject in publish {
        client.publish(subject.to_owned(), "{}".into()).await.unwrap();
        assert_violation(&mut violations, subject).await;
    }
    for &subject in subscribe {
        let _subscriber = client.subscribe(subject.to_owned()).await.unwrap();
        client.flush().await.unwrap();
        assert_violation(&mut violations, subject).await;
    }
    // And nothing else was complained about.
    client.flush().await.unwrap();
    let more = tokio::time::timeout(Duration::from_millis(50), violations.recv()).await;
    assert!(more.is_err(), "{more:?}");
}

async fn assert_violation(violations: &mut mpsc::UnboundedReceiver<String>, subject: &str) {
    let violation = within(&format!("a violation for {subject}"), violations.recv()).await.unwrap();
    assert!(violation.to_lowercase().contains("permissions violation"), "{violation}");
    assert!(
        violation.contains(subject) || violation.contains(&subject.to_lowercase()),
        "{subject}: {violation}"
    );
}

#[tokio::test]
async fn what_each_part_does_is_within_its_rights() {
    let nats = NatsServer::start().await.unwrap();
    let mut worker = Worker::start(&nats, &["--simulated-tokens-per-s", "0"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    relay.send(&crate::support::job(1, 3)).await.rest().await;
    crate::tokens::ask(&relay, crate::support::MODEL, &TokensRequest::Detokenize { tokens: vec![1] }).await;
    worker.signal("TERM");
    assert!(worker.exit().await.success());
    assert!(!worker.log().to_lowercase().contains("violation"), "{}", worker.log());
    assert!(!nats.log().to_lowercase().contains("violation"), "{}", nats.log());
}
