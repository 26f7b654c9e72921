//! The report of `emberline bench gateway`: one row for each figure, one column for each system.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::table::table;

/// Emberline's name among the systems.
pub(crate) const EMBERLINE: &str = "Emberline";

/// The report of a run.
#[derive(Debug, Serialize)]
pub(crate) struct GatewayReport {
    pub(crate) machine: Machine,
    /// How long each load lasted.
    pub(crate) seconds: f64,
    pub(crate) systems: Vec<SystemReport>,
    pub(crate) rows: Vec<Row>,
}

/// What clients, servers and workers shared.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) processor: String,
    /// The profile that Emberline was compiled with.
    pub(crate) profile: &'static str,
}

/// A system that was measured, or why it was not.
#[derive(Debug, Serialize)]
pub(crate) struct SystemReport {
    pub(crate) name: &'static str,
    pub(crate) version: Option<String>,
    /// What could not be measured, and why.
    pub(crate) errors: Vec<String>,
    #[serde(skip)]
    pub(crate) figures: Vec<Figure>,
}

impl SystemReport {
    /// The report of a system of which nothing is known yet.
    pub(crate) fn of(name: &'static str) -> Self {
        Self { name, version: None, errors: Vec::new(), figures: Vec::new() }
    }
}

/// One figure of one system.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figure {
    pub(crate) load: String,
    pub(crate) measure: String,
    pub(crate) value: f64,
}

/// One figure of all systems.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) load: String,
    pub(crate) measure: String,
    /// By system.
    pub(crate) values: BTreeMap<&'static str, f64>,
    /// Emberline's value divided by that of each other system.
    pub(crate) ratios: BTreeMap<&'static str, f64>,
}

impl GatewayReport {
    pub(crate) fn new(machine: Machine, seconds: f64, systems: Vec<SystemReport>) -> Self {
        let rows = rows(&systems);
        Self { machine, seconds, systems, rows }
    }

    /// The report as text.
    pub(crate) fn render(&self) -> String {
        let Machine { cores, processor, profile } = &self.machine;
        let measured: Vec<&SystemReport> =
            self.systems.iter().filter(|system| !system.figures.is_empty()).collect();
        let mut head = vec!["load".to_owned(), "measure".to_owned()];
        for system in &measured {
            head.push(system.name.to_owned());
            if system.name != EMBERLINE {
                head.push("ratio".to_owned());
            }
        }
        let lines = self.rows.iter().map(|row| {
            let mut line = vec![row.load.clone(), row.measure.clone()];
            for system in &measured {
                line.push(row.values.get(system.name).copied().map(shown).unwrap_or_default());
                if system.name != EMBERLINE {
                    line.push(row.ratios.get(system.name).copied().map(shown).unwrap_or_default());
                }
            }
            line
        });
        let mut text = format!(
            "{processor}, {cores} cores, which the clients, the servers and the workers share; {profile} build\n"
        );
        for system in &self.systems {
            let version = system.version.as_deref().unwrap_or("not measured");
            text += &format!("{} {version}\n", system.name);
            for error in &system.errors {
                text += &format!("  {error}\n");
            }
        }
        text + &format!("\n{}\n\n{LEGEND}", table(&head, lines))
    }
}

const LEGEND: &str = "\
ratio: Emberline's figure divided by the other system's
CPU: user and system time; in all: of the system's processes. LiteLLM's backend, which answers at once, and the
load generator are listed, and are no part of it
first byte, first text: from sending the request to the first byte of the body, to the first event with text
memory: resident; at the start, before any load, and the largest under load
stored, to and from nats-server: JetStream messages by stream, and all messages, for each request
cold: streams of one token, each from a fresh instance of the function, which connects to nats-server for it
streams: an engine that needs no time makes several tokens an event; paced streams have 50 tokens a second each
takeover: one of two workers is killed while all streams are on it; the longest time between two events of each";

