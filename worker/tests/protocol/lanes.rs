//! Which of the jobs that wait is next.

use std::time::{Duration, Instant};

use async_nats::Subscriber;
use emberline_protocol::chunk::Chunk;
use emberline_protocol::control::Control;
use emberline_protocol::event::EventKind;
use emberline_protocol::job::{Account, Job};
use emberline_protocol::key::KeyId;
use emberline_protocol::lane::Lane;
use emberline_protocol::subject::LIVE_SUBJECTS;
use emberline_test_kit::nats::NatsServer;
use futures::StreamExt;

use crate::support::{Relay, Worker, job, wait_for_empty_queue, within};

/// A job of so many words that a key with `outstanding` jobs sends.
fn job_of(key: &str, outstanding: u64, id: u128, max_tokens: u32) -> Job {
    let account = Account {
        key: KeyId::of_key(key.as_bytes()),
        reserved_tokens: 0,
        token_counters: Vec::new(),
        job_counters: Vec::new(),
        lane: Lane::of(outstanding),
        admission: None,
    };
    Job { account: Some(account), ..job(id, max_tokens) }
}

/// Everything that happens to all jobs.
struct Happenings(Subscriber);

impl Happenings {
    async fn new(relay: &Relay) -> Self {
        Self(relay.client.subscribe(LIVE_SUBJECTS).await.unwrap())
    }

    /// The ids of the jobs that end next, in order.
    async fn ends(&mut self, jobs: usize) -> Vec<u128> {
        let mut ended = Vec::new();
        while ended.len() < jobs {
            let message = within("an event", self.0.next()).await.unwrap();
            let chunk: Chunk = serde_json::from_slice(&message.payload).unwrap();
            if matches!(chunk.events.last(), Some(EventKind::Done { .. } | EventKind::Error(_))) {
                let id = message.subject.rsplit('.').next().unwrap();
                ended.push(u128::from_str_radix(id, 16).unwrap());
            }
        }
        ended
    }
}

#[tokio::test]
async fn a_keys_single_job_waits_for_no_more_than_one_of_another() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &["--slots", "1", "--simulated-tokens-per-s", "50"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let mut happenings = Happenings::new(&relay).await;

    // 0.1 s each.
    for number in 1..=100 {
        relay.send(&job_of("crowd", number, u128::from(number), 5)).await;
    }
    let mut waits = Vec::new();
    for single in 1001..=1008 {
        // The job that runs when the single one comes, perhaps ended by then.
        let running = happenings.ends(1).await[0];
        relay.send(&job_of("single", 1, single, 5)).await;
        let mut before = Vec::new();
        loop {
            match happenings.ends(1).await[0] {
                id if id == single => break,
                id => before.push(id),
            }
        }
        // The one that ran, and one that was taken just then.
        assert!(before.len() <= 2, "after {running}: {before:?} before {single}");
        waits.push(before.len());
    }
    println!("jobs that ended before a single one: {waits:?}");
    assert!(waits.iter().any(|before| *before > 0), "nothing was waiting");
}

#[tokio::test]
async fn jobs_are_taken_in_turns_and_no_lane_starves() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &["--slots", "1", "--simulated-tokens-per-s", "200"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let mut happenings = Happenings::new(&relay).await;

    let blocker = job(1, 30_000);
    let mut blocked = relay.send(&blocker).await;
    blocked.next_tokens(1).await;
    // More in the first lane than the others need turns; the lane is the id's last digit.
    for number in 1..=40_u128 {
        relay.send(&job_of("single", 1, number * 10, 1)).await;
    }
    for (lane, outstanding) in [(1, 2), (2, 9), (3, 65)] {
        for number in 1..=4_u128 {
            relay.send(&job_of("crowd", outstanding, number * 10 + lane, 1)).await;
        }
    }
    relay.control(&blocker.id, Control::Cancel).await;
    assert_eq!(happenings.ends(1).await, [1]);
    let lanes: Vec<u128> = happenings.ends(32).await.into_iter().map(|id| id % 10).collect();
    println!("{lanes:?}");
    assert!(lanes.windows(2).all(|two| two.contains(&0)), "{lanes:?}");
    for lane in 1..=3 {
        let taken: Vec<usize> =
            (0..).zip(&lanes).filter(|(_, l)| **l == lane).map(|(turn, _)| turn).collect();
        assert_eq!(taken.len(), 4, "{lanes:?}");
        assert!(taken[0] < 8 && taken.windows(2).all(|two| two[1] - two[0] <= 8), "{lanes:?}");
    }
}

