//! The report of `emberline bench`: sums up requests, and shows them as a table or as JSON.

use std::time::Duration;

use emberline_protocol::event::Timings;
use emberline_protocol::heartbeat::Heartbeat;
use serde::Serialize;

use super::client::ClientMeasurement;
use crate::table::table;

/// One request, measured by the client and by the worker.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) client: ClientMeasurement,
    pub(crate) worker: Timings,
}

/// The requests of one measurement: one prompt length, and one number of concurrent requests.
#[derive(Debug)]
pub(crate) struct RequestSeries {
    pub(crate) concurrency: usize,
    pub(crate) samples: Vec<Sample>,
    /// From the start of the first request to the end of the last.
    pub(crate) total: Duration,
}

/// The results of one measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ReportRow {
    pub(crate) concurrency: usize,
    pub(crate) requests: usize,
    /// Median prompt length.
    pub(crate) prompt_tokens: u32,
    /// Prompt tokens per second of the worker's prefill time, all requests together.
    pub(crate) prompt_tokens_per_s: f64,
    /// Decoded tokens per second of the worker's decode time, for one stream.
    pub(crate) decode_tokens_per_s_per_stream: f64,
    /// Generated tokens per second of wall-clock time, all streams together, prefill included.
    pub(crate) output_tokens_per_s: f64,
    pub(crate) first_token_ms: Spread,
    /// Median of the client's time to the first token minus the worker's: function, NATS and HTTP.
    pub(crate) outside_model_ms: f64,
    /// Median of that time as a share of the client's time to the first token.
    pub(crate) outside_model_share: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) p95: f64,
}

/// The report of a run.
#[derive(Debug, Serialize)]
pub(crate) struct StackReport {
    pub(crate) url: String,
    pub(crate) model: String,
    pub(crate) workers: Vec<WorkerLine>,
    pub(crate) max_tokens: u32,
    pub(crate) rows: Vec<ReportRow>,
}

/// A worker that took part.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct WorkerLine {
    pub(crate) device: String,
    pub(crate) engine: String,
    pub(crate) version: String,
}

impl From<&Heartbeat> for WorkerLine {
    fn from(beat: &Heartbeat) -> Self {
        Self { device: beat.device.clone(), engine: beat.engine.clone(), version: beat.version.clone() }
    }
}

impl RequestSeries {
    /// `None` without samples.
    pub(crate) fn summarise(&self) -> Option<ReportRow> {
        let each = |f: &dyn Fn(&Sample) -> f64| -> Vec<f64> { self.samples.iter().map(f).collect() };
        let sum = |f: &dyn Fn(&Sample) -> f64| each(f).iter().sum::<f64>();
        let outside = |s: &Sample| (millis(s.client.first_token) - s.worker.first_token_ms).max(0.0);
        let prompt_tokens = quantile(&each(&|s| f64::from(s.client.prompt_tokens)), 0.5)?;
        let prefill_s = sum(&|s| s.worker.prefill_ms) / 1e3;
        let decode_s = sum(&|s| s.worker.decode_ms) / 1e3;
        // The first token comes out of the prompt.
        let decoded = sum(&|s| f64::from(s.client.completion_tokens.saturating_sub(1)));
        Some(ReportRow {
            concurrency: self.concurrency,
            requests: self.samples.len(),
            prompt_tokens: prompt_tokens as u32,
            prompt_tokens_per_s: rate(sum(&|s| f64::from(s.client.prompt_tokens)), prefill_s),
            decode_tokens_per_s_per_stream: rate(decoded, decode_s),
            output_tokens_per_s: rate(
                sum(&|s| f64::from(s.client.completion_tokens)),
                self.total.as_secs_f64(),
            ),
            first_token_ms: spread(&each(&|s| millis(s.client.first_token)))?,
            outside_model_ms: quantile(&each(&outside), 0.5)?,
            outside_model_share: quantile(&each(&|s| outside(s) / millis(s.client.first_token)), 0.5)?,
        })
    }
}

