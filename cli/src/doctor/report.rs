//! What was checked, and what came of it: as a table, as JSON and as an exit code.

use std::fmt;

use serde::Serialize;

use crate::table::table;

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    Ok,
    /// Emberline works, but not as well as it could, or not for long.
    Warning,
    /// Something does not work.
    Fault,
    /// It was not checked; the finding says why.
    Skipped,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Fault => "FAULT",
            Self::Skipped => "skipped",
        })
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    /// What was checked.
    pub(super) name: &'static str,
    pub(super) outcome: Outcome,
    /// What was found, in one line.
    pub(super) finding: String,
    /// What helps, in one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remedy: Option<String>,
}

impl Check {
    pub(super) fn ok(name: &'static str, finding: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Ok, finding: one_line(finding), remedy: None }
    }

    pub(super) fn warning(name: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Warning, finding: one_line(finding), remedy: Some(one_line(remedy)) }
    }

    pub(super) fn fault(name: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Fault, finding: one_line(finding), remedy: Some(one_line(remedy)) }
    }

    pub(super) fn skipped(name: &'static str, reason: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Skipped, finding: one_line(reason), remedy: None }
    }

    /// The same about one of several servers.
    #[must_use]
    pub(super) fn of_server(mut self, address: &str) -> Self {
        self.finding = format!("{address}: {}", self.finding);
        self
    }

    pub(super) fn is_fault(&self) -> bool {
        self.outcome == Outcome::Fault
    }
}

/// What servers and systems say may have lines and control characters of its own.
fn one_line(text: impl Into<String>) -> String {
    let text: String = text.into();
    text.split(|c: char| c.is_control()).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// All checks, in the order in which they were made.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    /// Number of faults.
    pub(super) faults: usize,
    /// Number of warnings.
    warnings: usize,
    checks: Vec<Check>,
}

impl From<Vec<Check>> for Report {
    fn from(checks: Vec<Check>) -> Self {
        let count = |outcome| checks.iter().filter(|check| check.outcome == outcome).count();
        Self { faults: count(Outcome::Fault), warnings: count(Outcome::Warning), checks }
    }
}

/// A table with what helps below it.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["check", "outcome", "finding"].map(String::from);
        let row = |check: &Check| [check.name.to_owned(), check.outcome.to_string(), check.finding.clone()];
        writeln!(f, "{}", table(&head, self.checks.iter().map(row)))?;
        let mut said = Vec::new();
        for check in &self.checks {
            let Some(remedy) = &check.remedy else { continue };
            // Three servers may need the same.
            if !said.contains(&(check.name, remedy)) {
                writeln!(f, "\n{}: {remedy}", check.name)?;
                said.push((check.name, remedy));
            }
        }
        let number =
            |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        write!(f, "\n{}, {}", number(self.faults, "fault"), number(self.warnings, "warning"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_has_a_line_and_what_helps_is_said_once_below() {
        let checks = vec![
            Check::ok("version", "2.15.1"),
            Check::fault("streams", "stream JOBS is missing", "run `emberline nats setup`"),
            Check::fault("streams", "stream USAGE\r\nis missing", "run `emberline nats setup`"),
            Check::warning("latency", "70 ms", "move closer"),
            Check::skipped("workers", "not connected"),
        ];
        let expected = "\
check    outcome  finding
version  ok       2.15.1
streams  FAULT    stream JOBS is missing
streams  FAULT    stream USAGE is missing
latency  warning  70 ms
workers  skipped  not connected

streams: run `emberline nats setup`

latency: move closer

2 faults, 1 warning";
        assert_eq!(Report::from(checks).to_string(), expected);
    }

    #[test]
    fn programs_read_the_same() {
        let report = Report::from(vec![Check::fault("login", "no", "yes"), Check::ok("version", "2.15.1")]);
        let expected = serde_json::json!({"faults": 1, "warnings": 0, "checks": [
            {"name": "login", "outcome": "fault", "finding": "no", "remedy": "yes"},
            {"name": "version", "outcome": "ok", "finding": "2.15.1"},
        ]});
        assert_eq!(serde_json::to_value(report).unwrap(), expected);
    }
}
