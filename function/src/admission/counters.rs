//! Counters in NATS: messages that raise, read and lower them.

use std::collections::BTreeSet;

use bytes::Bytes;
use emberline_protocol::counter::{Bucket, Counter, INCREMENT_HEADER};
use emberline_protocol::job::{Account, AdmissionId};
use watermelon_proto::headers::{HeaderMap, HeaderName, HeaderValue};

use super::rate_limit::{Increments, Sums};
use crate::nats::bus::{Bus, last_of};
use crate::nats::connection::{BusError, subject};
use crate::nats::jetstream;
use crate::nats::round_trip::{Answer, Reply, Request};
use crate::platform::report;

/// Raises counters and reads `others`, in one round trip; the sums of all of them. An error means that none is raised.
///
/// Where the round trip is repeated, because its connection died, the increments' message ids have each of them
/// count once. nats-server does not tell the sum for one that it knows already; that is read by adding nothing.
pub(super) async fn count(
    bus: &Bus,
    increments: &Increments,
    others: BTreeSet<Bucket>,
) -> Result<Sums, BusError> {
    let id = AdmissionId::from_random(bus.host().random_u64());
    let raise = |(bucket, amount): &(Bucket, i64)| {
        increment(bucket, *amount, (*amount != 0).then(|| id.increment_id(bucket.counter)))
    };
    let mut requests = increments.iter().map(raise).collect::<Result<Vec<_>, _>>()?;
    for stream in Counter::STREAMS {
        let of_stream = others.iter().filter(|bucket| bucket.counter.stream() == stream);
        let subjects: Vec<String> = of_stream.map(Bucket::subject).collect();
        if !subjects.is_empty() {
            requests.push(last_of(stream, subjects)?);
        }
    }
    let answers = bus.round_trip(&requests).await?;
    let (mut raised, mut repeated, mut failed) = (Increments::new(), Vec::new(), None);
    // One that was never raised has no message.
    let mut sums: Sums = others.into_iter().map(|bucket| (bucket, 0)).collect();
    let mut asked = increments.iter();
    for answer in answers {
        match answer {
            Answer::Message(message) => {
                let Some((bucket, amount)) = asked.next() else { continue };
                match jetstream::read_sum(&message) {
                    Ok(Some(sum)) => {
                        sums.insert(bucket.clone(), sum);
                    }
                    Ok(None) => repeated.push(bucket.clone()),
                    Err(error) => {
                        failed = Some(BusError::from(error));
                        continue;
                    }
                }
                raised.push((bucket.clone(), *amount));
            }
            Answer::Batch(Ok(batch)) => sums.extend(batch.into_entries().filter_map(|(subject, payload)| {
                Some((Bucket::of_subject(&subject)?, jetstream::stored_sum(&payload)?))
            })),
            Answer::Batch(Err(error)) => failed = Some(error.into()),
        }
    }
    let read_again = match failed {
        Some(error) => Err(error),
        None if repeated.is_empty() => Ok(Sums::new()),
        None => read(bus, repeated).await,
    };
    match read_again {
        Ok(others) => {
            sums.extend(others);
            Ok(sums)
        }
        Err(error) => {
            lower(bus, &raised).await;
            Err(error)
        }
    }
}

/// Reads counters in the order in which they are raised.
async fn read(bus: &Bus, buckets: Vec<Bucket>) -> Result<Sums, BusError> {
    let requests = buckets.iter().map(|bucket| increment(bucket, 0, None)).collect::<Result<Vec<_>, _>>()?;
    let mut sums = Sums::new();
    for (bucket, answer) in buckets.into_iter().zip(bus.round_trip(&requests).await?) {
        if let Answer::Message(message) = answer
            && let Some(sum) = jetstream::read_sum(&message)?
        {
            sums.insert(bucket, sum);
        }
    }
    Ok(sums)
}

/// Takes increments back.
pub(super) async fn lower(bus: &Bus, increments: &Increments) {
    let raised = increments.iter().filter(|(_, amount)| *amount != 0);
    send(bus, raised.map(|(bucket, amount)| increment(bucket, amount.saturating_neg(), None))).await;
}

/// Takes back what was counted for jobs with these accounts and is corrected at their ends. If some of them are
/// queued nevertheless, their workers correct it, too; whoever comes first does.
pub(super) async fn withdraw(bus: &Bus, accounts: &[Account]) {
    let corrections = accounts.iter().flat_map(|account| {
        account.withdrawal().into_iter().map(|(bucket, amount)| {
            let id = account.admission.map(|admission| admission.correction_id(bucket.counter));
            increment(&bucket, amount, id)
        })
    });
    send(bus, corrections).await;
}

/// Sends messages without waiting for an answer.
async fn send(bus: &Bus, increments: impl Iterator<Item = Result<Request, BusError>>) {
    let sent = async {
        let requests = increments.collect::<Result<Vec<_>, _>>()?;
        if requests.is_empty() { Ok(()) } else { bus.send(&requests).await }
    };
    if let Err(error) = sent.await {
        report("limits", format_args!("a request that was not served stays counted: {error}"));
    }
}

fn increment(bucket: &Bucket, amount: i64, id: Option<String>) -> Result<Request, BusError> {
    let value = |text: String| HeaderValue::try_from(text.clone()).map_err(|_| BusError::Subject(text));
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static(INCREMENT_HEADER), value(amount.to_string())?);
    if let Some(id) = id {
        headers.insert(HeaderName::MESSAGE_ID, value(id)?);
    }
    Ok(Request { subject: subject(bucket.subject())?, headers, payload: Bytes::new(), reply: Reply::Message })
}
