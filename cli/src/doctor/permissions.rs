//! Whether the user may do what its role has to do.
//!
//! nats-server tells a client of a denied publish or subscription, and of nothing that it allows. So each publish is
//! given a reply subject that is reserved for the servers themselves: nats-server looks at the permission first and at
//! the reply subject then, refuses the message for one or the other, and says for which. So nothing is delivered or
//! stored, whatever comes of it. A header names a stream that does not exist besides, so that no stream would store the
//! message either. That the server does refuse such messages is found out with requests that only read.
//!
//! A subscription is made and ended in one write. Where it can be, it is to a subject that nobody uses.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::HeaderMap;
use emberline_protocol::permissions::{Grant, Role};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout_at};

use super::report::Check;
use super::session::Session;
use crate::nats::access::NatsAccess;

const NAME: &str = "permissions";
/// What nats-server reserves for replies between accounts.
const RESERVED: &str = "_R_.emberline-doctor";
/// How long the server may take to refuse a batch.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// async-nats keeps as many events for a callback as 128, and drops what comes then.
const BATCH: usize = 50;
/// Stands for whatever a permission leaves open.
const ANY: &str = "doctor";
/// What none of Emberline's users may do, with a stream that does not exist.
const FORBIDDEN: &str = "$JS.API.STREAM.PURGE.doctor";
/// A request that only reads, whoever may make it.
const READING: &str = "$JS.API.STREAM.INFO.JOBS";

/// What was refused.
#[derive(Debug, Default)]
pub(super) struct Denied(BTreeSet<String>);

impl Denied {
    /// Whether publishing to `subject`, as in the role's table, was not refused.
    pub(super) fn allows(&self, subject: &str) -> bool {
        !self.0.contains(subject)
    }
}

/// Tries everything that `role` has to be able to do.
pub(super) async fn examine(session: &mut Session, access: &NatsAccess, role: &Role) -> (Vec<Check>, Denied) {
    let permissions = role.permissions(access.user()).in_domain(access.domain());
    let forbidden = access.domain().subject(FORBIDDEN).into_owned();
    let all = permissions.publish.iter().flat_map(|grant| grant.subjects.iter().cloned());
    let (reads, writes): (Vec<String>, Vec<String>) =
        all.chain([forbidden.clone()]).partition(|s| only_reads(s));
    let subscriptions: Vec<String> =
        permissions.subscribe.iter().flat_map(|grant| grant.subjects.iter().cloned()).collect();

    let mut tried = Tried::default();
    let untried = |why: &str| (vec![Check::skipped(NAME, why)], Denied::default());
    if !tried.subscribe(session, &subscriptions).await || !tried.publish(session, &reads).await {
        return untried("nats-server does not say what it refuses");
    }
    let (mut checks, mut writes_tried) = (Vec::new(), true);
    if tried.allowed == 0 {
        writes_tried = false;
    } else if !tried.publish(session, &writes).await {
        return untried("nats-server does not say what it refuses");
    }
    let user = access.user();
    for (verb, grants) in [("publish to", &permissions.publish), ("subscribe to", &permissions.subscribe)] {
        let denied = if verb == "publish to" { &tried.publishes } else { &tried.subscriptions };
        checks.extend(grants.iter().filter_map(|grant| lacking(user, verb, grant, denied)));
    }
    if writes_tried && !tried.publishes.contains(&forbidden) {
        checks.push(Check::warning(
            NAME,
            format!("{user} may do more than it has to: it may purge streams"),
            remedy(role),
        ));
    }
    if checks.is_empty() {
        let count = reads.len() + writes.len() + subscriptions.len() - 1;
        checks.push(Check::ok(NAME, format!("{user} has the {count} that it needs")));
    }
    let advise = |check: Check| Check { remedy: check.remedy.map(|_| remedy(role)), ..check };
    (checks.into_iter().map(advise).collect(), Denied(tried.publishes))
}

/// What is missing of a grant.
fn lacking(user: &str, verb: &str, grant: &Grant, denied: &BTreeSet<String>) -> Option<Check> {
    let missing: Vec<&str> =
        grant.subjects.iter().filter(|subject| denied.contains(*subject)).map(String::as_str).collect();
    let purpose = grant.purpose.trim_end_matches('.');
    let finding = format!("{user} may not {verb} {} ({purpose})", missing.join(", "));
    (!missing.is_empty()).then(|| Check::fault(NAME, finding, ""))
}

fn remedy(role: &Role) -> String {
    let name = match role {
        Role::Function => "function".to_owned(),
        Role::Worker => "worker".to_owned(),
        Role::WorkerPool(models) => format!("worker --models {}", models.join(",")),
        Role::Admin => "admin".to_owned(),
    };
    format!(
        "give the user the permissions of this release: those in deploy/nats.conf, or what `emberline nats user add \
         {name}` prints; then `nats-server --signal reload`"
    )
}

/// Whether a request changes nothing even if it were delivered.
fn only_reads(subject: &str) -> bool {
    [".STREAM.INFO.", ".CONSUMER.INFO.", ".CONSUMER.LIST.", ".DIRECT.GET.", ".STREAM.MSG.GET."]
        .iter()
        .any(|request| subject.contains(request))
}

/// A subject that a permission allows, and that means nothing to anybody.
fn concrete(granted: &str) -> String {
    let token = |token| if matches!(token, "*" | ">") { ANY } else { token };
    granted.split('.').map(token).collect::<Vec<_>>().join(".")
}

