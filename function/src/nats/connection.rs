//! A NATS connection: the handshake, then messages out and in.

use std::borrow::Cow;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use emberline_protocol::error::ApiError;
use emberline_protocol::jetstream_domain::JetStreamDomain;
use emberline_protocol::size::max_message;
use emberline_protocol::subject::inbox_prefix;
use rustls::ClientConfig;
use watermelon_proto::headers::HeaderMap;
use watermelon_proto::proto::{ClientOp, ServerOp};
use watermelon_proto::{MessageBase, ServerInfo, ServerMessage, StatusCode, Subject, SubscriptionId};

use super::address::ServerUrl;
use super::codec::{CodecError, Decoder, encode};
use super::credentials::{InvalidCredentials, Refusal};
use super::handshake::{self, Unsuitable};
use super::jetstream::{self, Batch, BatchError, PublishError};
use super::round_trip::{Answer, Reply, Request, RoundTrip};
use super::tls::{TlsError, TlsStream};
use super::transport;
use crate::nats::NatsEndpoint;
use crate::platform::{ByteStream, Closed, Host};

/// Longest time to connect and to wait for the server's own reply, together.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(2);
const INBOX: SubscriptionId = SubscriptionId::MIN;

/// Why NATS can't be used. Only the log sees the reason.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages are the documentation
pub enum BusError {
    #[error(
        "no connection to NATS at {0}: {1}; check that nats-server runs there and that the host allows it (with Spin: \
         allowed_outbound_hosts)"
    )]
    Connect(ServerUrl, String),
    #[error("no connection to NATS at {0}: {1}")]
    Tls(ServerUrl, TlsError),
    #[error("{0}")]
    Denied(Refusal),
    #[error(transparent)]
    Credentials(#[from] InvalidCredentials),
    #[error("no server answered a moment ago; wait half a second before the next attempt")]
    Resting,
    #[error("NATS did not answer in time: {0}")]
    Timeout(&'static str),
    #[error("no worker answered in time")]
    Silence,
    #[error("NATS closed the connection")]
    Closed,
    #[error("what NATS sent can't be decoded: {0}")]
    Codec(#[from] CodecError),
    #[error("NATS refused: {0}")]
    Refused(String),
    #[error(transparent)]
    Unsuitable(#[from] Unsuitable),
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error("{0}")]
    Record(String),
    #[error("this server's replica of a record lags behind the stream's leader; check `nats stream info`")]
    Outdated,
    #[error("the request is larger than the server's max_payload")]
    TooLarge,
    #[error("'{0}' is not a valid subject")]
    Subject(String),
    #[error("nobody listens on '{0}'")]
    NoResponders(Subject),
}

impl From<&BusError> for ApiError {
    fn from(error: &BusError) -> Self {
        match error {
            BusError::Publish(error) => Self::from(error),
            _ => jetstream::bus_unavailable(),
        }
    }
}

/// Parses a subject.
pub fn subject(text: String) -> Result<Subject, BusError> {
    Subject::try_from(text.clone()).map_err(|_| BusError::Subject(text))
}

/// An authenticated connection.
pub struct Connection {
    host: Host,
    stream: Box<dyn ByteStream>,
    unsent: Vec<u8>,
    decoder: Decoder,
    /// Largest message that the server and the others read.
    max_payload: usize,
    /// The domain in which the streams are.
    domain: JetStreamDomain,
    inbox: String,
    last_id: u64,
}

impl Connection {
    /// Connects to one of the endpoint's servers, and checks that Emberline can use it. `tls` is for those whose address
    /// wants it.
    pub async fn open(
        host: &Host,
        endpoint: &NatsEndpoint,
        server: &ServerUrl,
        tls: Option<Arc<ClientConfig>>,
    ) -> Result<Self, BusError> {
        let servers = u32::try_from(endpoint.servers.len()).unwrap_or(u32::MAX);
        let limit = REPLY_TIMEOUT.checked_div(servers).unwrap_or_default();
        let opened = host.within(limit, Self::open_unlimited(host, endpoint, server, tls)).await;
        let silent = || handshake::no_beginning("it sends nothing", endpoint, server);
        opened.unwrap_or_else(|| Err(BusError::Connect(server.clone(), silent())))
    }

    async fn open_unlimited(
        host: &Host,
        endpoint: &NatsEndpoint,
        server: &ServerUrl,
        tls: Option<Arc<ClientConfig>>,
    ) -> Result<Self, BusError> {
        let stream = transport::open(host, server).await;
        let stream = stream.map_err(|reason| BusError::Connect(server.clone(), reason))?;
        let mut connection = Self {
            host: host.clone(),
            stream,
            unsent: Vec::new(),
            decoder: Decoder::default(),
            max_payload: 0,
            domain: endpoint.domain.clone(),
            inbox: format!("{}.{:032x}", inbox_prefix(&endpoint.credentials.user), host.random_u128()),
            last_id: INBOX.into(),
        };
        let (tls_before, tls_after) = if endpoint.tls.handshake_first { (tls, None) } else { (None, tls) };
        if let Some(config) = tls_before {
            connection = connection.start_tls(endpoint, server, config).await?;
        }
        let info = match connection.next_op().await {
            Ok(ServerOp::Info { info }) => info,
            Err(BusError::Closed) => {
                let reason = handshake::no_beginning("it closes the connection", endpoint, server);
                return Err(BusError::Connect(server.clone(), reason));
            }
            Err(error) => return Err(error),
            Ok(other) => return Err(BusError::Refused(format!("{other:?} instead of INFO"))),
        };
        handshake::check(&info, &endpoint.domain, server.scheme)?;
        if let Some(config) = tls_after {
            connection = connection.start_tls(endpoint, server, config).await?;
        }
        connection.queue(&handshake::connect(&endpoint.credentials, info.nonce.as_deref())?);
        connection.subscribe(INBOX, subject(format!("{}.*", connection.inbox))?);
        match connection.confirm().await {
            Ok(()) => Ok(connection),
            Err(BusError::Refused(reason)) => {
                let unix_s = host.unix_ms().div_euclid(1000);
                Err(BusError::Denied(endpoint.credentials.refused(reason, unix_s)))
            }
            Err(error) => Err(error),
        }
    }

    /// The same connection with TLS around all that follows.
    async fn start_tls(
        self,
        endpoint: &NatsEndpoint,
        server: &ServerUrl,
        config: Arc<ClientConfig>,
    ) -> Result<Self, BusError> {
        let failed = |error| BusError::Tls(server.clone(), error);
        // What came in clear text after INFO could be anybody's.
        if !self.decoder.is_empty() {
            return Err(BusError::Refused("clear text after INFO instead of a TLS handshake".to_owned()));
        }
        let name = endpoint.tls.name_of(&server.host).map_err(failed)?;
        let stream = TlsStream::handshake(self.stream, config, name).await.map_err(failed)?;
        Ok(Self { stream: Box::new(stream), ..self })
    }

    /// Largest message to publish, headers included: the server takes it, and whoever it is for reads it.
    pub fn max_payload(&self) -> usize {
        self.max_payload
    }

    /// How many received bytes wait for the rest of their message.
    pub fn buffered(&self) -> usize {
        self.decoder.buffered()
    }

    fn on_info(&mut self, info: &ServerInfo) {
        let max_payload = usize::try_from(info.max_payload.get()).unwrap_or(usize::MAX);
        self.max_payload = max_message(max_payload);
        self.decoder.set_max_payload(max_payload);
    }

    /// A number that this connection has not used yet, for a subscription or a reply subject.
    fn next_id(&mut self) -> u64 {
        self.last_id = self.last_id.saturating_add(1);
        self.last_id
    }

    /// A subject on which the reply to one request comes.
    pub fn new_inbox(&mut self) -> Result<Subject, BusError> {
        let id = self.next_id();
        subject(format!("{}.{id}", self.inbox))
    }

    /// Subscribes under an id of its own.
    pub fn new_subscription(&mut self, subject: Subject) -> SubscriptionId {
        let id = SubscriptionId::from(self.next_id());
        self.subscribe(id, subject);
        id
    }

    fn subscribe(&mut self, id: SubscriptionId, subject: Subject) {
        self.queue(&ClientOp::Subscribe { id, subject, queue_group: None });
    }

    /// Ends a subscription.
    pub fn unsubscribe(&mut self, id: SubscriptionId) {
        self.queue(&ClientOp::Unsubscribe { id, max_messages: None });
    }

    /// Publishes a message with headers of its own. A request to JetStream or a write to a bucket goes to the domain
    /// of the streams.
    pub fn publish(&mut self, mut message: MessageBase) {
        let in_domain = match self.domain.subject(message.subject.as_str()) {
            Cow::Borrowed(_) => None,
            Cow::Owned(subject) => Subject::try_from(subject).ok(),
        };
        message.subject = in_domain.unwrap_or(message.subject);
        self.queue(&ClientOp::Publish { message });
    }

    /// Publishes a message without headers, to be answered on `reply_subject`.
    pub fn request(&mut self, subject: Subject, reply_subject: Option<Subject>, payload: impl Into<Bytes>) {
        self.publish(MessageBase {
            subject,
            reply_subject,
            headers: HeaderMap::new(),
            payload: payload.into(),
        });
    }

    fn queue(&mut self, op: &ClientOp) {
        self.unsent.extend_from_slice(&encode(op));
    }

    /// Sends what is queued and waits for the next message; stopping to poll loses nothing.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<ServerMessage, BusError>> {
        loop {
            match self.poll_op(cx) {
                Poll::Ready(Ok(ServerOp::Message { message })) => return Poll::Ready(Ok(message)),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    async fn next_op(&mut self) -> Result<ServerOp, BusError> {
        poll_fn(|cx| self.poll_op(cx)).await
    }

    fn poll_op(&mut self, cx: &mut Context<'_>) -> Poll<Result<ServerOp, BusError>> {
        loop {
            match self.decoder.decode()? {
                Some(ServerOp::Ping) => self.queue(&ClientOp::Pong),
                Some(ServerOp::Error { error }) => {
                    return Poll::Ready(Err(BusError::Refused(error.to_string())));
                }
                Some(op) => {
                    if let ServerOp::Info { info } = &op {
                        self.on_info(info);
                    }
                    return Poll::Ready(Ok(op));
                }
                None => {
                    if self.poll_flush(cx) == Poll::Ready(Err(Closed)) && self.decoder.is_empty() {
                        return Poll::Ready(Err(BusError::Closed));
                    }
                    let decoder = &mut self.decoder;
                    match self.stream.poll_read(cx, &mut |bytes| decoder.feed(bytes)) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(_)) => return Poll::Ready(Err(BusError::Closed)),
                        Poll::Pending => return Poll::Pending,
                    }
                }
            }
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        self.stream.poll_flush(cx, &mut self.unsent)
    }

    /// Sends what is queued.
    pub async fn flush(&mut self) -> Result<(), BusError> {
        poll_fn(|cx| self.poll_flush(cx)).await.map_err(|_| BusError::Closed)
    }

    /// Sends `question` to the subscribers of its subject and waits for the reply, at most `limit`. The server
    /// itself has [`REPLY_TIMEOUT`] to say whether there is a subscriber.
    pub async fn ask(&mut self, question: MessageBase, limit: Duration) -> Result<ServerMessage, BusError> {
        let inbox = self.new_inbox()?;
        let subject = question.subject.clone();
        self.publish(MessageBase { reply_subject: Some(inbox.clone()), ..question });
        self.queue(&ClientOp::Ping);
        let host = self.host.clone();
        let first = host.within(REPLY_TIMEOUT, self.next_op()).await;
        let mut op = first.unwrap_or(Err(BusError::Timeout("asking a worker")))?;
        let reply = async {
            loop {
                match op {
                    ServerOp::Message { message } if message.base.subject == inbox => return Ok(message),
                    _ => op = self.next_op().await?,
                }
            }
        };
        let message = host.within(limit, reply).await.unwrap_or(Err(BusError::Silence))?;
        match message.status_code {
            Some(StatusCode::NO_RESPONDERS) => Err(BusError::NoResponders(subject)),
            _ => Ok(message),
        }
    }

    /// Sends all requests at once and waits for their answers, which come in the requests' order.
    pub async fn round_trip(&mut self, requests: &[Request]) -> Result<Vec<Answer>, BusError> {
        let host = self.host.clone();
        let mut round = RoundTrip::default();
        for request in requests {
            let inbox = self.new_inbox()?;
            let message = round.ask(request.clone(), inbox);
            self.publish(message);
        }
        let answers = async {
            while !round.is_complete() {
                round.push(poll_fn(|cx| self.poll_message(cx)).await?);
            }
            Ok(round.into_answers())
        };
        host.within(REPLY_TIMEOUT, answers).await.unwrap_or(Err(BusError::Timeout("an answer")))
    }

    /// Sends what is queued and waits until the server has read it. Without that, a connection that is dropped may take
    /// it along: it can still lie in the host.
    pub async fn confirm(&mut self) -> Result<(), BusError> {
        self.queue(&ClientOp::Ping);
        while !matches!(self.next_op().await?, ServerOp::Pong) {}
        Ok(())
    }

    /// Sends all requests and waits for no answer.
    pub async fn send(&mut self, requests: &[Request]) -> Result<(), BusError> {
        for Request { subject, headers, payload, .. } in requests.iter().cloned() {
            self.publish(MessageBase { subject, reply_subject: None, headers, payload });
        }
        self.flush().await
    }

    /// Reads stored messages by one direct get.
    pub async fn direct_get(&mut self, stream: &str, request: Bytes) -> Result<Batch, BusError> {
        let request = Request {
            subject: direct_get_subject(stream)?,
            headers: HeaderMap::new(),
            payload: request,
            reply: Reply::Batch,
        };
        match self.round_trip(&[request]).await?.pop() {
            Some(Answer::Batch(batch)) => Ok(batch?),
            _ => Ok(Batch::default()),
        }
    }

    /// Makes the connection ready to wait for another request; whether that is possible. It is not in the
    /// middle of a message, nor where the server waits for an answer or has announced that it will close.
    pub fn park(&mut self) -> bool {
        let decoder = &mut self.decoder;
        self.stream.park(&mut |bytes| decoder.feed(bytes)).is_ok() && decoder.discard_stale()
    }
}

/// Where a stream takes direct gets.
pub fn direct_get_subject(stream: &str) -> Result<Subject, BusError> {
    subject(format!("$JS.API.DIRECT.GET.{stream}"))
}
