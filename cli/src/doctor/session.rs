//! A connection to NATS as the user whose access is checked.

use std::error::Error as _;

use async_nats::{ConnectErrorKind, Event, ServerAddr, ServerError};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::report::Check;
use super::server::ServerInfo;
use crate::nats::access::{NatsAccess, NatsConnection};

/// A connection, and the errors that nats-server reports on it.
pub(super) struct Session {
    pub(super) nats: NatsConnection,
    pub(super) errors: UnboundedReceiver<String>,
}

/// Logs in at one server.
pub(super) async fn log_in(
    access: &NatsAccess,
    server: &ServerAddr,
    info: &ServerInfo,
) -> Result<Session, Check> {
    let (sender, errors) = unbounded_channel();
    let options = access.options().ignore_discovered_servers().event_callback(move |event| {
        let sender = sender.clone();
        async move {
            if let Event::ServerError(ServerError::Other(error)) = event {
                // Fails only when nobody looks at errors any more.
                let _ = sender.send(error);
            }
        }
    });
    match options.connect(server.clone()).await {
        Ok(client) => Ok(Session { nats: NatsConnection::unchecked(client, access), errors }),
        Err(error) => {
            let detail = error.source().map(ToString::to_string).unwrap_or_default();
            Err(judge(access.user(), error.kind(), &detail, info.tls_verify))
        }
    }
}

/// Why somebody can't log in; `asks_certificate` is whether the server asks clients for certificates.
fn judge(user: &str, kind: ConnectErrorKind, detail: &str, asks_certificate: bool) -> Check {
    const NAME: &str = "login";
    match kind {
        ConnectErrorKind::AuthorizationViolation => Check::fault(
            NAME,
            format!("nats-server refuses the user {user}"),
            "the password, token or key is not that of the user, the user does not exist in nats-server's configuration, \
             or its JWT has expired; its log says which. `emberline nats user add` prints new ones",
        ),
        ConnectErrorKind::Authentication => Check::fault(
            NAME,
            format!("the server's challenge can't be signed: {detail}"),
            "look whether the key or credentials file is complete",
        ),
        ConnectErrorKind::Tls | ConnectErrorKind::Io if asks_certificate => Check::fault(
            NAME,
            format!("the server asks for a client certificate, and takes none or not this one: {detail}"),
            "give --nats-client-certificate and --nats-client-key, issued by the authority that nats-server's `tls` names",
        ),
        ConnectErrorKind::TimedOut => Check::fault(
            NAME,
            "nats-server does not answer to the login in time",
            "look whether it is overloaded, and whether something on the way holds messages back",
        ),
        other => Check::fault(
            NAME,
            format!(
                "connecting as {user} fails: {other}{}{detail}",
                if detail.is_empty() { "" } else { ": " }
            ),
            "nats-server's log has the other side of it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_login_is_explained() {
        for (kind, asks_certificate, words) in [
            (ConnectErrorKind::AuthorizationViolation, false, "refuses the user worker"),
            (ConnectErrorKind::Authentication, false, "can't be signed: no seed"),
            (ConnectErrorKind::Io, true, "client certificate"),
            (ConnectErrorKind::Io, false, "fails: IO error: no seed"),
            (ConnectErrorKind::TimedOut, false, "in time"),
        ] {
            let check = judge("worker", kind, "no seed", asks_certificate);
            assert!(check.is_fault() && check.finding.contains(words), "{check:?}");
        }
    }
}
