//! What lives in JetStream: streams, buckets and consumers, the room for usage, and how far and how exact the server
//! that keeps them is.

use std::time::{Duration, Instant};

use emberline_protocol::permissions::{Role, WORKER_STREAMS};
use emberline_protocol::streams::{Layout, streams};
use emberline_protocol::subject::{EVENTS_STREAM, JOBS_STREAM, USAGE_STREAM, WORKERS_STREAM};
use serde_json::{Value, json};

use super::permissions::Denied;
use super::report::Check;
use crate::nats::access::NatsConnection;
use crate::nats::jetstream_api::{self, JetStreamError};
use crate::nats_setup::{self, Deviation};
use crate::time_format::{now_ms, parse_rfc3339};
use crate::usage::room::{NEARLY_FULL, Room};

/// Of how many round trips the median is taken.
const PINGS: usize = 20;
/// From here on, a request's four round trips before its first token take longer than many a prompt.
const SLOW: Duration = Duration::from_millis(50);
/// Clocks that differ by more make limits per minute inexact and answers' times confusing.
const SKEW: u64 = 1_000;
/// Clocks that differ by more have workers give up jobs too early or too late, by their deadlines.
const GREAT_SKEW: u64 = 10_000;
/// What several workers write at once, some tens of events, has to fit.
const LEAST_ROOM: u64 = 16 * 1024;

/// Whether the streams, and the consumers of `models`, are as this release makes them; an error if JetStream does not
/// answer.
pub(super) async fn layout(
    nats: &NatsConnection,
    role: &Role,
    denied: &Denied,
    models: &[String],
) -> Result<Vec<Check>, Check> {
    let domain_subject = |request: String| nats.subject_in_domain(&format!("$JS.API.{request}"));
    let may_look = |stream: &str| {
        let of_role = match role {
            Role::Function => false,
            Role::Worker | Role::WorkerPool(_) => WORKER_STREAMS.contains(&stream),
            Role::Admin => true,
        };
        of_role && denied.allows(&domain_subject(format!("STREAM.INFO.{stream}")))
    };
    if !may_look(JOBS_STREAM) {
        let reason = "this user may not look at streams; check as worker or admin";
        return Ok(vec![Check::skipped("streams", reason), Check::skipped("consumers", reason)]);
    }
    let any_consumer = domain_subject(format!("CONSUMER.INFO.{JOBS_STREAM}.*"));
    let models = if denied.allows(&any_consumer) { models } else { &[] };
    let found =
        nats_setup::deviations(nats, may_look, models).await.map_err(|error| failed("streams", &error))?;
    let (of_streams, of_consumers): (Vec<_>, Vec<_>) = found.into_iter().partition(|one| one.is_stream);
    let fault = |name, command: &str, found: Deviation| {
        Check::fault(name, found.finding, found.remedy.unwrap_or_else(|| command.to_owned()))
    };

    let missing_queue = format!("stream {JOBS_STREAM} is missing");
    let has_queue = of_streams.iter().all(|found| found.finding != missing_queue);
    let setup = "run `emberline nats setup`, which shows what it changes and asks first";
    let mut checks: Vec<Check> = of_streams.into_iter().map(|found| fault("streams", setup, found)).collect();
    if checks.is_empty() {
        let seen = streams(&Layout::default()).iter().filter(|stream| may_look(stream.name)).count();
        checks.push(Check::ok("streams", format!("{seen} are as this release makes them")));
    }

    let names: Vec<&str> = models.iter().map(String::as_str).collect();
    let setup = format!("run `emberline nats setup --model {}`, or start a worker", names.join(" --model "));
    if names.is_empty() {
        checks.push(Check::skipped("consumers", "no model is known; name some with --models"));
    } else if !has_queue {
        checks.push(Check::skipped("consumers", missing_queue));
    } else if of_consumers.is_empty() {
        checks.push(Check::ok("consumers", format!("those of {} are there", names.join(", "))));
    } else {
        checks.extend(of_consumers.into_iter().map(|found| fault("consumers", &setup, found)));
    }
    Ok(checks)
}

fn failed(name: &'static str, error: &JetStreamError) -> Check {
    Check::fault(
        name,
        format!("JetStream can't be asked: {error}"),
        "look whether JetStream is on for this account (or the domain exists), its disk has room, and most servers of a cluster are up",
    )
}

/// The room that is left for usage events, and this machine's clock beside the server's.
pub(super) async fn room_and_clock(nats: &NatsConnection, role: &Role, denied: &Denied) -> Vec<Check> {
    let subject = nats.subject_in_domain(&format!("$JS.API.STREAM.INFO.{USAGE_STREAM}"));
    if *role == Role::Function || !denied.allows(&subject) {
        let reason = format!("this user may not look at {USAGE_STREAM}; check as worker or admin");
        return vec![Check::skipped("usage", reason.clone()), Check::skipped("clock", reason)];
    }
    let (begin, asked) = (now_ms(), Instant::now());
    let answer = jetstream_api::call(nats, &format!("STREAM.INFO.{USAGE_STREAM}"), &Value::Null).await;
    let round_trip = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
    match answer {
        Err(error) if error.is_not_found() => {
            let reason = format!("there is no stream {USAGE_STREAM}");
            vec![Check::skipped("usage", reason.clone()), Check::skipped("clock", reason)]
        }
        Err(error) => vec![failed("usage", &error)],
        Ok(stream) => {
            let server = stream["ts"].as_str().and_then(parse_rfc3339);
            let clock = match server {
                Some(server) => judge_clock(server, begin.saturating_add(round_trip / 2), round_trip / 2),
                None => Check::skipped("clock", "the server does not tell its time"),
            };
            vec![judge_room(Room::of(&stream)), clock]
        }
    }
}

