//! What the requests of an instance share: idle connections, the newest heartbeats, and the
//! records of keys that were used a moment ago.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::thread::LocalKey;

use emberline_protocol::key::KeyRecord;
use emberline_protocol::subject::{KEYS_STREAM, WORKERS_STREAM, WORKERS_SUBJECTS};
use watermelon_proto::headers::HeaderMap;

use super::clock::{monotonic_ns, within};
use super::connection::{BusError, Connection, REPLY_TIMEOUT, direct_get_subject, subject};
use super::log;
use crate::access::caller::{Credential, read_record};
use crate::admission::served_models::Served;
use crate::cache::Cache;
use crate::config::Endpoint;
use crate::nats::jetstream;
use crate::nats::pool::Pool;
use crate::nats::round::{Answer, Reply, Request};
use crate::nats::servers::Servers;

/// How long heartbeats are believed without asking again, in nanoseconds.
const SERVED_TTL_NS: u64 = 1_000_000_000;
/// The same for a key's record. A revoked key is refused everywhere within 2 s.
const KEY_TTL_NS: u64 = 1_500_000_000;
/// Most keys, known and unknown ones, that an instance remembers.
const MAX_KEYS: usize = 1024;

type Remembered<K, V> = RefCell<Cache<K, V>>;

thread_local! {
    static POOL: RefCell<Pool<Endpoint, Connection>> = const { RefCell::new(Pool::new()) };
    static SERVERS: RefCell<Servers<Endpoint>> = const { RefCell::new(Servers::new()) };
    static SERVED: Remembered<Endpoint, Rc<Served>> = RefCell::new(Cache::new(1, SERVED_TTL_NS));
    static KEYS: Remembered<(Endpoint, Credential), Option<KeyRecord>> =
        RefCell::new(Cache::new(MAX_KEYS, KEY_TTL_NS));
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

/// A new connection, to the server that worked last or to another one; an error at once if there was
/// none to be had a moment ago.
pub(super) async fn connect_unless_resting(endpoint: &Endpoint) -> Result<Connection, BusError> {
    let rests = |servers: &RefCell<Servers<Endpoint>>| {
        servers.try_borrow().is_ok_and(|servers| servers.rests(endpoint, monotonic_ns()))
    };
    if SERVERS.with(rests) { Err(BusError::Resting) } else { connect(endpoint).await }
}

/// The same for who can wait.
pub(super) async fn connect(endpoint: &Endpoint) -> Result<Connection, BusError> {
    let order = SERVERS.with(|servers| {
        let servers = servers.try_borrow().ok()?;
        Some(servers.order(endpoint, endpoint.servers.len()).collect::<Vec<_>>())
    });
    let mut failure = BusError::Closed;
    for place in order.unwrap_or_default() {
        let Some(server) = endpoint.servers.get(place) else { continue };
        match Connection::open(endpoint, *server).await {
            Ok(connection) => {
                learn(|servers| servers.worked(endpoint, place));
                return Ok(connection);
            }
            Err(error) => failure = error,
        }
    }
    rest(endpoint);
    Err(failure)
}

/// Has everybody refused at once for a moment: nobody answers. Connections that wait are of no use.
pub(super) fn rest(endpoint: &Endpoint) {
    learn(|servers| servers.failed(endpoint, monotonic_ns()));
    POOL.with(|pool| {
        if let Ok(mut pool) = pool.try_borrow_mut() {
            pool.clear();
        }
    });
}

fn learn(learn: impl FnOnce(&mut Servers<Endpoint>)) {
    SERVERS.with(|servers| {
        if let Ok(mut servers) = servers.try_borrow_mut() {
            learn(&mut servers);
        }
    });
}

/// Waits for NATS no longer than it may take.
async fn in_time<T>(
    endpoint: &Endpoint,
    what: &'static str,
    work: impl Future<Output = Result<T, BusError>>,
) -> Result<T, BusError> {
    let done = within(REPLY_TIMEOUT, work).await.unwrap_or(Err(BusError::Timeout(what)));
    if matches!(done, Err(BusError::Timeout(_))) {
        rest(endpoint);
    }
    done
}

/// Sends all requests at once and waits for their answers, which come in the requests' order.
pub(super) async fn round(endpoint: &Endpoint, requests: &[Request]) -> Result<Vec<Answer>, BusError> {
    in_time(endpoint, "an answer", round_unlimited(endpoint, requests)).await
}

async fn round_unlimited(endpoint: &Endpoint, requests: &[Request]) -> Result<Vec<Answer>, BusError> {
    let reused = match idle(endpoint) {
        Some(mut connection) => match connection.round(requests).await {
            // One that died while it waited is no reason to fail.
            Err(BusError::Closed | BusError::Refused(_)) => None,
            answers => Some((connection, answers?)),
        },
        None => None,
    };
    let (connection, answers) = match reused {
        Some(answered) => answered,
        None => {
            let mut connection = connect_unless_resting(endpoint).await?;
            let answers = connection.round(requests).await?;
            (connection, answers)
        }
    };
    give_back(endpoint, connection);
    Ok(answers)
}

/// Sends all requests and waits for no answer.
pub(super) async fn send(endpoint: &Endpoint, requests: &[Request]) -> Result<(), BusError> {
    let sent = async {
        let mut connection = match idle(endpoint) {
            Some(connection) => connection,
            None => connect_unless_resting(endpoint).await?,
        };
        connection.send(requests).await?;
        give_back(endpoint, connection);
        Ok(())
    };
    in_time(endpoint, "sending", sent).await
}

/// Asks a stream for the last messages on subjects that `filters` cover.
pub(super) fn last_of<S: AsRef<str>>(
    stream: &str,
    filters: impl IntoIterator<Item = S>,
) -> Result<Request, BusError> {
    let payload = jetstream::last_by_subject(filters);
    let subject = direct_get_subject(stream)?;
    Ok(Request { subject, headers: HeaderMap::new(), payload, reply: Reply::Batch })
}

/// What is served now. Also leaves a living connection in the pool, unless it comes from the cache.
pub(super) async fn served(endpoint: &Endpoint) -> Result<Rc<Served>, BusError> {
    if let Some(served) = recall(&SERVED, endpoint) {
        return Ok(served);
    }
    let asked_ns = monotonic_ns();
    let answers = round(endpoint, &[last_of(WORKERS_STREAM, [WORKERS_SUBJECTS])?]).await?;
    Ok(remember_served(endpoint, asked_ns, answers.into_iter().next()))
}

fn remember_served(endpoint: &Endpoint, asked_ns: u64, answer: Option<Answer>) -> Rc<Served> {
    let heartbeats = match answer {
        Some(Answer::Batch(batch)) => batch.into_payloads(),
        _ => Vec::new(),
    };
    let served = Served::read(heartbeats.iter().map(|h| &h[..]), |reason| log("heartbeats", reason));
    let served = Rc::new(served);
    remember(&SERVED, endpoint.clone(), asked_ns, Rc::clone(&served));
    served
}

/// A key's record, if it has one. The heartbeats, which most endpoints need next, come along.
pub(super) async fn key(endpoint: &Endpoint, key: Credential) -> Result<Option<KeyRecord>, BusError> {
    let cache_key = (endpoint.clone(), key);
    if let Some(record) = recall(&KEYS, &cache_key) {
        return Ok(record);
    }
    let asked_ns = monotonic_ns();
    let mut requests = vec![Request {
        subject: subject(format!("$JS.API.DIRECT.GET.{KEYS_STREAM}.{}", key.subject()))?,
        headers: HeaderMap::new(),
        payload: bytes::Bytes::new(),
        reply: Reply::Message,
    }];
    if recall(&SERVED, endpoint).is_none() {
        requests.push(last_of(WORKERS_STREAM, [WORKERS_SUBJECTS])?);
    }
    let mut answers = round(endpoint, &requests).await?.into_iter();
    let stored = match answers.next() {
        Some(Answer::Message(message)) => jetstream::read_stored(*message)?,
        _ => None,
    };
    if let Some(heartbeats) = answers.next() {
        remember_served(endpoint, asked_ns, Some(heartbeats));
    }
    let record = stored.map(|payload| read_record(&payload)).transpose()?;
    remember(&KEYS, cache_key, asked_ns, record.clone());
    Ok(record)
}

fn recall<K: Eq + std::hash::Hash, V: Clone>(
    cache: &'static LocalKey<Remembered<K, V>>,
    key: &K,
) -> Option<V> {
    cache.with(|cache| cache.try_borrow().ok()?.get(key, monotonic_ns()))
}

fn remember<K: Eq + std::hash::Hash, V: Clone>(
    cache: &'static LocalKey<Remembered<K, V>>,
    key: K,
    asked_ns: u64,
    value: V,
) {
    cache.with(|cache| {
        if let Ok(mut cache) = cache.try_borrow_mut() {
            cache.put(key, asked_ns, value);
        }
    });
}