/// Brings the figures of all systems together, in the order in which they first appear.
fn rows(systems: &[SystemReport]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for system in systems {
        let mut place = 0;
        for Figure { load, measure, value } in &system.figures {
            let found = rows.iter().position(|row| row.load == *load && row.measure == *measure);
            let at = found.unwrap_or_else(|| {
                let place = place_for(&rows, load, place);
                let (load, measure) = (load.clone(), measure.clone());
                rows.insert(place, Row { load, measure, values: BTreeMap::new(), ratios: BTreeMap::new() });
                place
            });
            if let Some(row) = rows.get_mut(at) {
                row.values.insert(system.name, *value);
            }
            place = at + 1;
        }
    }
    for row in &mut rows {
        let Some(own) = row.values.get(EMBERLINE).copied() else { continue };
        let others = row.values.iter().filter(|(name, value)| **name != EMBERLINE && **value > 0.0);
        row.ratios = others.map(|(name, value)| (*name, own / value)).collect();
    }
    rows
}

/// Where a row goes that follows the row before `place`: behind that one, if it has the same load, or at the beginning of
/// its load's rows, or else behind the rows of the load before.
fn place_for(rows: &[Row], load: &str, place: usize) -> usize {
    let load_before = place.checked_sub(1).and_then(|before| rows.get(before)).map(|row| row.load.as_str());
    if load_before == Some(load) {
        return place;
    }
    let beginning = rows.iter().position(|row| row.load == load);
    let end =
        || rows.iter().rposition(|row| Some(row.load.as_str()) == load_before).map_or(place, |last| last + 1);
    beginning.unwrap_or_else(end)
}

/// A number with three digits that count.
fn shown(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(name: &'static str, figures: &[(&str, f64)]) -> SystemReport {
        let figure = |(measure, value): &(&str, f64)| Figure {
            load: "answers, 1 client".into(),
            measure: (*measure).into(),
            value: *value,
        };
        let figures = figures.iter().map(figure).collect();
        SystemReport { name, version: Some("1".into()), errors: Vec::new(), figures }
    }

    fn report() -> GatewayReport {
        let systems = vec![
            system(EMBERLINE, &[("requests/s", 300.0), ("CPU of worker", 0.5), ("p50 ms", 2.0)]),
            system("Other", &[("requests/s", 200.0), ("CPU of mocker", 0.0), ("p50 ms", 4.0)]),
            SystemReport { name: "Absent", version: None, errors: vec!["pip".into()], figures: Vec::new() },
        ];
        let machine = Machine { cores: 2, processor: "CPU".into(), profile: "release" };
        GatewayReport::new(machine, 1.0, systems)
    }

    #[test]
    fn rows_have_all_systems_and_their_ratios() {
        let rows = report().rows;
        let measures: Vec<&str> = rows.iter().map(|row| row.measure.as_str()).collect();
        assert_eq!(measures, ["requests/s", "CPU of mocker", "CPU of worker", "p50 ms"]);
        assert_eq!(rows[0].ratios, BTreeMap::from([("Other", 1.5)]));
        assert_eq!(rows[3].ratios, BTreeMap::from([("Other", 0.5)]));
        assert!(rows[1].ratios.is_empty() && rows[2].ratios.is_empty());
    }

    #[test]
    fn the_rows_of_a_load_stay_together() {
        let figure =
            |load: &str, measure: &str| Figure { load: load.into(), measure: measure.into(), value: 1.0 };
        let system = |name, figures| SystemReport { name, version: None, errors: Vec::new(), figures };
        let own = vec![figure("a", "x"), figure("a", "y"), figure("c", "x")];
        let other = vec![figure("a", "x"), figure("b", "x"), figure("c", "w"), figure("c", "z")];
        let rows = rows(&[system(EMBERLINE, own), system("Other", other)]);
        let order: Vec<String> = rows.iter().map(|row| format!("{}{}", row.load, row.measure)).collect();
        assert_eq!(order, ["ax", "ay", "bx", "cw", "cz", "cx"]);
    }

    #[test]
    fn the_text_has_a_column_for_each_measured_system_and_names_the_others() {
        let text = report().render();
        assert!(text.contains("Emberline  Other  ratio\n"), "{text}");
        assert!(text.contains("requests/s     300        200    1.50"), "{text}");
        assert!(text.contains("Absent not measured\n  pip\n"), "{text}");
        assert!(text.starts_with("CPU, 2 cores"), "{text}");
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        let numbers = [0.0, 0.1234, 1.234, 12.34, 1234.5].map(shown);
        assert_eq!(numbers, ["0", "0.123", "1.23", "12.3", "1234"]);
    }
}
