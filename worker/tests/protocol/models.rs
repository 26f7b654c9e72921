//! Several models in one worker, by its file of models.

use emberline_protocol::control::Control;
use emberline_protocol::event::EventKind;
use emberline_protocol::heartbeat::ModelState::{Draining, Failed, Serving};
use emberline_test_kit::nats::NatsServer;

use crate::support::{Models, Relay, Worker, job_for, text_of, wait_for_empty_queue};

const A: &str = "simulated-a";
/// A name that has to be encoded where it becomes part of a subject.
const B: &str = "simulated/b 2.5";

#[tokio::test]
async fn two_models_are_served_at_once_by_one_worker() {
    let nats = NatsServer::start().await.unwrap();
    let models = Models::new(&[(A, "simulated"), (B, "simulated:0")]);
    let mut worker = Worker::of_models(&nats, &models, &["--slots", "2"]);
    let relay = Relay::new(&nats).await;
    let heartbeats = relay.wait_for_states(&[(A, Serving), (B, Serving)]).await;
    let served: Vec<_> = heartbeats.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!((served, heartbeats.capacity, heartbeats.engine.as_str()), (vec![A, B], 4, "simulated"));

    // Each has its own slots: one that is full does not hold up the other.
    let long = [job_for(A, 1, 30_000), job_for(A, 2, 30_000)];
    let mut streams = Vec::new();
    for job in &long {
        streams.push(relay.send(job).await);
    }
    let heartbeats = relay.wait_for_load(&[2]).await.remove(0);
    let loads: Vec<_> = heartbeats.states.iter().map(|model| (model.active, model.capacity)).collect();
    assert_eq!(loads, [(2, 2), (0, 2)]);
    assert_eq!(text_of(&relay.send(&job_for(B, 3, 2)).await.rest().await, 1), "The quick");

    for (job, stream) in long.iter().zip(&mut streams) {
        relay.control(&job.id, Control::Cancel).await;
        text_of(&stream.rest().await, 1);
    }
    wait_for_empty_queue(&nats).await;
    worker.signal("TERM");
    assert!(worker.exit().await.success());
    assert_eq!(relay.heartbeats().await, []);
    assert!(!nats.log().to_lowercase().contains("violation"), "{}", nats.log());
}

#[tokio::test]
async fn a_model_is_added_while_a_stream_of_another_runs() {
    let nats = NatsServer::start().await.unwrap();
    let models = Models::new(&[(A, "simulated")]);
    let _worker = Worker::of_models(&nats, &models, &[]);
    let relay = Relay::new(&nats).await;
    let before = relay.wait_for_states(&[(A, Serving)]).await;
    let long = job_for(A, 1, 30_000);
    let mut stream = relay.send(&long).await;
    let mut events = vec![stream.next().await, stream.next().await];

    // Its jobs may come before it does.
    let mut early = relay.send(&job_for(B, 2, 1)).await;
    models.set(&[(A, "simulated"), (B, "simulated")]);
    let after = relay.wait_for_states(&[(A, Serving), (B, Serving)]).await;
    assert_eq!(before.worker, after.worker);
    assert_eq!(text_of(&early.rest().await, 1), "The");
    assert_eq!(text_of(&relay.send(&job_for(B, 3, 2)).await.rest().await, 1), "The quick");

    relay.control(&long.id, Control::Cancel).await;
    events.extend(stream.rest().await);
    // One attempt, without a gap.
    assert!(text_of(&events, 1).starts_with("The quick ember"));
    assert!(matches!(events.last().unwrap().kind, EventKind::Done { .. }));
}

