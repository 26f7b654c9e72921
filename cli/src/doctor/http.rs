//! Asking servers by HTTP, and why one can't be asked.

use std::io;
use std::time::Duration;

use ureq::Agent;

use super::report::Check;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long anything but an answer of a model may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

const AT_NAME: &str = "write the name as it is in DNS; inside a container or cluster other names are known";
const AT_CERTIFICATE: &str =
    "look at the certificate of what answers there; the checks before this one judge it";

/// A client for which each status is an answer.
pub(super) fn agent() -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(ANSWER_TIMEOUT));
    config.build().into()
}

/// The beginning of a body, for people to recognise.
pub(super) fn beginning(body: &str) -> String {
    body.trim().chars().take(80).collect()
}

/// The fault that nothing answers at `url`, which is that of `what`.
pub(super) fn unreachable(name: &'static str, what: &str, url: &str, error: &ureq::Error) -> Check {
    let no_name =
        |detail: String| (format!("there is no address for the name in {url}{detail}"), AT_NAME.to_owned());
    let (finding, remedy) = match error {
        ureq::Error::Timeout(_) => (
            format!("{url} does not answer in time"),
            format!("look at {what} and at what lies before it; firewalls drop packets silently"),
        ),
        ureq::Error::HostNotFound => no_name(String::new()),
        // What the system's resolver says.
        ureq::Error::Io(io) if io.to_string().contains("failed to lookup address") => {
            no_name(format!(": {io}"))
        }
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => {
            (format!("{url}: TLS fails: {error}"), AT_CERTIFICATE.to_owned())
        }
        // What rustls says of a certificate.
        ureq::Error::Io(io) if io.kind() == io::ErrorKind::InvalidData => {
            (format!("{url}: TLS fails: {error}"), AT_CERTIFICATE.to_owned())
        }
        _ => (
            format!("nothing answers at {url}: {error}"),
            format!("start {what} there, or look at the URL's scheme and port, and at firewalls"),
        ),
    };
    Check::fault(name, finding, remedy)
}
