//! NATS as the requests of an instance use it: connections that are reused, and requests with a limit of time.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use watermelon_proto::headers::HeaderMap;

use super::address::{Scheme, ServerUrl};
use super::connection::{BusError, Connection, REPLY_TIMEOUT, direct_get_subject};
use super::handshakes::Handshakes;
use super::jetstream;
use super::pool::Pool;
use super::round_trip::{Answer, Reply, Request};
use super::servers::Servers;
use super::tls::{TlsError, TlsSettings};
use crate::nats::NatsEndpoint;
use crate::platform::Host;

/// After how long a request looks whether its turn to connect has come; twice as long each time after that. No request
/// can wake another.
const FIRST_LOOK: Duration = Duration::from_millis(2);
/// The longest pause between two looks.
const LAST_LOOK: Duration = Duration::from_millis(20);

/// What the requests of an instance share: idle connections, which server to try first, and who may connect.
#[derive(Default)]
pub struct Connections {
    pool: RefCell<Pool<NatsEndpoint, Connection>>,
    servers: RefCell<Servers<NatsEndpoint>>,
    handshakes: RefCell<Handshakes>,
    /// TLS as it was set up last: it remembers sessions.
    tls: RefCell<Option<(TlsSettings, Arc<ClientConfig>)>>,
}

impl Connections {
    fn tls(&self, settings: &TlsSettings) -> Result<Arc<ClientConfig>, TlsError> {
        let mut known = self.tls.try_borrow_mut().ok();
        if let Some(Some((of, config))) = known.as_deref()
            && of == settings
        {
            return Ok(Arc::clone(config));
        }
        let config = settings.client_config()?;
        if let Some(known) = known.as_deref_mut() {
            *known = Some((settings.clone(), Arc::clone(&config)));
        }
        Ok(config)
    }
}

/// A handshake that has begun. Dropping it makes room for the next one.
struct Turn {
    connections: Rc<Connections>,
    number: u64,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Ok(mut handshakes) = self.connections.handshakes.try_borrow_mut() {
            handshakes.end(self.number);
        }
    }
}

/// NATS for one request.
#[derive(Clone)]
pub struct Bus {
    host: Host,
    endpoint: Rc<NatsEndpoint>,
    connections: Rc<Connections>,
}

impl Bus {
    /// NATS at `endpoint`, by connections that others may have made.
    pub fn new(host: Host, endpoint: NatsEndpoint, connections: Rc<Connections>) -> Self {
        Self { host, endpoint: Rc::new(endpoint), connections }
    }

    /// The host that sockets, clocks and tasks come from.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The servers, and the user that we are there.
    pub fn endpoint(&self) -> &NatsEndpoint {
        &self.endpoint
    }

    /// An idle connection, if there is one.
    pub fn idle(&self) -> Option<Connection> {
        self.connections.pool.try_borrow_mut().ok()?.take(&self.endpoint, self.host.monotonic_ns())
    }

    /// Keeps `connection` for the next request, if nothing is pending on it.
    pub fn give_back(&self, mut connection: Connection) {
        if connection.park()
            && let Ok(mut pool) = self.connections.pool.try_borrow_mut()
        {
            pool.put(&self.endpoint, self.host.monotonic_ns(), connection);
        }
    }

    /// A new connection, to the server that worked last or to another one; an error at once if no server
    /// could be reached a moment ago. With TLS it may have to wait for its turn, and then it may be one that another
    /// request has given back meanwhile.
    pub async fn connect_unless_resting(&self) -> Result<Connection, BusError> {
        self.refuse_while_resting()?;
        if !self.endpoint.servers.iter().any(|server| server.scheme == Scheme::Tls) {
            return self.connect().await;
        }
        if let Some(_turn) = self.turn() {
            return self.connect().await;
        }
        let connected = self.host.within(REPLY_TIMEOUT, self.connect_in_turn()).await;
        connected.unwrap_or(Err(BusError::Timeout("a connection")))
    }

    async fn connect_in_turn(&self) -> Result<Connection, BusError> {
        let since_ns = self.host.monotonic_ns();
        let mut look = FIRST_LOOK;
        loop {
            self.host.sleep(look).await;
            look = look.saturating_mul(2).min(LAST_LOOK);
            self.refuse_while_resting()?;
            let now_ns = self.host.monotonic_ns();
            let pool = self.connections.pool.try_borrow_mut().ok();
            if let Some(connection) =
                pool.and_then(|mut pool| pool.take_newer(&self.endpoint, now_ns, since_ns))
            {
                return Ok(connection);
            }
            if let Some(_turn) = self.turn() {
                return self.connect().await;
            }
        }
    }

    fn refuse_while_resting(&self) -> Result<(), BusError> {
        let now_ns = self.host.monotonic_ns();
        let servers = self.connections.servers.try_borrow();
        let rests = servers.is_ok_and(|servers| servers.rests(&self.endpoint, now_ns));
        if rests { Err(BusError::Resting) } else { Ok(()) }
    }

