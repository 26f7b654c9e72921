//! This host accepts and refuses the same manifests as Spin.

// In a test, a failed step fails the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::env::VarError;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use emberline_host::allowed_hosts::AllowedHosts;
use emberline_host::manifest::Manifest;
use emberline_host::variables::Variables;

#[path = "support/fixture.rs"]
mod fixture;
#[allow(dead_code)] // serving.rs uses more of it
#[path = "support/spin.rs"]
mod spin;
#[path = "manifests/table.rs"]
mod table;

use spin::Spin;
use table::{Outcome, Row, rows};

/// The manifest of this repository.
const PROJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../spin.toml");
/// How many manifests the real Spin runs at the same time.
const CONCURRENCY: usize = 4;

/// How this host judges a manifest, before it opens any other file, and its error.
fn judge(manifest: &str) -> (Outcome, String) {
    let manifest = match Manifest::parse(manifest, Path::new("")) {
        Ok(manifest) => manifest,
        Err(problem) if problem.is_unsupported() => return (Outcome::Unsupported, problem.to_string()),
        Err(problem) => return (Outcome::Refused, problem.to_string()),
    };
    let nothing = |_: &str| Err(VarError::NotPresent);
    let variables = match Variables::resolve(&manifest.variables, &BTreeMap::new(), nothing) {
        Ok(variables) => variables,
        Err(problem) => return (Outcome::Refused, problem.to_string()),
    };
    for component in manifest.components.values() {
        if let Err(problem) = AllowedHosts::parse(&component.allowed_outbound_hosts, &variables) {
            return (Outcome::Refused, problem.to_string());
        }
    }
    (Outcome::Accepted, String::new())
}

#[test]
fn every_manifest_of_the_table_is_judged_as_spin_does() {
    let wrong = |row: Row| {
        let (outcome, error) = judge(&row.manifest);
        let expected = match row.outcome {
            Outcome::Elsewhere => Outcome::Unsupported,
            other => other,
        };
        (outcome != expected).then(|| format!("{}\n  {expected:?} expected, {outcome:?}: {error}", row.rule))
    };
    let wrong: Vec<String> = rows().into_iter().filter_map(wrong).collect();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_projects_own_manifest_passes() {
    assert_eq!(judge(&fs::read_to_string(PROJECT).unwrap()), (Outcome::Accepted, String::new()));
}

#[test]
fn the_real_spin_agrees_with_the_table() {
    let Some(spin) = Spin::find() else { return };
    let project = fs::read_to_string(PROJECT).unwrap().replace("build/function.wasm", "fixture.wasm");
    let mut tried: Vec<Row> = rows().into_iter().filter(|row| row.outcome != Outcome::Elsewhere).collect();
    tried.push(Row { outcome: Outcome::Accepted, rule: "the project's own".to_owned(), manifest: project });
    let (queue, wrong) = (Mutex::new(tried), Mutex::new(Vec::new()));
    let try_all = || {
        loop {
            let Some(Row { outcome, rule, manifest }) = queue.lock().unwrap().pop() else { return };
            let error = spin.serve(&manifest).err();
            if error.is_some() != (outcome == Outcome::Refused) {
                let error = error.unwrap_or_else(|| "runs it".to_owned());
                wrong.lock().unwrap().push(format!("{rule}\n  {outcome:?} expected, Spin: {error}"));
            }
        }
    };
    std::thread::scope(|scope| (0..CONCURRENCY).for_each(|_| _ = scope.spawn(try_all)));
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
