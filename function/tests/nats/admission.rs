//! Of any number of requests at once exactly as many are admitted as there is room for, and a request that is
//! refused or given back leaves nothing behind.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use emberline_function::admission::heartbeats::ServedCache;
use emberline_function::admission::seen::SeenCounters;
use emberline_function::admission::{Admission, Admitter};
use emberline_function::http::response_headers::ResponseHeaders;
use emberline_function::nats::bus::Bus;
use emberline_function::platform::Host;
use emberline_protocol::counter::{Bucket, Counter, Owner};
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::key::{KeyId, KeyLimits};
use futures::future::join_all;

use crate::server::{NatsServer, Proxy, bus};
use crate::tokio_platform::{NOW_MS, TokioPlatform, run};
use crate::worker::MODEL;

const REQUESTS: usize = 40;
const TOKENS: u64 = 10;
/// How long a job may live.
const JOB_LIFE_MS: u64 = 60_000;

/// Several instances of the function, each with connections of its own, that serve one key.
pub(crate) struct Instances {
    buses: Vec<(Bus, ServedCache, SeenCounters)>,
    key: KeyId,
    limits: KeyLimits,
    queue_limit: u64,
}

impl Instances {
    pub(crate) fn new(server: &NatsServer, host: &Host, limits: KeyLimits, queue_limit: u64) -> Self {
        let buses =
            (0..4).map(|_| (server.bus(host), ServedCache::default(), SeenCounters::default())).collect();
        Self { buses, key: KeyId::of_key(b"key"), limits, queue_limit }
    }

    /// Other instances that serve the same key.
    fn again(&self) -> Self {
        let anew = |(bus, ..): &(Bus, _, _)| (bus.clone(), ServedCache::default(), SeenCounters::default());
        Self { buses: self.buses.iter().map(anew).collect(), key: self.key.clone(), ..*self }
    }

    /// The same instances, serving another key.
    fn of_key(self, key: &[u8], limits: KeyLimits) -> Self {
        Self { key: KeyId::of_key(key), limits, ..self }
    }

    fn admitter(&self, instance: usize) -> Admitter<'_> {
        let (bus, served, seen) = &self.buses[instance % self.buses.len()];
        let (key, limits) = (&self.key, &self.limits);
        Admitter { bus, seen, served, key, limits, job_life_ms: JOB_LIFE_MS, queue_limit: self.queue_limit }
    }

    /// Sends one request.
    pub(crate) async fn admit(&self, instance: usize) -> Result<Admission, ApiError> {
        self.admitter(instance).admit(&mut ResponseHeaders::default(), MODEL, &[TOKENS]).await
    }

    /// Sends many requests at once; those that are admitted, and the errors of the others.
    async fn admit_many(&self) -> (Vec<Admission>, Vec<ApiError>) {
        let requests = (0..REQUESTS).map(|number| self.admit(number));
        let (mut admitted, mut refused) = (Vec::new(), Vec::new());
        for result in join_all(requests).await {
            match result {
                Ok(admission) => admitted.push(admission),
                Err(error) => refused.push(error),
            }
        }
        (admitted, refused)
    }

    async fn give_back(&self, admission: Admission) {
        self.admitter(0).give_back(admission, &mut ResponseHeaders::default()).await;
        // It is sent without an answer: a round trip over the same connection comes after it.
        self.remaining("requests").await;
    }

    /// What the headers say is left of a window.
    async fn remaining(&self, unit: &str) -> Option<u64> {
        let mut headers = ResponseHeaders::default();
        self.admitter(0).set_headers(&mut headers).await;
        let headers = headers.to_map();
        headers.get(format!("x-ratelimit-remaining-{unit}"))?.to_str().ok()?.parse().ok()
    }
}

fn test(limits: KeyLimits, queue_limit: u64, check: impl AsyncFnOnce(&Instances)) {
    run(async {
        let host: Host = TokioPlatform::host(BTreeMap::new());
        let server = NatsServer::start(&host).await;
        let instances = Instances::new(&server, &host, limits, queue_limit);
        // A first round trip connects every instance.
        for instance in 0..instances.buses.len() {
            instances.admitter(instance).set_headers(&mut ResponseHeaders::default()).await;
        }
        check(&instances).await;
        drop(Rc::clone(&host));
    });
}