    fn turn(&self) -> Option<Turn> {
        let number = self.connections.handshakes.try_borrow_mut().ok()?.begin(self.host.monotonic_ns())?;
        Some(Turn { connections: Rc::clone(&self.connections), number })
    }

    /// The same for callers that can wait.
    pub async fn connect(&self) -> Result<Connection, BusError> {
        let order: Vec<usize> = match self.connections.servers.try_borrow() {
            Ok(servers) => servers.order(&self.endpoint, self.endpoint.servers.len()).collect(),
            Err(_) => Vec::new(),
        };
        let mut failure = BusError::Closed;
        for place in order {
            let Some(server) = self.endpoint.servers.get(place) else { continue };
            match self.connect_to(server).await {
                Ok(connection) => {
                    if let Ok(mut servers) = self.connections.servers.try_borrow_mut() {
                        servers.worked(&self.endpoint, place);
                    }
                    return Ok(connection);
                }
                Err(error) => failure = error,
            }
        }
        self.rest();
        Err(failure)
    }

    async fn connect_to(&self, server: &ServerUrl) -> Result<Connection, BusError> {
        let tls = match server.scheme {
            Scheme::Tls => {
                let config = self.connections.tls(&self.endpoint.tls);
                Some(config.map_err(|error| BusError::Tls(server.clone(), error))?)
            }
            Scheme::Nats | Scheme::Http | Scheme::Https => None,
        };
        Connection::open(&self.host, &self.endpoint, server, tls).await
    }

    /// Makes all requests fail at once for a moment, since no server answers. Idle connections are dropped.
    pub fn rest(&self) {
        if let Ok(mut servers) = self.connections.servers.try_borrow_mut() {
            servers.failed(&self.endpoint, self.host.monotonic_ns());
        }
        if let Ok(mut pool) = self.connections.pool.try_borrow_mut() {
            pool.clear();
        }
    }

    /// Does `work` over an idle connection if there is one, else over a new one. It may be done twice, since
    /// an idle connection may have died.
    pub async fn with_connection<T>(
        &self,
        work: impl AsyncFn(&mut Connection) -> Result<T, BusError>,
    ) -> Result<T, BusError> {
        let reused = match self.idle() {
            Some(mut connection) => match work(&mut connection).await {
                Err(BusError::Closed | BusError::Refused(_)) => None,
                done => Some((connection, done)),
            },
            None => None,
        };
        let (connection, done) = match reused {
            Some(reused) => reused,
            None => {
                let mut connection = self.connect_unless_resting().await?;
                let done = work(&mut connection).await;
                (connection, done)
            }
        };
        match &done {
            Ok(_) | Err(BusError::NoResponders(_)) => self.give_back(connection),
            Err(BusError::Timeout(_)) => self.rest(),
            Err(_) => {}
        }
        done
    }

    /// Sends all requests at once and waits for their answers, which come in the requests' order.
    pub async fn round_trip(&self, requests: &[Request]) -> Result<Vec<Answer>, BusError> {
        let asked = self.with_connection(async |connection| connection.round_trip(requests).await);
        self.in_time("an answer", asked).await
    }

    /// Sends all requests and waits for no answer.
    pub async fn send(&self, requests: &[Request]) -> Result<(), BusError> {
        let sent = async {
            let mut connection = match self.idle() {
                Some(connection) => connection,
                None => self.connect_unless_resting().await?,
            };
            connection.send(requests).await?;
            self.give_back(connection);
            Ok(())
        };
        self.in_time("sending", sent).await
    }

    /// Waits for NATS at most [`REPLY_TIMEOUT`].
    async fn in_time<T>(
        &self,
        what: &'static str,
        work: impl Future<Output = Result<T, BusError>>,
    ) -> Result<T, BusError> {
        self.host.within(REPLY_TIMEOUT, work).await.unwrap_or_else(|| {
            self.rest();
            Err(BusError::Timeout(what))
        })
    }
}

/// A request to a stream for the messages on `subject` from stream sequence `from` on.
pub fn next_of(stream: &str, subject: &str, from: u64) -> Result<Request, BusError> {
    let payload = jetstream::next_by_subject(subject, from);
    let subject = direct_get_subject(stream)?;
    Ok(Request { subject, headers: HeaderMap::new(), payload, reply: Reply::Batch })
}

/// A request to a stream for the last message on each subject that `filters` cover.
pub fn last_of<S: AsRef<str>>(
    stream: &str,
    filters: impl IntoIterator<Item = S>,
) -> Result<Request, BusError> {
    let payload = jetstream::last_by_subject(filters);
    let subject = direct_get_subject(stream)?;
    Ok(Request { subject, headers: HeaderMap::new(), payload, reply: Reply::Batch })
}
