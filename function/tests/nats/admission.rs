//! Of any number of requests at once exactly as many are admitted as there is room for, and a request that is
//! refused or given back leaves nothing behind.

use std::collections::BTreeMap;
use std::rc::Rc;

use emberline_function::admission::heartbeats::ServedCache;
use emberline_function::admission::{Admission, Admitter};
use emberline_function::http::response_headers::ResponseHeaders;
use emberline_function::nats::bus::Bus;
use emberline_function::platform::Host;
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::key::{KeyId, KeyLimits};
use futures::future::join_all;

use crate::server::NatsServer;
use crate::tokio_platform::{TokioPlatform, run};
use crate::worker::MODEL;

const REQUESTS: usize = 40;
const TOKENS: u64 = 10;

/// Several instances of the function, each with connections of its own, that serve one key.
struct Instances {
    buses: Vec<(Bus, ServedCache)>,
    key: KeyId,
    limits: KeyLimits,
    queue_limit: u64,
}

impl Instances {
    fn new(server: &NatsServer, host: &Host, limits: KeyLimits, queue_limit: u64) -> Self {
        let buses = (0..4).map(|_| (server.bus(host), ServedCache::default())).collect();
        Self { buses, key: KeyId::of_key(b"key"), limits, queue_limit }
    }

    fn admitter(&self, instance: usize) -> Admitter<'_> {
        let (bus, served) = &self.buses[instance % self.buses.len()];
        let (key, limits) = (&self.key, &self.limits);
        Admitter { bus, served, key, limits, job_life_ms: 60_000, queue_limit: self.queue_limit }
    }

    /// Sends many requests at once; those that are admitted, and the errors of the others.
    async fn admit_many(&self) -> (Vec<Admission>, Vec<ApiError>) {
        let requests = (0..REQUESTS).map(async |number| {
            let mut headers = ResponseHeaders::default();
            self.admitter(number).admit(&mut headers, MODEL, &[TOKENS]).await
        });
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
        admission.give_back(&self.buses[0].0, &mut ResponseHeaders::default(), &[]).await;
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
        let (admitted, _) = instances.admit_many().await;
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
fn a_models_queue_has_exactly_its_limit() {
    test(KeyLimits::default(), 7, async |instances| {
        let (admitted, refused) = instances.admit_many().await;
        assert_eq!((admitted.len(), refused.len()), (7, REQUESTS - 7));
        assert!(refused.iter().all(|error| error.code == ErrorCode::Overloaded));
        admitted.into_iter().for_each(Admission::commit);
    });
}
