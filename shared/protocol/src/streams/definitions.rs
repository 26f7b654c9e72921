//! The definition of each stream and bucket.

use std::time::Duration;

use super::{Discard, Layout, MIB, Retention, Storage, Stream};
use crate::counter;
use crate::heartbeat::HEARTBEAT_TTL_S;
use crate::subject;

pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Longer than the longest deadline of a job, which is one day.
const JOB_AGE: Duration = Duration::from_secs(25 * 60 * 60);
/// Longer than the longest deadline and the longest time for which an answer is kept after it, one day each.
const KEPT_AGE: Duration = Duration::from_secs(49 * 60 * 60);

/// Thirteen months, so that a month can be compared with the same month of the previous year.
pub(super) const USAGE_AGE: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// All streams and buckets.
pub fn streams(layout: &Layout) -> [Stream; 11] {
    [
        jobs(layout),
        events(layout),
        kept(layout),
        withdrawn(layout),
        dead(layout),
        requests(layout),
        workers(layout),
        keys(layout),
        limits(layout),
        long_limits(layout),
        usage(layout),
    ]
}

/// A stream on disk that removes its oldest messages when it is full, and none because somebody says so: a
/// message with a rollup header would replace all before it, whoever wrote them. Where it has to be allowed, only
/// workers may write.
fn log(layout: &Layout) -> Stream {
    Stream {
        name: "",
        description: "",
        subjects: &[],
        retention: Retention::Limits,
        storage: Storage::File,
        discard: Discard::Old,
        discard_new_per_subject: false,
        max_consumers: -1,
        max_msgs: -1,
        max_msgs_per_subject: -1,
        max_bytes: -1,
        max_age: Duration::ZERO,
        duplicate_window: 2 * MINUTE,
        allow_direct: true,
        allow_rollup_hdrs: false,
        deny_delete: true,
        deny_purge: true,
        allow_msg_ttl: false,
        allow_msg_counter: false,
        num_replicas: layout.replicas,
        volatile: false,
    }
}

/// Like [`log`], for messages that need not survive a restart of nats-server.
fn volatile(layout: &Layout) -> Stream {
    Stream { storage: layout.volatile, volatile: true, ..log(layout) }
}

/// A key-value bucket without history. A rollup would remove all of it, so none is allowed.
fn bucket(stream: Stream) -> Stream {
    Stream { discard: Discard::New, max_msgs_per_subject: 1, ..stream }
}

/// A stream of message counters: each message is stored as the counter's new sum.
fn counters(stream: Stream) -> Stream {
    Stream { allow_msg_counter: true, max_msgs_per_subject: 1, ..stream }
}

/// Refuses jobs when it is full, so that no acknowledged job is removed.
fn jobs(layout: &Layout) -> Stream {
    Stream {
        name: subject::JOBS_STREAM,
        description: "Emberline: jobs that wait or run",
        subjects: &[subject::JOBS_SUBJECTS],
        retention: Retention::WorkQueue,
        discard: Discard::New,
        discard_new_per_subject: true,
        max_msgs: layout.queue_jobs.saturating_mul(10),
        max_msgs_per_subject: layout.queue_jobs,
        max_bytes: layout.queue_bytes,
        max_age: JOB_AGE,
        allow_direct: false,
        ..log(layout)
    }
}

/// Each event has a TTL of its own: the time for which its job may still run.
///
/// Purging a log is denied by permissions alone, as in [`kept`]: nats-server takes no rollup where the stream denies it.
fn events(layout: &Layout) -> Stream {
    Stream {
        name: subject::EVENTS_STREAM,
        description: "Emberline: event logs of jobs",
        subjects: &[subject::EVENTS_SUBJECTS],
        max_bytes: layout.events_bytes,
        max_age: JOB_AGE,
        deny_purge: false,
        allow_msg_ttl: true,
        // A snapshot takes the place of a log.
        allow_rollup_hdrs: true,
        ..volatile(layout)
    }
}

