use std::env::VarError;

use proptest::prelude::*;

use super::*;
use crate::variables::Variables;

const GOOD: &str = r#"
spin_manifest_version = 2

[application]
name = "emberline"
version = "0.1.0"
authors = ["somebody"]

[variables]
nats_host = { default = "127.0.0.1" }
nats_password = { required = true, secret = true, description = "of the function's user" }

[[trigger.http]]
route = "/..."
component = "function"

[component.function]
source = "build/function.wasm"
allowed_outbound_hosts = ["tcp://{{ nats_host }}:4222"]
key_value_stores = []

[component.function.variables]
nats_address = "{{ nats_host }}:4222"
nats_password = "{{ nats_password }}"

[component.function.environment]
RUST_BACKTRACE = "1"

[component.function.build]
command = "make build"
"#;

fn parse(text: &str) -> Result<Manifest, Problem> {
    Manifest::parse(text, Path::new("/app"))
}

fn refused(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

#[test]
fn an_application_is_read_whole() {
    let manifest = parse(GOOD).unwrap();
    assert_eq!(manifest.name, "emberline");
    assert_eq!(manifest.variables["nats_host"].default.as_deref(), Some("127.0.0.1"));
    assert_eq!(manifest.variables["nats_password"].default, None);
    assert_eq!(manifest.router.find("/v1/models").unwrap().component, "function");
    let component = &manifest.components["function"];
    assert_eq!(component.source, Path::new("/app/build/function.wasm"));
    assert_eq!(component.environment["RUST_BACKTRACE"], "1");

    let given = BTreeMap::from([("nats_password".to_owned(), "secret".to_owned())]);
    let variables = Variables::resolve(&manifest.variables, &given, |_| Err(VarError::NotPresent)).unwrap();
    assert_eq!(variables.expand(&component.variables["nats_address"]).unwrap(), "127.0.0.1:4222");
    assert_eq!(variables.expand(&component.variables["nats_password"]).unwrap(), "secret");
    assert_eq!(variables.expand(&component.allowed_outbound_hosts[0]).unwrap(), "tcp://127.0.0.1:4222");
}

/// Each is `GOOD` with one line put in another's place, and words that the refusal must have.
const REFUSED: &[(&str, &str, &[&str])] = &[
    ("spin_manifest_version = 2", "", &["'spin_manifest_version'", "missing"]),
    ("spin_manifest_version = 2", "spin_manifest_version = 1", &["version 2"]),
    ("name = \"emberline\"", "", &["'application.name'", "missing"]),
    ("name = \"emberline\"", "name = 1", &["'application.name'", "a string, not integer"]),
    ("version = \"0.1.0\"", "verison = \"0.1.0\"", &["'application.verison'", "is not a field"]),
    ("version = \"0.1.0\"", "trigger.http.base = \"/x\"", &["'application.trigger'", "spin up"]),
    ("nats_host = {", "Nats = {", &["variables.Nats", "lower-case"]),
    (
        "nats_host = { default = \"127.0.0.1\" }",
        "nats_host = {}",
        &["variables.nats_host", "required = true"],
    ),
    ("route = \"/...\"", "", &["'trigger.http[0].route'", "missing"]),
    ("route = \"/...\"", "route = { private = true }", &["'trigger.http[0].route'", "private"]),
    ("route = \"/...\"", "route = \"/:id\"", &["'/:id'", "wildcard"]),
    ("route = \"/...\"", "route = \"/\"\nexecutor = { type = \"wagi\" }", &["executor.type", "wagi"]),
    ("component = \"function\"", "component = \"other\"", &["'other'", "[component.other]"]),
    ("component = \"function\"", "static_response = { status_code = 200 }", &["static_response"]),
    ("[[trigger.http]]", "[[trigger.redis]]\nchannel = \"c\"\n[[trigger.http]]", &["'trigger.redis'"]),
    ("source = \"build/function.wasm\"", "", &["'component.function.source'", "missing"]),
    ("source = \"build/function.wasm\"", "source = { url = \"https://x\" }", &["source", "doesn't download"]),
    ("key_value_stores = []", "key_value_stores = [\"default\"]", &["'component.function.key_value_stores'"]),
    ("key_value_stores = []", "sqlite_databases = [\"default\"]", &["'component.function.sqlite_databases'"]),
    ("key_value_stores = []", "files = [\"assets/*\"]", &["'component.function.files'", "mounts"]),
    ("key_value_stores = []", "ai_models = [\"m\"]", &["'component.function.ai_models'"]),
    ("key_value_stores = []", "dependencies = { \"a:b\" = \"1\" }", &["'component.function.dependencies'"]),
    ("key_value_stores = []", "allowed_http_hosts = [\"h\"]", &["'component.function.allowed_http_hosts'"]),
    ("key_value_stores = []", "unheard_of = 1", &["'component.function.unheard_of'", "is not a field"]),
    ("= [\"tcp://{{ nats_host }}:4222\"]", "= \"tcp://1.2.3.4:1\"", &["array of strings, not string"]),
    (
        "= [\"tcp://{{ nats_host }}:4222\"]",
        "= [\"tcp://{{ typo }}:1\"]",
        &["allowed_outbound_hosts", "'typo'"],
    ),
    (
        "nats_address = \"{{ nats_host }}",
        "nats_address = \"{{ typo }}",
        &["variables.nats_address", "'typo'"],
    ),
    ("nats_address = \"{{ nats_host }}", "nats_address = \"{{ nats_host", &["nats_address", "'}}'"]),
    ("RUST_BACKTRACE = \"1\"", "RUST_BACKTRACE = 1", &["'component.function.environment.RUST_BACKTRACE'"]),
];

#[test]
fn what_would_run_differently_is_refused_by_name() {
    for (line, instead, words) in REFUSED {
        assert!(GOOD.contains(line), "{line}");
        let error = refused(&GOOD.replacen(line, instead, 1));
        for word in *words {
            assert!(error.contains(word), "{instead}: {error}");
        }
    }
}

#[test]
fn an_application_without_triggers_is_refused() {
    let error = refused("spin_manifest_version = 2\n[application]\nname = \"a\"\n");
    assert!(error.contains("[[trigger.http]]"), "{error}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Manifest::load(Path::new("/nowhere/at/all.toml")).unwrap_err().to_string();
    assert!(error.contains("/nowhere/at/all.toml") && error.contains("--from"), "{error}");
}

#[test]
fn a_directory_stands_for_its_spin_toml() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("spin.toml"), GOOD).unwrap();
    let manifest = Manifest::load(directory.path()).unwrap();
    assert_eq!(manifest.components["function"].source, directory.path().join("build/function.wasm"));
}

#[test]
fn only_components_with_a_route_are_loaded() {
    let manifest = parse(&format!("{GOOD}\n[component.unused]\nsource = \"other.wasm\"\n")).unwrap();
    assert_eq!(manifest.components.keys().collect::<Vec<_>>(), ["function"]);
}

proptest! {
    #[test]
    fn a_damaged_manifest_never_panics(at in 0usize..1000, put in r#"[\[\]{}="a-z0-9.\n]{0,6}"#) {
        let mut text = GOOD.to_owned();
        let at = at.min(text.len());
        text.insert_str(at, &put);
        _ = parse(&text);
    }
}
