//! Whether a streamed answer arrives as it is made, or is held back by a proxy on the way.
//!
//! A proxy that buffers delivers in one moment what took longer to make. How long that was, the worker says at the end
//! of the job's event log; without NATS it is taken to be the time that the whole request took.

use std::time::Duration;

use super::function::{Arrivals, Function};
use super::report::Check;
use super::session::Session;
use crate::nats::stored;

const NAME: &str = "streaming";
/// How many tokens are asked for, until an answer takes long enough to make.
const TOKENS: [u32; 3] = [32, 128, 512];
/// How long it should take, so that neither the way nor a busy machine matters.
const LONG_ENOUGH: Duration = Duration::from_secs(1);
/// How long it must take, whatever is asked for.
const LEAST: Duration = Duration::from_millis(200);

/// How an answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    AsMade,
    /// All at once.
    Buffered,
    /// In a few lumps.
    Lumps,
    /// It was made too quickly to tell.
    TooQuick,
}

/// Asks for answers until one takes long enough.
pub(super) async fn examine(function: &Function, model: &str, session: Option<&Session>) -> Check {
    let mut last = Check::skipped(NAME, "nothing was asked");
    for tokens in TOKENS {
        let (asked, name) = (function.clone(), model.to_owned());
        let arrivals = match tokio::task::spawn_blocking(move || asked.stream(&name, tokens)).await {
            Ok(Ok(arrivals)) => arrivals,
            Ok(Err(reason)) => return failed(model, &reason),
            Err(error) => return failed(model, &error.to_string()),
        };
        let decode = match (session, &arrivals.job) {
            (Some(session), Some(job)) => {
                stored::timings(&session.nats, job).await.ok().map(|timings| timings.decode_ms)
            }
            _ => None,
        };
        let decode = decode.and_then(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok());
        last = judge(delivery(&arrivals, decode), &arrivals, decode);
        if made_in(&arrivals, decode) >= LONG_ENOUGH {
            break;
        }
    }
    last
}

/// How long the answer took to make, as far as is known.
fn made_in(arrivals: &Arrivals, decode: Option<Duration>) -> Duration {
    decode.or(arrivals.lines.last().copied()).unwrap_or_default()
}

fn failed(model: &str, reason: &str) -> Check {
    Check::fault(
        NAME,
        format!("{model} gives no streamed answer: {reason}"),
        "the message says what helps; the function's and the worker's logs have the job",
    )
}

fn delivery(arrivals: &Arrivals, decode: Option<Duration>) -> Delivery {
    // Without the worker's word, what comes before the text shows that something passes, too.
    let (times, share) = if decode.is_some() { (&arrivals.texts, 2) } else { (&arrivals.lines, 10) };
    let Some((first, last)) = times.first().zip(times.last()) else { return Delivery::TooQuick };
    let made_in = made_in(arrivals, decode);
    if made_in < LEAST || times.len() < 4 {
        return Delivery::TooQuick;
    }
    let pause = times.windows(2).filter_map(|pair| pair.get(1)?.checked_sub(*pair.first()?)).max();
    if last.saturating_sub(*first) < made_in / share {
        Delivery::Buffered
    } else if decode.is_some() && pause.is_some_and(|pause| pause > made_in / 2) {
        Delivery::Lumps
    } else {
        Delivery::AsMade
    }
}

fn judge(delivery: Delivery, arrivals: &Arrivals, decode: Option<Duration>) -> Check {
    let times = &arrivals.texts;
    let spread = times.first().zip(times.last()).map(|(first, last)| last.saturating_sub(*first));
    let (spread, pieces) = (spread.unwrap_or_default(), times.len());
    let made_in = made_in(arrivals, decode);
    let remedy = "turn response buffering off in what lies before the function: nginx `proxy_buffering off` (and no \
                  `proxy_ignore_headers X-Accel-Buffering`), ingress-nginx `nginx.ingress.kubernetes.io/proxy-buffering: \"off\"`, \
                  Apache `ProxyPass … flushpackets=on`, Caddy `flush_interval -1`, Envoy no buffer filter; no compression of \
                  text/event-stream; CDNs: no caching of this path";
    let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
    match delivery {
        Delivery::AsMade => {
            Check::ok(NAME, format!("{pieces} pieces within {}, as they were made", seconds(spread)))
        }
        Delivery::Buffered => Check::fault(
            NAME,
            format!(
                "something holds answers back: {pieces} pieces, made in {}, arrived within {}",
                seconds(made_in),
                seconds(spread)
            ),
            remedy,
        ),
        Delivery::Lumps => Check::warning(
            NAME,
            format!("answers arrive in lumps: {pieces} pieces, made in {}", seconds(made_in)),
            remedy,
        ),
        Delivery::TooQuick => Check::skipped(
            NAME,
            format!("the answer was made in {} and has {pieces} pieces: too short to tell", seconds(made_in)),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(texts: &[u64]) -> Arrivals {
        let texts: Vec<Duration> = texts.iter().copied().map(Duration::from_millis).collect();
        Arrivals { job: None, lines: texts.clone(), texts }
    }

    #[test]
    fn pieces_that_come_as_they_are_made_are_told_from_those_that_were_held_back() {
        let second = Some(Duration::from_secs(1));
        for (texts, decode, expected) in [
            (&[300, 500, 700, 900, 1100, 1300][..], second, Delivery::AsMade),
            (&[1300, 1301, 1302, 1303, 1304, 1305], second, Delivery::Buffered),
            (&[300, 301, 302, 1303, 1304, 1305], second, Delivery::Lumps),
            (&[300, 301, 302, 303], Some(Duration::from_millis(3)), Delivery::TooQuick),
            (&[], second, Delivery::TooQuick),
            // Without the worker's word.
            (&[300, 500, 700, 900, 1100, 1300], None, Delivery::AsMade),
            (&[1300, 1301, 1302, 1303, 1304, 1305], None, Delivery::Buffered),
            (&[100, 110, 120, 130], None, Delivery::TooQuick),
            // The model says three words whatever it may.
            (&[300, 500, 700], second, Delivery::TooQuick),
        ] {
            assert_eq!(delivery(&arrivals(texts), decode), expected, "{texts:?} {decode:?}");
        }
    }
}
