//! From what was measured to the figures of a report.

use std::time::Duration;

use super::emberline::{EDGE, FUNCTION};
use super::peer;
use super::report::Figure;
use super::system::NatsCounts;
use crate::bench::report::{millis, quantile};

/// What a load used, between two readings.
pub(crate) struct Usage {
    /// By the parts' names.
    pub(crate) cpu: Vec<(&'static str, Duration)>,
    pub(crate) generator: Duration,
    pub(crate) nats: Option<NatsCounts>,
}

/// Collects the figures of one load.
pub(crate) struct LoadFigures<'a> {
    load: String,
    figures: &'a mut Vec<Figure>,
}

impl<'a> LoadFigures<'a> {
    pub(crate) fn new(load: String, figures: &'a mut Vec<Figure>) -> Self {
        Self { load, figures }
    }

    pub(crate) fn push(&mut self, measure: impl Into<String>, value: f64) {
        self.figures.push(Figure { load: self.load.clone(), measure: measure.into(), value });
    }

    pub(crate) fn push_quantiles(&mut self, what: &str, times: &[Duration]) {
        let times: Vec<f64> = times.iter().map(|time| millis(*time)).collect();
        for (name, q) in [("p50", 0.5), ("p99", 0.99)] {
            if let Some(value) = quantile(&times, q) {
                self.push(format!("{what}{name} ms"), value);
            }
        }
    }

    /// CPU time in `unit` (`per_s` of them are a second) for each of `count`, and messages for each request.
    pub(crate) fn push_usage(&mut self, usage: &Usage, unit: &str, count: f64, per_s: f64, requests: f64) {
        let each = |time: Duration| time.as_secs_f64() * per_s / count;
        let of_system = usage.cpu.iter().filter(|(name, _)| *name != peer::BACKEND);
        self.push(format!("CPU in all, {unit}"), each(of_system.map(|(_, time)| *time).sum()));
        for (name, time) in &usage.cpu {
            self.push(format!("CPU of {name}, {unit}"), each(*time));
        }
        self.push(format!("CPU of load generator, {unit}"), each(usage.generator));
        let Some(nats) = &usage.nats else { return };
        for (stream, stored) in nats.stored.iter().filter(|(_, stored)| **stored > 0) {
            self.push(format!("stored in {stream}/request"), *stored as f64 / requests);
        }
        self.push("to nats-server/request", nats.messages_in as f64 / requests);
        self.push("from nats-server/request", nats.messages_out as f64 / requests);
        self.push_connections(nats, requests);
    }

    /// CPU time of what connects to nats-server, and how often it did, for each of `requests`.
    pub(crate) fn push_way_usage(&mut self, usage: &Usage, requests: f64) {
        for (name, time) in usage.cpu.iter().filter(|(name, _)| [FUNCTION, EDGE].contains(name)) {
            self.push(format!("CPU of {name}, ms/request"), millis(*time) / requests);
        }
        if let Some(nats) = &usage.nats {
            self.push_connections(nats, requests);
        }
    }

    /// How often a connection is made, and a handshake paid.
    fn push_connections(&mut self, nats: &NatsCounts, requests: f64) {
        self.push("connections to nats-server/1,000 requests", nats.connections as f64 * 1e3 / requests);
    }
}

/// How many clients there are, in words.
pub(crate) fn client_count(clients: usize) -> String {
    if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cold_request_has_the_cpu_time_of_its_way_and_its_connections() {
        let ms = Duration::from_millis;
        let nats = NatsCounts { connections: 8, ..NatsCounts::default() };
        let cpu = vec![(FUNCTION, ms(40)), ("worker", ms(9)), (EDGE, ms(2))];
        let usage = Usage { cpu, generator: ms(1), nats: Some(nats) };
        let mut figures = Vec::new();
        LoadFigures::new("cold".into(), &mut figures).push_way_usage(&usage, 4.0);
        let shown: Vec<_> = figures.iter().map(|figure| (figure.measure.as_str(), figure.value)).collect();
        let expected = [
            ("CPU of function, ms/request", 10.0),
            ("CPU of edge, ms/request", 0.5),
            ("connections to nats-server/1,000 requests", 2000.0),
        ];
        assert_eq!(shown, expected);
    }
}