impl StackReport {
    /// The report as text.
    pub(crate) fn render(&self) -> String {
        let workers: Vec<String> =
            self.workers.iter().map(|w| format!("{} ({} {})", w.device, w.engine, w.version)).collect();
        let head = [
            "prompt",
            "concurrent",
            "n",
            "prompt tok/s",
            "decode tok/s",
            "output tok/s",
            "first token ms",
            "outside the model",
        ];
        let rows = self.rows.iter().map(|row| {
            let Spread { min, median, p95 } = row.first_token_ms;
            [
                format!("{} tok", row.prompt_tokens),
                row.concurrency.to_string(),
                row.requests.to_string(),
                format!("{:.0}", row.prompt_tokens_per_s),
                format!("{:.1}", row.decode_tokens_per_s_per_stream),
                format!("{:.1}", row.output_tokens_per_s),
                format!("{min:.0} / {median:.0} / {p95:.0}"),
                format!("{:.1} ms, {:.1} %", row.outside_model_ms, row.outside_model_share * 100.0),
            ]
        });
        format!(
            "{} at {}\n{} worker(s): {}\n{} tokens requested each time\n\n{}\n\n{LEGEND}",
            self.model,
            self.url,
            self.workers.len(),
            workers.join(", "),
            self.max_tokens,
            table(&head.map(String::from), rows)
        )
    }
}

const LEGEND: &str = "\
prompt tok/s, decode tok/s: by the worker's clock; decode for a single stream
output tok/s: by the wall clock, all streams together, prefill included
first token ms: min / median / 95th percentile, from sending the request to the first text
outside the model: the client's time to the first token minus the worker's (function, NATS, HTTP), median";

pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

pub(super) fn rate(amount: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { amount / seconds } else { 0.0 }
}

fn spread(values: &[f64]) -> Option<Spread> {
    Some(Spread { min: quantile(values, 0.0)?, median: quantile(values, 0.5)?, p95: quantile(values, 0.95)? })
}

/// The quantile `q` by the nearest-rank method; `None` if there are no values.
pub(super) fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use emberline_protocol::subject::JobId;
    use proptest::prelude::*;

    fn sample(first_token_ms: u64, worker_first_token_ms: f64) -> Sample {
        Sample {
            client: ClientMeasurement {
                job: JobId::from_random(1),
                prompt_tokens: 100,
                completion_tokens: 21,
                first_token: Duration::from_millis(first_token_ms),
                total: Duration::from_millis(first_token_ms + 1000),
            },
            worker: Timings {
                queue_ms: 1.0,
                prefill_ms: 200.0,
                first_token_ms: worker_first_token_ms,
                decode_ms: 1000.0,
            },
        }
    }

    #[test]
    fn rates_come_from_the_worker_and_latencies_from_the_client() {
        let samples = vec![sample(250, 240.0), sample(300, 240.0), sample(400, 240.0)];
        let series = RequestSeries { concurrency: 1, samples, total: Duration::from_secs(4) };
        let row = series.summarise().unwrap();
        assert_eq!(row.requests, 3);
        assert_eq!(row.prompt_tokens, 100);
        assert!((row.prompt_tokens_per_s - 500.0).abs() < 1e-9);
        assert!((row.decode_tokens_per_s_per_stream - 20.0).abs() < 1e-9);
        assert!((row.output_tokens_per_s - 63.0 / 4.0).abs() < 1e-9);
        assert_eq!(row.first_token_ms, Spread { min: 250.0, median: 300.0, p95: 400.0 });
        assert!((row.outside_model_ms - 60.0).abs() < 1e-9);
        assert!((row.outside_model_share - 0.2).abs() < 1e-9);
    }

    #[test]
    fn a_series_without_samples_has_no_row() {
        assert_eq!(
            RequestSeries { concurrency: 1, samples: vec![], total: Duration::ZERO }.summarise(),
            None
        );
    }

    #[test]
    fn the_report_names_device_and_engine() {
        let samples = vec![sample(250, 240.0)];
        let row =
            RequestSeries { concurrency: 4, samples, total: Duration::from_secs(2) }.summarise().unwrap();
        let report = StackReport {
            url: "http://h".into(),
            model: "m".into(),
            workers: vec![WorkerLine {
                device: "CPU (flex)".into(),
                engine: "burn".into(),
                version: "0.1".into(),
            }],
            max_tokens: 24,
            rows: vec![row],
        };
        let text = report.render();
        assert!(text.contains("1 worker(s): CPU (flex) (burn 0.1)"), "{text}");
        assert!(text.contains("100 tok  4"), "{text}");
        assert!(text.contains("10.0 ms, 4.0 %"), "{text}");
        assert_eq!(serde_json::to_value(&report).unwrap()["rows"][0]["first_token_ms"]["min"], 250.0);
    }

    proptest! {
        #[test]
        fn a_quantile_is_one_of_the_values_and_splits_them(values in proptest::collection::vec(0.0..1e6_f64, 1..50), q in 0.0..=1.0_f64) {
            let found = quantile(&values, q).unwrap();
            prop_assert!(values.contains(&found));
            let at_most = values.iter().filter(|&&v| v <= found).count();
            prop_assert!(at_most as f64 >= q * values.len() as f64 - 1e-9);
        }
    }
}
