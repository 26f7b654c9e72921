//! How fast jobs end.

use std::time::{Duration, Instant};

/// Time constant of the average: what is older than this counts little.
const MEMORY: Duration = Duration::from_secs(60);

/// Average number of jobs that end per second, over the time in which any ran.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Both decay exponentially with busy time.
    ended: f64,
    busy_s: f64,
    /// Up to when time is counted.
    counted: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { ended: 0.0, busy_s: 0.0, counted: now }
    }

    /// Counts the time up to `now`, during which jobs `ran` or not.
    pub(super) fn pass(&mut self, now: Instant, ran: bool) {
        let passed = now.saturating_duration_since(self.counted);
        self.counted = now;
        if ran {
            let memory_s = MEMORY.as_secs_f64();
            let left = (-passed.as_secs_f64() / memory_s).exp();
            self.ended *= left;
            self.busy_s = self.busy_s * left + memory_s * (1.0 - left);
        }
    }

    /// Counts a completed job.
    pub(super) fn ended(&mut self) {
        self.ended += 1.0;
    }

    /// Completed jobs per second, rounded to three decimals; 0 while none has completed.
    pub(super) fn per_second(&self) -> f64 {
        if self.busy_s > 0.0 { (self.ended / self.busy_s * 1000.0).round() / 1000.0 } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `jobs` jobs one after the other, each for this long.
    fn work(pace: &mut Pace, now: &mut Instant, jobs: u32, each: Duration) {
        for _ in 0..jobs {
            *now += each;
            pace.pass(*now, true);
            pace.ended();
        }
    }

    #[test]
    fn a_steady_pace_is_known_from_the_first_job_on() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!(pace.per_second(), 0.0);
        work(&mut pace, &mut now, 1, Duration::from_millis(500));
        assert!((1.9..=2.1).contains(&pace.per_second()), "{pace:?}");
        work(&mut pace, &mut now, 1000, Duration::from_millis(500));
        assert!((1.9..=2.1).contains(&pace.per_second()), "{pace:?}");
    }

    #[test]
    fn time_without_work_says_nothing() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        work(&mut pace, &mut now, 10, Duration::from_secs(1));
        let before = pace.per_second();
        now += Duration::from_secs(3600);
        pace.pass(now, false);
        assert_eq!(pace.per_second(), before);
    }

    #[test]
    fn a_new_pace_takes_the_place_of_the_old_one_within_minutes() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        work(&mut pace, &mut now, 600, Duration::from_millis(100));
        let after = |pace: &mut Pace, now: &mut Instant, seconds| {
            work(pace, now, seconds, Duration::from_secs(1));
            pace.per_second()
        };
        assert!((3.0..6.0).contains(&after(&mut pace, &mut now, 60)));
        assert!((1.0..1.3).contains(&after(&mut pace, &mut now, 240)));
    }
}