#[tokio::test]
async fn a_worker_without_work_starts_a_job_of_any_lane_at_once() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &["--slots", "4", "--simulated-tokens-per-s", "0"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let mut waits = Vec::new();
    for round in 0..10_u64 {
        for outstanding in [1, 2, 9, 65] {
            let job = job_of("key", outstanding, u128::from(round * 100 + outstanding), 1);
            let published = Instant::now();
            let mut events = relay.send(&job).await;
            events.next().await;
            waits.push(published.elapsed());
            events.rest().await;
        }
    }
    waits.sort_unstable();
    println!("from publication to the first event: median {:?}, longest {:?}", waits[20], waits[39]);
    wait_for_empty_queue(&nats).await;
}

#[tokio::test]
async fn what_comes_to_a_worker_without_room_goes_to_another_at_once() {
    let nats = NatsServer::start().await.unwrap();
    let _workers = [Worker::start(&nats, &["--slots", "1"]), Worker::start(&nats, &["--slots", "1"])];
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0, 0]).await;
    // Whoever takes the first has asked for jobs of the other lanes, too, and has no room for them.
    let (mut longest, mut number) = (Duration::ZERO, 0);
    for _ in 0..5 {
        let mut running = Vec::new();
        for outstanding in [65, 9] {
            number += 1;
            let job = job_of("key", outstanding, number, 30_000);
            let published = Instant::now();
            let mut events = relay.send(&job).await;
            events.next().await;
            longest = longest.max(published.elapsed());
            running.push((job, events));
        }
        for (job, mut events) in running {
            relay.control(&job.id, Control::Cancel).await;
            events.rest().await;
        }
    }
    println!("longest wait for a free slot: {longest:?}");
}

#[tokio::test]
async fn a_new_worker_takes_its_share() {
    let nats = NatsServer::start().await.unwrap();
    let _first = Worker::start(&nats, &["--slots", "2"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let mut streams = Vec::new();
    for number in 1..=12 {
        streams.push(relay.send(&job_of("key", number, number.into(), 30_000)).await);
    }
    relay.wait_for_load(&[2]).await;
    let _second = Worker::start(&nats, &["--slots", "4"]);
    relay
        .wait_for("a second worker", |all| {
            all.iter().filter(|heartbeats| !heartbeats.models.is_empty()).count() == 2
        })
        .await;
    let there = Instant::now();
    relay.wait_for_load(&[2, 4]).await;
    println!("its share after {:?}", there.elapsed());
}

#[tokio::test]
async fn a_worker_that_drains_leaves_no_job_behind_and_those_that_wait_find_another() {
    let nats = NatsServer::start().await.unwrap();
    let mut leaving = Worker::start(&nats, &["--slots", "8", "--simulated-tokens-per-s", "0"]);
    let relay = Relay::new(&nats).await;
    relay.wait_for_load(&[0]).await;
    let _staying = Worker::start(&nats, &["--slots", "8", "--simulated-tokens-per-s", "0"]);
    relay.wait_for_load(&[0, 0]).await;
    // Jobs come all the time; none may be on its way to the worker that has left.
    let mut longest = Duration::ZERO;
    for number in 1..=400_u64 {
        if number == 100 {
            leaving.signal("TERM");
        }
        let job = job_of("key", [1, 2, 9, 65][(number % 4) as usize], number.into(), 1);
        let published = Instant::now();
        let events = relay.send(&job).await.rest().await;
        longest = longest.max(published.elapsed());
        assert!(matches!(events.last().unwrap().kind, EventKind::Done { .. }));
    }
    assert!(leaving.exit().await.success());
    println!("longest of 400 answers: {longest:?}");
    wait_for_empty_queue(&nats).await;
}

#[tokio::test]
async fn the_heartbeat_tells_the_pace() {
    let nats = NatsServer::start().await.unwrap();
    let _worker = Worker::start(&nats, &["--slots", "1", "--simulated-tokens-per-s", "100"]);
    let relay = Relay::new(&nats).await;
    let pace = |heartbeat: &emberline_protocol::heartbeat::Heartbeat| heartbeat.states[0].pace;
    assert_eq!(pace(&relay.wait_for_load(&[0]).await[0]), 0.0);
    // Ten words take 0.1 s.
    for number in 1..=20 {
        relay.send(&job(number, 10)).await.rest().await;
    }
    let told = relay
        .wait_for("a pace", |all| {
            all.iter().any(|heartbeats| pace(heartbeats) > 0.0 && heartbeats.active == 0)
        })
        .await;
    assert!((1.0..=11.0).contains(&pace(&told[0])), "{told:?}");
}