/// Waits until everything that was taken back is counted.
async fn wait_for_remaining(instances: &Instances, unit: &str, wanted: u64) {
    while instances.remaining(unit).await != Some(wanted) {
        tokio::task::yield_now().await;
    }
}

#[test]
fn exactly_as_many_requests_pass_as_the_limit_allows() {
    let limits = KeyLimits { requests_per_minute: Some(10), ..KeyLimits::default() };
    test(limits, 1000, async |instances| {
        let (admitted, refused) = instances.admit_many().await;
        assert_eq!((admitted.len(), refused.len()), (10, REQUESTS - 10));
        assert!(refused.iter().all(|error| error.code == ErrorCode::RateLimitExceeded));
        // Only those that were admitted stay counted.
        wait_for_remaining(instances, "requests", 0).await;
        for admission in admitted {
            instances.give_back(admission).await;
        }
        wait_for_remaining(instances, "requests", 10).await;
        // Instances that have not seen that there was no room.
        let (admitted, _) = instances.again().admit_many().await;
        assert_eq!(admitted.len(), 10);
        admitted.into_iter().for_each(Admission::commit);
    });
}

#[test]
fn a_refused_request_takes_all_its_increments_back() {
    // The tokens are the limit that refuses; requests and jobs were raised in the same round trip.
    let limits = KeyLimits {
        requests_per_minute: Some(100),
        tokens_per_minute: Some(3 * TOKENS),
        jobs_at_once: Some(50),
        ..KeyLimits::default()
    };
    test(limits, 1000, async |instances| {
        let (admitted, refused) = instances.admit_many().await;
        assert_eq!((admitted.len(), refused.len()), (3, REQUESTS - 3));
        wait_for_remaining(instances, "tokens", 0).await;
        wait_for_remaining(instances, "requests", 97).await;
        for admission in admitted {
            instances.give_back(admission).await;
        }
        wait_for_remaining(instances, "tokens", 3 * TOKENS).await;
        wait_for_remaining(instances, "requests", 100).await;
    });
}

#[test]
fn a_models_queue_has_no_more_than_its_limit() {
    test(KeyLimits::default(), 7, async |instances| {
        let (admitted, refused) = instances.admit_many().await;
        // A key with many jobs has a part of it, and how many it has depends on who is counted first.
        assert!((4..=7).contains(&admitted.len()), "{}", admitted.len());
        assert_eq!(admitted.len() + refused.len(), REQUESTS);
        assert!(refused.iter().all(|error| error.code == ErrorCode::Overloaded));
        admitted.into_iter().for_each(Admission::commit);
    });
}

/// One instance behind a proxy.
async fn behind_proxy(limits: KeyLimits, queue_limit: u64) -> (Host, NatsServer, Proxy, Instances) {
    let host: Host = TokioPlatform::host(BTreeMap::new());
    let server = NatsServer::start(&host).await;
    let proxy = Proxy::start(server.address).await;
    let buses = vec![(bus(&host, proxy.address), ServedCache::default(), SeenCounters::default())];
    let instance = Instances { buses, key: KeyId::of_key(b"key"), limits, queue_limit };
    (host, server, proxy, instance)
}

/// The counter of jobs to which requests are added now.
fn jobs(owner: Owner) -> Bucket {
    let counter = if matches!(owner, Owner::Key(_)) { Counter::Jobs } else { Counter::ModelJobs };
    Bucket { owner, counter, number: (NOW_MS + JOB_LIFE_MS).next_multiple_of(JOB_LIFE_MS / 8) }
}

