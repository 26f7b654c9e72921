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
nats_server = { default = "127.0.0.1:4222" }
nats_password = { required = true, secret = true, description = "of the function's user" }

[[trigger.http]]
route = "/..."
component = "function"

[component.function]
source = "build/function.wasm"
allowed_outbound_hosts = ["tcp://{{ nats_server }}"]
key_value_stores = []

[component.function.variables]
nats_url = "nats://{{ nats_server }}"
nats_password = "{{ nats_password }}"

[component.function.environment]
RUST_BACKTRACE = "1"

[component.function.build]
command = "make build"
"#;

fn parse(text: &str) -> Result<Manifest, ManifestProblem> {
    Manifest::parse(text, Path::new("/app"))
}

#[test]
fn all_parts_of_an_application_are_read() {
    let manifest = parse(GOOD).unwrap();
    assert_eq!((manifest.name.as_str(), manifest.version.as_str()), ("emberline", "0.1.0"));
    assert_eq!(manifest.variables["nats_server"].default.as_deref(), Some("127.0.0.1:4222"));
    assert_eq!(manifest.variables["nats_password"].default, None);
    assert_eq!(manifest.router.find("/v1/models").unwrap().component, "function");
    let component = &manifest.components["function"];
    assert_eq!(component.source, Path::new("/app/build/function.wasm"));
    assert_eq!(component.environment["RUST_BACKTRACE"], "1");

    let given = BTreeMap::from([("nats_password".to_owned(), "secret".to_owned())]);
    let variables = Variables::resolve(&manifest.variables, &given, |_| Err(VarError::NotPresent)).unwrap();
    assert_eq!(variables.expand(&component.variables["nats_url"]).unwrap(), "nats://127.0.0.1:4222");
    assert_eq!(variables.expand(&component.variables["nats_password"]).unwrap(), "secret");
    assert_eq!(variables.expand(&component.allowed_outbound_hosts[0]).unwrap(), "tcp://127.0.0.1:4222");
}

/// A line of `GOOD`, its replacement, and words that the error must have. Which manifests are refused is
/// tested in tests/manifests.
const REFUSED: &[(&str, &str, &[&str])] = &[
    ("spin_manifest_version = 2", "", &["missing field `spin_manifest_version`"]),
    ("spin_manifest_version = 2", "spin_manifest_version = 3", &["is 3", "= 2"]),
    ("name = \"emberline\"", "", &["[application]", "missing field `name`"]),
    ("version = \"0.1.0\"", "verison = \"0.1.0\"", &["line 6", "unknown field `verison`"]),
    ("version = \"0.1.0\"", "trigger.http.base = \"/x\"", &["'application.trigger.http.base'", "route"]),
    ("nats_server = {", "nats_server_2 = {", &["'2' in 'nats_server_2' does not begin with a letter"]),
    ("{ default = \"127.0.0.1:4222\" }", "{}", &["'variables.nats_server'", "neither a default"]),
    (
        "{ required = true,",
        "{ required = true, default = \"\",",
        &["'variables.nats_password'", "Remove one"],
    ),
    (
        "{ default = \"127.0.0.1:4222\" }",
        "{ default = \"nowhere\" }",
        &["component.function", "'tcp://nowhere'"],
    ),
    ("route = \"/...\"", "", &["'trigger.http[0]'", "missing field `route`"]),
    ("route = \"/...\"", "route = { private = true }", &["'trigger.http[0].route'", "private", "spin up"]),
    ("route = \"/...\"", "route = \"/:id\"", &["'/:id'", "spin up"]),
    ("component = \"function\"", "component = \"other\"", &["'other'", "[component.other]"]),
    ("component = \"function\"", "", &["'trigger.http[0]'", "component = \"NAME\""]),
    (
        "[[trigger.http]]",
        "[[trigger.redis]]\nchannel = \"c\"\n[[trigger.http]]",
        &["'trigger.redis'", "spin up"],
    ),
    ("source = \"build/function.wasm\"", "", &["missing field `source`"]),
    ("key_value_stores = []", "files = [\"assets/*\"]", &["'component.function.files'", "mounts", "spin up"]),
    ("[\"tcp://{{ nats_server }}\"]", "[\"tcp://{{ typo }}\"]", &["allowed_outbound_hosts", "'typo'"]),
    ("nats_url = \"nats://{{ nats_server", "nats_url = \"{{ typo", &["variables.nats_url'", "'typo'"]),
    ("nats_url = \"nats://{{ nats_server }}", "nats_url = \"{{ nats_server", &["nats_url'", "'}}'"]),
];

#[test]
fn an_error_names_the_place_and_the_problem() {
    for (line, instead, words) in REFUSED {
        assert!(GOOD.contains(line), "{line}");
        let error = parse(&GOOD.replacen(line, instead, 1)).expect_err(instead);
        let (says_spin_up, error) = (error.is_unsupported(), error.to_string());
        for word in *words {
            assert!(error.contains(word), "{instead}: {error}");
        }
        assert_eq!(says_spin_up, words.contains(&"spin up") || instead.contains("tcp://{{ typo"), "{error}");
    }
}

#[test]
fn an_application_without_triggers_is_refused() {
    let error = parse("spin_manifest_version = 2\n[application]\nname = \"a\"\n").unwrap_err().to_string();
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