fn judge_room(room: Option<Room>) -> Check {
    const NAME: &str = "usage";
    let Some(room) = room else {
        return Check::ok(NAME, format!("{USAGE_STREAM} may take any space"));
    };
    let finding = format!("{USAGE_STREAM} is {} % full", room.percent());
    let remedy = "export it (`emberline usage export`), then remove what is old with `emberline nats setup --usage-age 90d`, \
                  or allow more with `--usage-bytes 4GiB`";
    if room.most.saturating_sub(room.bytes) < LEAST_ROOM {
        return Check::fault(NAME, format!("{finding}: no job ends any more"), remedy);
    }
    if room.percent() >= NEARLY_FULL {
        return Check::warning(NAME, format!("{finding}; when it is full, no job ends"), remedy);
    }
    Check::ok(NAME, finding)
}

/// Compares two times in Unix milliseconds, of which the difference is known to `exactness`.
fn judge_clock(server: u64, here: u64, exactness: u64) -> Check {
    const NAME: &str = "clock";
    let difference = server.abs_diff(here);
    let direction = if here > server { "ahead of" } else { "behind" };
    // What the round trip may explain is no fault of the clocks.
    let certain = difference.saturating_sub(exactness);
    let remedy = "have both machines set their clocks by NTP (`timedatectl set-ntp true`)";
    #[allow(clippy::cast_precision_loss, reason = "for people to read")]
    let seconds = difference as f64 / 1000.0;
    let finding = format!("this machine's clock is {seconds:.3} s {direction} the server's");
    if certain > GREAT_SKEW {
        return Check::fault(NAME, format!("{finding}: deadlines of jobs are wrong by as much"), remedy);
    }
    if certain > SKEW {
        return Check::warning(NAME, finding, remedy);
    }
    Check::ok(NAME, finding)
}

/// The median of some round trips to JetStream: reads of what is not there.
pub(super) async fn latency(nats: &NatsConnection, role: &Role) -> Check {
    let stream = if *role == Role::Admin { EVENTS_STREAM } else { WORKERS_STREAM };
    let subject = nats.subject_in_domain(&format!("$JS.API.DIRECT.GET.{stream}"));
    let query = json!({"last_by_subj": "emberline.doctor"}).to_string();
    let mut times = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let asked = Instant::now();
        let answer = nats.request(subject.clone(), query.clone().into()).await;
        // That nobody answers is an answer, too.
        if answer.is_err_and(|error| error.kind() == async_nats::RequestErrorKind::TimedOut) {
            return Check::fault(
                "latency",
                format!("{subject} is not answered in time"),
                "look at the permissions, and whether most servers of a cluster are up",
            );
        }
        times.push(asked.elapsed());
    }
    times.sort_unstable();
    judge_latency(times.get(PINGS / 2).copied().unwrap_or_default())
}

fn judge_latency(median: Duration) -> Check {
    #[allow(clippy::cast_precision_loss, reason = "for people to read")]
    let finding = format!("{:.1} ms a round trip, the median of {PINGS}", median.as_micros() as f64 / 1000.0);
    if median > SLOW {
        return Check::warning(
            "latency",
            format!("{finding}: an answer begins some four of them after the request"),
            "run function and NATS close to each other, or a leaf node beside the function (docs/scale.md)",
        );
    }
    Check::ok("latency", finding)
}

#[cfg(test)]
mod tests {
    use super::super::report::Outcome::{Fault, Ok, Warning};
    use super::*;

    #[test]
    fn clocks_are_compared_as_exactly_as_the_round_trip_allows() {
        for (server, here, exactness, outcome) in [
            (50_000, 50_400, 0, Ok),
            (50_000, 51_900, 1_000, Ok),
            (50_000, 52_000, 0, Warning),
            (52_000, 50_000, 0, Warning),
            (50_000, 61_000, 0, Fault),
            (0, u64::MAX, 0, Fault),
        ] {
            assert_eq!(judge_clock(server, here, exactness).outcome, outcome, "{server} {here}");
        }
        let finding = judge_clock(50_000, 48_500, 0).finding;
        assert_eq!(finding, "this machine's clock is 1.500 s behind the server's");
    }

    #[test]
    fn a_stream_without_room_for_what_workers_write_is_full() {
        let room = |bytes, most| judge_room(Some(Room { bytes, most })).outcome;
        assert_eq!(room(700_000, 1_000_000), Ok);
        assert_eq!(room(800_000, 1_000_000), Warning);
        assert_eq!(room(999_000, 1_000_000), Fault);
        assert_eq!(judge_room(None).outcome, Ok);
    }

    #[test]
    fn a_long_way_is_a_warning() {
        assert_eq!(judge_latency(Duration::from_millis(3)).outcome, Ok);
        assert_eq!(judge_latency(Duration::from_millis(70)).outcome, Warning);
    }
}
