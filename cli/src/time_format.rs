//! Times on the command line and in output: `30d`, `2027-01-31`, RFC 3339. Always UTC.

use std::time::{Duration, SystemTime};

use time::format_description::well_known::{Iso8601, Rfc3339};
use time::{Date, OffsetDateTime, Time};

/// The current time in Unix milliseconds.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    milliseconds(now)
}

/// A duration in whole milliseconds.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A point in time as an option names it: relative to now, or a date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimePoint {
    /// `30d`: this long before or after now.
    Relative(Duration),
    /// `2027-01-31`: the start of that day, in Unix milliseconds.
    At(u64),
}

impl TimePoint {
    /// In Unix milliseconds; a relative time lies after `now_ms`.
    pub(crate) fn after(self, now_ms: u64) -> u64 {
        match self {
            Self::Relative(duration) => now_ms.saturating_add(milliseconds(duration)),
            Self::At(ms) => ms,
        }
    }

    /// In Unix milliseconds; a relative time lies before `now_ms`.
    pub(crate) fn before(self, now_ms: u64) -> u64 {
        match self {
            Self::Relative(duration) => now_ms.saturating_sub(milliseconds(duration)),
            Self::At(ms) => ms,
        }
    }
}

/// Reads `90s`, `15m`, `12h`, `30d`, `2w`, or a date.
pub(crate) fn parse_time_point(text: &str) -> Result<TimePoint, String> {
    if let Ok(duration) = parse_duration(text) {
        return Ok(TimePoint::Relative(duration));
    }
    let date = Date::parse(text, &Iso8601::DATE);
    let date = date.map_err(|_| "give a time like 12h or 30d, or a date like 2027-01-31".to_owned())?;
    let start = date.with_time(Time::MIDNIGHT).assume_utc().unix_timestamp();
    Ok(TimePoint::At(u64::try_from(start).unwrap_or(0).saturating_mul(1000)))
}

/// Reads `90s`, `15m`, `12h`, `30d` or `2w`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "give a time like 90s, 15m, 12h, 30d or 2w".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        "w" => 7 * 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

fn at(ms: u64) -> OffsetDateTime {
    let nanoseconds = i128::from(ms) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// `2026-11-23`.
pub(crate) fn date(ms: u64) -> String {
    at(ms).date().to_string()
}

/// `2026-11-23 08:41`.
pub(crate) fn date_and_minute(ms: u64) -> String {
    let at = at(ms);
    format!("{} {:02}:{:02}", at.date(), at.hour(), at.minute())
}

/// `2026-11-23T08:41:40.042Z`, the form that nats-server reads.
pub(crate) fn rfc3339(ms: u64) -> String {
    let at = at(ms);
    let milliseconds = at.millisecond();
    format!("{}T{:02}:{:02}:{:02}.{milliseconds:03}Z", at.date(), at.hour(), at.minute(), at.second())
}

/// Parses a time in RFC 3339, as nats-server writes it, into Unix milliseconds.
pub(crate) fn parse_rfc3339(text: &str) -> Option<u64> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_parsed() {
        assert_eq!(parse_time_point("30d"), Ok(TimePoint::Relative(Duration::from_secs(30 * 86_400))));
        assert_eq!(parse_time_point("1970-01-02"), Ok(TimePoint::At(86_400_000)));
        assert_eq!(parse_time_point("2w").map(|time| time.after(5)), Ok(5 + 14 * 86_400_000));
        assert_eq!(parse_time_point("1h").map(|time| time.before(3_600_001)), Ok(1));
        for wrong in ["", "d", "-1d", "30", "1.5h", "99999999999999999999d", "2027-13-01", "tomorrow", "é"] {
            assert!(parse_time_point(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_formatted() {
        let ms = 1_795_423_300_042;
        assert_eq!((date(ms).as_str(), date_and_minute(ms).as_str()), ("2026-11-23", "2026-11-23 08:41"));
        assert_eq!(rfc3339(ms), "2026-11-23T08:41:40.042Z");
        assert_eq!(parse_rfc3339("2026-11-23T08:41:40.042999Z"), Some(ms));
        assert_eq!(parse_rfc3339("yesterday"), None);
    }
}