/// On disk, so that a promised answer survives a restart of nats-server.
fn kept(layout: &Layout) -> Stream {
    Stream {
        name: subject::KEPT_STREAM,
        description: "Emberline: event logs that outlast their clients",
        subjects: &[subject::KEPT_SUBJECTS],
        max_bytes: layout.kept_bytes,
        max_age: KEPT_AGE,
        deny_purge: false,
        allow_msg_ttl: true,
        // A snapshot takes the place of a log, and a worker erases a deleted answer so.
        allow_rollup_hdrs: true,
        ..log(layout)
    }
}

/// No part of `EVENTS`, so that what a function writes can't take the place of events. On disk, as the jobs are.
fn withdrawn(layout: &Layout) -> Stream {
    Stream {
        name: subject::WITHDRAWN_STREAM,
        description: "Emberline: jobs for which nobody waits any more",
        subjects: &[subject::WITHDRAWN_SUBJECTS],
        max_msgs_per_subject: 1,
        max_bytes: 16 * MIB,
        max_age: JOB_AGE,
        allow_msg_ttl: true,
        ..log(layout)
    }
}

/// `emberline jobs` deletes single messages.
fn dead(layout: &Layout) -> Stream {
    Stream {
        name: subject::DEAD_STREAM,
        description: "Emberline: jobs that were given up",
        subjects: &[subject::DEAD_SUBJECTS],
        max_bytes: 256 * MIB,
        max_age: 7 * DAY,
        duplicate_window: HOUR,
        deny_delete: false,
        ..log(layout)
    }
}

fn requests(layout: &Layout) -> Stream {
    bucket(Stream {
        name: subject::REQUESTS_STREAM,
        description: "Emberline: requests whose answers can be asked for again",
        subjects: &[subject::REQUESTS_SUBJECTS],
        max_bytes: 256 * MIB,
        max_age: KEPT_AGE,
        allow_msg_ttl: true,
        ..log(layout)
    })
}

fn workers(layout: &Layout) -> Stream {
    let ttl = Duration::from_secs(HEARTBEAT_TTL_S);
    bucket(Stream {
        name: subject::WORKERS_STREAM,
        description: "Emberline: heartbeats of workers",
        subjects: &[subject::WORKERS_SUBJECTS],
        // Room for some ten thousand workers with a few models each.
        max_bytes: 64 * MIB,
        max_age: ttl,
        duplicate_window: ttl,
        ..volatile(layout)
    })
}

/// The bucket of API keys; `emberline keys` creates it, too.
pub fn keys(layout: &Layout) -> Stream {
    bucket(Stream {
        name: subject::KEYS_STREAM,
        description: "Emberline: API keys",
        subjects: &[subject::KEYS_SUBJECTS],
        max_bytes: 64 * MIB,
        ..log(layout)
    })
}

/// Per-minute counters, which may be lost. They are kept for as long as a correction may be late.
fn limits(layout: &Layout) -> Stream {
    counters(Stream {
        name: counter::LIMITS_STREAM,
        description: "Emberline: counters of minutes",
        subjects: &counter::LIMITS_SUBJECTS,
        max_bytes: 64 * MIB,
        max_age: 5 * MINUTE,
        duplicate_window: 5 * MINUTE,
        ..volatile(layout)
    })
}

/// Counters of hours, days and running jobs, kept for two days: the current one and the previous one.
fn long_limits(layout: &Layout) -> Stream {
    counters(Stream {
        name: counter::LONG_LIMITS_STREAM,
        description: "Emberline: counters of hours, days and running jobs",
        subjects: &counter::LONG_LIMITS_SUBJECTS,
        max_bytes: 256 * MIB,
        max_age: 49 * HOUR,
        duplicate_window: HOUR,
        ..log(layout)
    })
}

/// Refuses usage events when it is full, so that none is lost unseen: their jobs stay queued until there is room.
fn usage(layout: &Layout) -> Stream {
    Stream {
        name: subject::USAGE_STREAM,
        description: "Emberline: what jobs have used",
        subjects: &[subject::USAGE_SUBJECTS],
        discard: Discard::New,
        max_bytes: layout.usage_bytes,
        max_age: layout.usage_age,
        // A job that is redelivered publishes its usage again within this time.
        duplicate_window: HOUR,
        ..log(layout)
    }
}
