//! What the requests of an instance share: idle connections and the newest heartbeats.

use std::cell::RefCell;
use std::rc::Rc;

use emberline_shared::subject::{WORKERS_STREAM, WORKERS_SUBJECTS};

use super::clock::monotonic_ns;
use super::connection::{BusError, Connection};
use super::log;
use crate::config::Endpoint;
use crate::models::Served;
use crate::nats::jetstream;
use crate::nats::pool::Pool;

/// How long heartbeats are believed without asking again, in nanoseconds.
const SERVED_TTL_NS: u64 = 1_000_000_000;

struct CachedServed {
    endpoint: Endpoint,
    read_ns: u64,
    served: Rc<Served>,
}

thread_local! {
    static POOL: RefCell<Pool<Endpoint, Connection>> = const { RefCell::new(Pool::new()) };
    static SERVED: RefCell<Option<CachedServed>> = const { RefCell::new(None) };
}

/// An idle connection, if there is one.
pub(super) fn idle(endpoint: &Endpoint) -> Option<Connection> {
    POOL.with(|pool| pool.try_borrow_mut().ok()?.take(endpoint, monotonic_ns()))
}

/// Keeps `connection` for the next request, if it is clean.
pub(super) fn give_back(endpoint: &Endpoint, mut connection: Connection) {
    if connection.park() {
        POOL.with(|pool| {
            if let Ok(mut pool) = pool.try_borrow_mut() {
                pool.put(endpoint, monotonic_ns(), connection);
            }
        });
    }
}

/// What is served now. Also leaves a living connection in the pool, unless it comes from the cache.
pub(super) async fn served(endpoint: &Endpoint) -> Result<Rc<Served>, BusError> {
    if let Some(served) = cached(endpoint) {
        return Ok(served);
    }
    let read_ns = monotonic_ns();
    let served = Rc::new(read_served(endpoint).await?);
    SERVED.with(|cache| {
        if let Ok(mut cache) = cache.try_borrow_mut() {
            *cache = Some(CachedServed { endpoint: endpoint.clone(), read_ns, served: Rc::clone(&served) });
        }
    });
    Ok(served)
}

fn cached(endpoint: &Endpoint) -> Option<Rc<Served>> {
    SERVED.with(|cache| {
        let cache = cache.try_borrow().ok()?;
        let cached = cache.as_ref().filter(|cached| cached.endpoint == *endpoint)?;
        let age = monotonic_ns().saturating_sub(cached.read_ns);
        (age < SERVED_TTL_NS).then(|| Rc::clone(&cached.served))
    })
}

async fn read_served(endpoint: &Endpoint) -> Result<Served, BusError> {
    let request = || jetstream::last_by_subject(WORKERS_SUBJECTS);
    let reused = match idle(endpoint) {
        // One that died while it waited is no reason to fail.
        Some(mut connection) => {
            connection.direct_get(WORKERS_STREAM, request()).await.ok().map(|batch| (connection, batch))
        }
        None => None,
    };
    let (connection, batch) = match reused {
        Some(read) => read,
        None => {
            let mut connection = Connection::open(endpoint).await?;
            let batch = connection.direct_get(WORKERS_STREAM, request()).await?;
            (connection, batch)
        }
    };
    give_back(endpoint, connection);
    let heartbeats = batch.into_payloads();
    Ok(Served::read(heartbeats.iter().map(|h| &h[..]), |reason| log("heartbeats", reason)))
}