/// What came of all attempts so far.
#[derive(Debug, Default)]
struct Tried {
    /// Subjects, as in the role's table, that can't be published to.
    publishes: BTreeSet<String>,
    /// Those that can't be subscribed to.
    subscriptions: BTreeSet<String>,
    /// Number of publishes that were refused for their reply subject only.
    allowed: usize,
}

impl Tried {
    /// Whether all attempts were answered.
    async fn publish(&mut self, session: &mut Session, subjects: &[String]) -> bool {
        for batch in subjects.chunks(BATCH) {
            for (number, granted) in batch.iter().enumerate() {
                let mut headers = HeaderMap::new();
                headers.insert("Nats-Expected-Stream", "emberline-doctor-stores-nothing");
                let reply = format!("{RESERVED}.{number}");
                let sent = session.nats.publish_with_reply_and_headers(
                    concrete(granted),
                    reply,
                    headers,
                    Default::default(),
                );
                if sent.await.is_err() {
                    return false;
                }
            }
            let _ = session.nats.flush().await;
            if !self.read(&mut session.errors, batch, batch.len()).await {
                return false;
            }
        }
        true
    }

    /// Like [`Tried::publish`]: the answers have all come when that to a publish after them has.
    async fn subscribe(&mut self, session: &mut Session, subjects: &[String]) -> bool {
        for batch in subjects.chunks(BATCH) {
            for granted in batch {
                let Ok(mut subscription) = session.nats.subscribe(concrete(granted)).await else {
                    return false;
                };
                let _ = subscription.unsubscribe().await;
            }
            let fence = session.nats.publish_with_reply(READING, RESERVED, Default::default());
            if fence.await.is_err() {
                return false;
            }
            let _ = session.nats.flush().await;
            if !self.read(&mut session.errors, batch, 1).await {
                return false;
            }
        }
        true
    }

    /// Reads what the server refuses until it has refused `publishes` of them.
    async fn read(
        &mut self,
        errors: &mut UnboundedReceiver<String>,
        batch: &[String],
        publishes: usize,
    ) -> bool {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut answered = 0;
        while answered < publishes {
            let Ok(Some(error)) = timeout_at(deadline, errors.recv()).await else { return false };
            let about = |subject: &str| -> Vec<String> {
                batch.iter().filter(|granted| concrete(granted) == subject).cloned().collect()
            };
            match refusal(&error) {
                Some(Refusal::Publish(subject)) => {
                    self.publishes.extend(about(subject));
                    answered += 1;
                }
                Some(Refusal::Reply) => {
                    self.allowed += 1;
                    answered += 1;
                }
                Some(Refusal::Subscription(subject)) => self.subscriptions.extend(about(subject)),
                None => {}
            }
        }
        true
    }
}

/// What nats-server refuses.
#[derive(Debug, PartialEq, Eq)]
enum Refusal<'a> {
    Publish(&'a str),
    Subscription(&'a str),
    /// A publish for its reply subject, and not for its own.
    Reply,
}

fn refusal(error: &str) -> Option<Refusal<'_>> {
    let what = error.trim_matches('\'').strip_prefix("Permissions Violation for ")?;
    let quoted = |text: &'static str| what.strip_prefix(text)?.split('"').nth(1);
    if let Some(reply) = quoted("Publish with Reply of ") {
        return reply.starts_with(RESERVED).then_some(Refusal::Reply);
    }
    let publish = quoted("Publish to ").map(Refusal::Publish);
    publish.or_else(|| quoted("Subscription to ").map(Refusal::Subscription))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_refuses_is_understood() {
        for (error, expected) in [
            ("Permissions Violation for Publish to \"a.b\"", Some(Refusal::Publish("a.b"))),
            ("Permissions Violation for Subscription to \"a.b\"", Some(Refusal::Subscription("a.b"))),
            (
                "Permissions Violation for Subscription to \"a\" using queue \"b\"",
                Some(Refusal::Subscription("a")),
            ),
            (
                "Permissions Violation for Publish with Reply of \"_R_.emberline-doctor.7\"",
                Some(Refusal::Reply),
            ),
            ("Permissions Violation for Publish with Reply of \"_R_.other\"", None),
            ("Stale Connection", None),
        ] {
            assert_eq!(refusal(error), expected, "{error}");
        }
    }

    #[test]
    fn a_subject_that_is_tried_is_one_that_nobody_uses() {
        assert_eq!(concrete("$JS.ACK.JOBS.*.>"), "$JS.ACK.JOBS.doctor.doctor");
        assert_eq!(concrete("emberline.erase"), "emberline.erase");
    }

    #[test]
    fn only_requests_that_change_nothing_count_as_reading() {
        for role in [Role::Function, Role::Worker, Role::Admin] {
            let permissions = role.permissions("u");
            let all: Vec<&String> = permissions.publish.iter().flat_map(|grant| &grant.subjects).collect();
            assert!(all.iter().any(|subject| only_reads(subject)), "{role:?}");
            for subject in all.iter().filter(|subject| only_reads(subject)) {
                let changes = ["CREATE", "UPDATE", "DELETE", "PURGE", "NEXT", "ACK"];
                assert!(
                    !changes.iter().any(|verb| subject.split('.').any(|token| token == *verb)),
                    "{subject}"
                );
            }
        }
    }
}