#[tokio::test]
async fn a_removed_model_finishes_its_jobs_and_takes_no_more() {
    let nats = NatsServer::start().await.unwrap();
    let models = Models::new(&[(A, "simulated"), (B, "simulated")]);
    let _worker = Worker::of_models(&nats, &models, &[]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_states(&[(A, Serving), (B, Serving)]).await;
    let (going, staying) = (job_for(A, 1, 30_000), job_for(B, 2, 30_000));
    let (mut leaves, mut stays) = (relay.send(&going).await, relay.send(&staying).await);
    let mut events = vec![stays.next().await];
    leaves.next_tokens(1).await;

    models.set(&[(B, "simulated")]);
    let heartbeats = relay.wait_for_states(&[(A, Draining), (B, Serving)]).await;
    assert_eq!((heartbeats.models.len(), heartbeats.capacity, heartbeats.active), (1, 32, 2));
    let mut left_over = relay.send(&job_for(A, 3, 1)).await;
    // It goes on until its client has enough.
    leaves.tokens_at(100).await;
    relay.control(&going.id, Control::Cancel).await;
    let rest = leaves.rest().await;
    assert!(rest.iter().all(|event| event.attempt == 1));
    relay.wait_for_states(&[(B, Serving)]).await;

    // What came meanwhile is not lost.
    models.set(&[(A, "simulated"), (B, "simulated")]);
    assert_eq!(text_of(&left_over.rest().await, 1), "The");
    relay.control(&staying.id, Control::Cancel).await;
    events.extend(stays.rest().await);
    text_of(&events, 1);
    wait_for_empty_queue(&nats).await;
}

#[tokio::test]
async fn what_a_removed_model_cannot_finish_is_continued_elsewhere() {
    let nats = NatsServer::start().await.unwrap();
    let models = Models::new(&[(A, "simulated"), (B, "simulated")]);
    let _first = Worker::of_models(&nats, &models, &["--drain-s", "1"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_states(&[(A, Serving), (B, Serving)]).await;
    let long = job_for(A, 1, 30_000);
    let mut stream = relay.send(&long).await;
    stream.next_tokens(1).await;

    let others = Models::new(&[(A, "simulated")]);
    let _second = Worker::of_models(&nats, &others, &[]);
    relay.wait_for_load(&[0, 1]).await;
    models.set(&[(B, "simulated")]);
    stream.next_tokens(2).await;
    relay.control(&long.id, Control::Cancel).await;
    stream.rest().await;
    relay.wait_for_load(&[0, 0]).await;
}

#[tokio::test]
async fn a_broken_file_is_reported_and_the_models_stay() {
    let nats = NatsServer::start().await.unwrap();
    let models = Models::new(&[(A, "simulated")]);
    let worker = Worker::of_models(&nats, &models, &[]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_states(&[(A, Serving)]).await;

    models.write("[[model]]\nname = 'simulated-a'\nsauce = 'simulated'\n");
    let told = |all: &[emberline_protocol::heartbeat::Heartbeat]| all.iter().any(|h| h.problem.is_some());
    let heartbeats = relay.wait_for("a problem", told).await.remove(0);
    let problem = heartbeats.problem.unwrap();
    assert!(problem.contains("models.toml, line 3") && problem.contains("sauce"), "{problem}");
    assert!(worker.log().contains("the models stay as they are"), "{}", worker.log());
    assert_eq!(heartbeats.models.len(), 1);
    assert_eq!(text_of(&relay.send(&job_for(A, 1, 1)).await.rest().await, 1), "The");

    models.set(&[(B, "simulated")]);
    let heartbeats = relay.wait_for_states(&[(B, Serving)]).await;
    assert_eq!(heartbeats.problem, None);
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_is_reported_and_the_others_go_on() {
    let nats = NatsServer::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    // More than any machine has; it takes no space on the disk.
    let huge = folder.path().join("huge.gguf");
    std::fs::File::create(&huge).unwrap().set_len(1 << 43).unwrap();
    let missing = folder.path().join("missing.gguf");
    let (huge, missing) = (huge.to_str().unwrap(), missing.to_str().unwrap());
    let models = Models::new(&[(A, "simulated")]);
    let _worker = Worker::of_models(&nats, &models, &["--backend", "cpu"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_states(&[(A, Serving)]).await;
    let long = job_for(A, 1, 30_000);
    let mut stream = relay.send(&long).await;
    let mut events = vec![stream.next().await];

    models.set(&[("huge", huge), ("missing", missing), (A, "simulated")]);
    let heartbeats = relay.wait_for_states(&[("huge", Failed), ("missing", Failed), (A, Serving)]).await;
    let reason = |index: usize| heartbeats.states[index].reason.as_deref().unwrap();
    assert!(reason(0).contains("8.0 TiB of weights") && reason(0).contains("available"), "{}", reason(0));
    assert!(reason(1).contains(missing), "{}", reason(1));
    assert_eq!((heartbeats.models.len(), heartbeats.capacity), (1, 32));

    relay.control(&long.id, Control::Cancel).await;
    events.extend(stream.rest().await);
    text_of(&events, 1);
    models.set(&[(B, "simulated"), (A, "simulated")]);
    relay.wait_for_states(&[(A, Serving), (B, Serving)]).await;
}

#[tokio::test]
async fn a_worker_that_can_serve_nothing_at_its_start_says_why_and_ends() {
    let nats = NatsServer::start().await.unwrap();
    let address = nats.address();
    for models in
        [vec!["--model", "none/x.gguf"], vec!["--model", "a=none/x.gguf", "--model", "b=none/x.gguf"]]
    {
        let args = [&["--nats", &address, "--backend", "cpu"], models.as_slice()].concat();
        let mut worker = Worker::start_with(&args, emberline_test_kit::nats::WORKER_SEED);
        assert_eq!(worker.exit().await.code(), Some(1));
        let log = worker.log();
        let last = log.lines().last().unwrap();
        assert!(last.starts_with("emberline-worker: model '") && last.contains("none/x.gguf"), "{last}");
    }
    assert_eq!(Relay::new(&nats).await.heartbeats().await, []);
}

#[tokio::test]
async fn a_hang_up_tries_again_what_has_failed() {
    let nats = NatsServer::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("x.gguf");
    let models = Models::new(&[(A, "simulated"), ("x", weights.to_str().unwrap())]);
    let worker = Worker::of_models(&nats, &models, &["--backend", "cpu"]);
    let relay = Relay::new(&nats).await;
    let heartbeats = relay.wait_for_states(&[(A, Serving), ("x", Failed)]).await;
    let first = heartbeats.states[1].reason.clone();

    std::fs::write(&weights, "now it is there, but no model").unwrap();
    worker.signal("HUP");
    let another = |all: &[emberline_protocol::heartbeat::Heartbeat]| match all {
        [heartbeats] => {
            heartbeats.states.len() == 2
                && heartbeats.states[1].state == Failed
                && heartbeats.states[1].reason != first
        }
        _ => false,
    };
    relay.wait_for("another reason", another).await;
}