#[test]
fn with_ample_room_key_and_queue_are_counted_in_one_round_trip() {
    run(async {
        let limits =
            KeyLimits { jobs_at_once: Some(50), requests_per_minute: Some(100), ..KeyLimits::default() };
        let (host, server, proxy, instance) = behind_proxy(limits, 100).await;
        instance.admit(0).await.unwrap().commit();
        // What is counted while no reply comes was sent at once.
        proxy.hold(true);
        let counted = async {
            let (key, model) = (jobs(Owner::Key(instance.key.clone())), jobs(Owner::model(MODEL)));
            while server.count(&host, &key, 0).await < 2 || server.count(&host, &model, 0).await < 2 {}
            proxy.hold(false);
        };
        let (admitted, ()) = tokio::join!(instance.admit(0), counted);
        admitted.unwrap().commit();
    });
}

#[test]
fn a_key_over_its_limit_of_requests_is_refused_without_nats_until_the_limit_is_raised() {
    run(async {
        let limits = KeyLimits { requests_per_minute: Some(1), ..KeyLimits::default() };
        let (_host, _server, proxy, instance) = behind_proxy(limits, 100).await;
        instance.admit(0).await.unwrap().commit();
        proxy.hold(true);
        let mut headers = ResponseHeaders::default();
        let refused = instance.admitter(0).admit(&mut headers, MODEL, &[TOKENS]).await;
        assert_eq!(refused.unwrap_err().code, ErrorCode::RateLimitExceeded);
        let headers = headers.to_map();
        assert!(headers.contains_key("retry-after"));
        assert_eq!(
            (&headers["x-ratelimit-limit"], &headers["x-ratelimit-remaining"]),
            (&"1".parse().unwrap(), &"0".parse().unwrap())
        );
        proxy.hold(false);
        let raised = KeyLimits { requests_per_minute: Some(2), ..KeyLimits::default() };
        let instance = instance.of_key(b"key", raised);
        instance.admit(0).await.unwrap().commit();
        assert_eq!(instance.admit(0).await.unwrap_err().code, ErrorCode::RateLimitExceeded);
    });
}

#[test]
fn one_keys_refused_requests_take_no_place_from_another() {
    run(async {
        let limits = KeyLimits { jobs_at_once: Some(8), ..KeyLimits::default() };
        let (host, server, proxy, crowd) = behind_proxy(limits, 64).await;
        crowd.admit(0).await.unwrap().commit();
        // Their increments are counted, and they don't know it yet.
        proxy.hold(true);
        let batch = [TOKENS; 8];
        let ended = Cell::new(false);
        let refused = async {
            let refused = join_all((0..63).map(async |_| {
                let mut headers = ResponseHeaders::default();
                crowd.admitter(0).admit(&mut headers, MODEL, &batch).await
            }));
            let refused = refused.await;
            ended.set(true);
            refused
        };
        let other = async {
            let of_crowd = jobs(Owner::Key(crowd.key.clone()));
            while !ended.get() && server.count(&host, &of_crowd, 0).await < 1 + 63 * 8 {}
            let other = Instances::new(&server, &host, KeyLimits::default(), 64)
                .of_key(b"other", KeyLimits::default());
            let admitted = other.admit(0).await;
            proxy.hold(false);
            admitted
        };
        let (refused, other) = tokio::join!(refused, other);
        other.unwrap().commit();
        assert!(refused.iter().all(Result::is_err));
    });
}

#[test]
fn a_key_with_many_jobs_leaves_a_part_of_the_queue_to_keys_with_few() {
    run(async {
        let host: Host = TokioPlatform::host(BTreeMap::new());
        let server = NatsServer::start(&host).await;
        let crowd = Instances::new(&server, &host, KeyLimits::default(), 200);
        let mut waiting = 0;
        loop {
            let (admitted, refused) = crowd.admit_many().await;
            waiting += admitted.len();
            admitted.into_iter().for_each(Admission::commit);
            assert!(refused.iter().all(|error| error.code == ErrorCode::Overloaded));
            if let Some(error) = refused.first() {
                assert!(error.message.contains("100"), "{}", error.message);
                break;
            }
        }
        assert_eq!(waiting, 100);
        let few = crowd.of_key(b"few", KeyLimits::default());
        for _ in 0..8 {
            few.admit(0).await.unwrap().commit();
        }
    });
}
