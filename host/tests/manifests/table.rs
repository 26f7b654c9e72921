//! Manifests that Spin accepts and refuses, each with its rule in a few words.
//!
//! The rules are Spin's own: `crates/manifest` (schema), `crates/serde` (names),
//! `crates/expressions` (templates), `crates/loader/src/local.rs`,
//! `crates/outbound-networking-config` (hosts), `crates/routes` with the crate `routefinder`,
//! `crates/http/src/config.rs` and `crates/trigger-http` (triggers), of its 4.1.

use Outcome::{Accepted, Elsewhere, Refused, Unsupported};

/// What happens to a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Spin runs it, and so does this host.
    Accepted,
    /// Spin refuses it, and so does this host.
    Refused,
    /// Spin runs it; this host lacks a feature and refuses it by name.
    Unsupported,
    /// Like `Unsupported`, but Spin needs more than a test has to run it: a network, another component.
    Elsewhere,
}

/// One manifest.
pub(crate) struct Row {
    pub(crate) outcome: Outcome,
    pub(crate) rule: String,
    pub(crate) manifest: String,
}

/// Each row is this text with parts replaced; the `#…` lines are placeholders.
const BASE: &str = r##"#top
spin_manifest_version = 2
[application]
name = "table"
#application
[variables]
server = { default = "127.0.0.1:4222" }
nothing = { default = "" }
#variables
[[trigger.http]]
route = "/..."
component = "function"
#trigger
[component.function]
source = "fixture.wasm"
#component
[component.function.variables]
server = "{{ server }}"
#values
"##;

type Rules = [(Outcome, &'static str, &'static str)];

/// All rows.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = vec![Row { outcome: Accepted, rule: "as it is".to_owned(), manifest: BASE.to_owned() }];
    let mut add = |what: &str, rules: &Rules, replace: &dyn Fn(&str) -> String| {
        rows.extend(rules.iter().map(|(outcome, text, rule)| Row {
            outcome: *outcome,
            rule: format!("{what} {text}: {rule}"),
            manifest: replace(text),
        }));
    };
    let put = |place: &'static str| move |line: &str| BASE.replace(place, line);
    add("variable", VARIABLE_NAMES, &|name| {
        BASE.replace("#variables", &format!("'{name}' = {{ default = '' }}"))
    });
    add("component variable", VARIABLE_NAMES, &|name| BASE.replace("#values", &format!("'{name}' = ''")));
    add("variable", DECLARATIONS, &|table| BASE.replace("#variables", &format!("v = {table}")));
    add("value", TEMPLATES, &|text| BASE.replace("#values", &format!("v = {text}")));
    add("component", COMPONENT_IDS, &|id| {
        BASE.replace("component = \"function\"", &format!("component = '{id}'"))
            .replace("[component.function", &format!("[component.'{id}'"))
    });
    add("route", ROUTES, &|route| BASE.replace("\"/...\"", route));
    add("host", HOSTS, &|host| BASE.replace("#component", &format!("allowed_outbound_hosts = [\"{host}\"]")));
    add("version", VERSIONS, &|version| BASE.replace("spin_manifest_version = 2", version));
    add("top", TOP, &put("#top"));
    add("application", APPLICATION, &put("#application"));
    add("trigger", TRIGGER, &put("#trigger"));
    add("trigger leads to", LEADS_TO, &put("component = \"function\""));
    add("source", SOURCES, &put("source = \"fixture.wasm\""));
    add("component", COMPONENT, &put("#component"));
    add("more", MORE, &|lines| format!("{BASE}{lines}\n"));
    rows.push(Row { outcome: Unsupported, rule: "version 1".to_owned(), manifest: VERSION_1.to_owned() });
    rows
}

const VERSION_1: &str = r#"
spin_manifest_version = "1"
name = "table"
version = "1.0.0"
trigger = { type = "http" }
[[component]]
id = "function"
source = "fixture.wasm"
[component.trigger]
route = "/..."
"#;

const VARIABLE_NAMES: &Rules = &[
    (Accepted, "a", "letters"),
    (Accepted, "a1", "digits after a letter"),
    (Accepted, "nats_server_b", "words with underscores between"),
    (Refused, "a_2", "a word begins with a letter"),
    (Refused, "nats_host_2", "a word begins with a letter"),
    (Refused, "2a", "a word begins with a letter"),
    (Refused, "A", "lower case"),
    (Refused, "aB", "lower case"),
    (Refused, "a__b", "no word is empty"),
    (Refused, "a_", "no word is empty"),
    (Refused, "_a", "no word is empty"),
    (Refused, "", "no word is empty"),
    (Refused, "a-b", "no hyphen"),
    (Refused, "a.b", "no other character"),
    (Refused, "a b", "no other character"),
    (Refused, "ä", "ASCII only"),
];

const DECLARATIONS: &Rules = &[
    (Accepted, "{ default = '', secret = true, description = 'd' }", "all that may be there"),
    (Accepted, "{ default = '', required = false }", "not required, with a default"),
    (Refused, "{ required = true }", "no value from anywhere"),
    (Refused, "{ required = true, default = '' }", "required or a default, not both"),
    (Refused, "{ required = false }", "required or a default, not neither"),
    (Refused, "{}", "required or a default, not neither"),
    (Refused, "{ default = 1 }", "a default is a string"),
    (Refused, "{ default = '', secret = 'yes' }", "secret is true or false"),
    (Refused, "{ default = '', description = 1 }", "a description is a string"),
    (Refused, "{ default = '', type = 'string' }", "unknown key"),
    (Refused, "'x'", "a table"),
    (Refused, "{ default = '', }", "TOML 1.0: no comma at the end of an inline table"),
    (Refused, "{\n default = '' }", "TOML 1.0: no line break in an inline table"),
    (Refused, "{ default = \"\\e\" }", "TOML 1.0: no such escape"),
];

const TEMPLATES: &Rules = &[
    (Accepted, "'tcp://{{server}}/{{  nothing  }}'", "spaces don't matter"),
    (Accepted, "'} }} { {'", "single braces, and closing ones, are text"),
    (Refused, "'{{ other }}'", "a template names declared variables"),
    (Refused, "'{{ }}'", "a template names declared variables"),
    (Refused, "'{{ server'", "braces are closed"),
    (Refused, "1", "a value is a string"),
];

const COMPONENT_IDS: &Rules = &[
    (Accepted, "f", "a letter"),
    (Accepted, "f2", "digits after a letter"),
    (Accepted, "my-function", "words with hyphens between"),
    (Accepted, "F", "a word may be of capitals"),
    (Accepted, "my-HTTP2-function", "a word may be of capitals"),
    (Refused, "Function", "a word has one case"),
    (Refused, "my_function", "no underscore"),
    (Refused, "f-2", "a word begins with a letter"),
    (Refused, "2f", "a word begins with a letter"),
    (Refused, "f--g", "no word is empty"),
    (Refused, "f-", "no word is empty"),
    (Refused, "", "no word is empty"),
    (Refused, "f.g", "no other character"),
];

const ROUTES: &Rules = &[
    (Accepted, "\"/\"", "the root alone"),
    (Accepted, "\"\"", "the root alone"),
    (Accepted, "\"a/b\"", "a slash in front is added"),
    (Accepted, "\"/a/\"", "a slash at the end is dropped"),
    (Accepted, "\"/a.b/...\"", "dots in a segment"),
    (Accepted, "\"...\"", "a slash in front is added"),
    (Unsupported, "\"/:id\"", "named segment"),
    (Unsupported, "\"/:id/...\"", "named segment before a wildcard"),
    (Unsupported, "\"/a/*\"", "the other way to write /a/..."),
    (Unsupported, "\"/a/*/b\"", "inner wildcard"),
    (Unsupported, "\"/.../a\"", "inner wildcard"),
    (Unsupported, "{ private = true }", "private endpoint"),
    (Refused, "{ private = false }", "a private endpoint is private"),
    (Refused, "{ private = true, path = '/' }", "unknown key"),
    (Refused, "\"/*rest\"", "a wildcard has no name"),
    (Refused, "\"/:\"", "a named segment has a name"),
    (Refused, "1", "a string or a private endpoint"),
    (Refused, "[\"/a\"]", "a string or a private endpoint"),
];

const HOSTS: &Rules = &[
    (Accepted, "tcp://127.0.0.1:4222", "address and port"),
    (Accepted, " tcp://127.0.0.1:4222/ ", "spaces around and a slash at the end don't matter"),
    (Accepted, "tcp://127.0.0.1:0", "port 0"),
    (Accepted, "tcp://127.0.0.1:*", "all ports"),
    (Accepted, "tcp://127.0.0.1:4000..5000", "ports from and up to"),
    (Accepted, "tcp://[::1]:4222", "IPv6 in brackets"),
    (Accepted, "tcp://10.0.0.0/8:4222", "a network"),
    (Accepted, "tcp://10.1.2.3/8:4222", "a network by any of its addresses"),
    (Accepted, "tcp://fd00::/8:4222", "an IPv6 network is without brackets"),
    (Accepted, "tcp://127.1:4222", "a short form of an address"),
    (Accepted, "tcp://*:4222", "all hosts"),
    (Accepted, "*://*:*", "everything"),
    (Accepted, "tcp://nats.example.com:4222", "a name, which no socket matches"),
    (Accepted, "tcp://*.example.com:4222", "all names below, which no socket matches"),
    (Accepted, "tcp://self:4222", "the application itself, which no socket matches"),
    (Accepted, "tcp://other.spin.internal:4222", "another component, which no socket matches"),
    (Accepted, "tcp://{{ server }}", "a variable for a whole address"),
    (Accepted, "{{ nothing }}", "an optional endpoint that is not there"),
    (Accepted, "http://{{ nothing }}", "an optional endpoint that is not there"),
    (Accepted, "http://example.com", "outbound HTTP, its port known"),
    (Accepted, "https://*.example.com/", "outbound HTTP, its port known"),
    (Unsupported, "http://self", "outbound HTTP to the application itself"),
    (Unsupported, "http://other.spin.internal", "service chaining"),
    (Accepted, "https://[::1]", "an IPv6 address, its port known"),
    (Unsupported, "redis://127.0.0.1", "another scheme, its port known"),
    (Unsupported, "udp://127.0.0.1:53", "another scheme, its port given"),
    (Unsupported, "nats://127.0.0.1:4222", "a scheme that nothing has"),
    (Unsupported, "TCP://127.0.0.1:4222", "a scheme that nothing has"),
    (Unsupported, "://127.0.0.1:4222", "a scheme that nothing has"),
    (Unsupported, "tcp://{{ typo }}:1", "undeclared: Spin starts and then refuses every connection"),
    (Unsupported, "tcp://{{ }}:1", "undeclared: Spin starts and then refuses every connection"),
    (Refused, "tcp://{{ nothing }}", "wrong with the default values"),
    (Refused, "tcp://{{ server }}:4222", "wrong with the default values"),
    (Refused, "tcp://{{ server", "braces are closed"),
    (Refused, "", "no scheme"),
    (Refused, "*", "no scheme"),
    (Refused, "127.0.0.1:4222", "no scheme"),
    (Refused, "insecure:allow-all", "no scheme"),
    (Refused, "tcp+tls://127.0.0.1:4222", "a scheme has letters only"),
    (Refused, "{tcp,udp}://127.0.0.1:4222", "no lists"),
    (Refused, "tcp://127.0.0.1", "tcp has no port of its own"),
    (Refused, "tcp://127.0.0.1:", "an empty port is none"),
    (Refused, "tcp://127.0.0.1/", "tcp has no port of its own"),
    (Refused, "tcp://[::1]", "tcp has no port of its own"),
    (Refused, "tcp://::1", "IPv6 in brackets"),
    (Refused, "tcp://::1:4222", "IPv6 in brackets"),
    (Refused, "tcp://10.0.0.0/8", "tcp has no port of its own"),
    (Refused, "tcp://127.0.0.1:nats", "a port is a number"),
    (Refused, "tcp://127.0.0.1:65536", "a port is below 65536"),
    (Refused, "tcp://127.0.0.1:1,2", "no lists"),
    (Refused, "tcp://127.0.0.1:{1,2}", "no lists"),
    (Refused, "tcp://127.0.0.1:1..", "a range has two ends"),
    (Refused, "tcp://127.0.0.1:4222/path", "no path"),
    (Refused, "http://example.com/path", "no path"),
    (Refused, "tcp://10.0.0.0/33:4222", "a prefix of 32 bits at most"),
    (Refused, "tcp://:4222", "a host"),
    (Refused, "tcp://a*:4222", "a wildcard is a whole label in front"),
    (Refused, "tcp://*.*.com:4222", "one wildcard"),
    (Refused, "tcp://*.127.0.0.1:4222", "a wildcard is for names"),
    (Refused, "tcp://[nonsense]:4222", "IPv6 in brackets"),
    (Refused, "tcp://{a,b}:4222", "no lists"),
    (Refused, "tcp://user@127.0.0.1:4222", "no user"),
    (Refused, "tcp://a b:4222", "no such host"),
];

const VERSIONS: &Rules = &[
    (Refused, "", "there is a version"),
    (Refused, "spin_manifest_version = 1", "version 1 is written as a string"),
    (Refused, "spin_manifest_version = \"2\"", "version 2 is written as a number"),
    (Refused, "spin_manifest_version = 2.0", "version 2 is written as a whole number"),
    (Refused, "spin_manifest_version = 3", "no such version"),
    (Refused, "spin_version = 2", "the name that version 1 had"),
];

const TOP: &Rules = &[(Refused, "description = 'd'", "unknown key")];

const APPLICATION: &Rules = &[
    (Accepted, "version = 'one'\ndescription = 'd'\nauthors = ['a']", "all that describes it"),
    (Accepted, "targets = ['spin-up:3.3', { url = 'u' }, { path = 'p' }]", "environments"),
    (Accepted, "tool.x = { y = 1 }", "settings of tools"),
    (Accepted, "trigger.http = { base = '/' }", "the base that says nothing"),
    (Accepted, "trigger.redis = { address = 'redis://x' }", "settings of triggers that are not there"),
    (Refused, "trigger.http = { base = '/x' }", "no other base any more"),
    (Refused, "trigger.http = { port = 80 }", "unknown key"),
    (Refused, "trigger.http = '/'", "settings are a table"),
    (Refused, "verison = '1'", "unknown key"),
    (Refused, "version = 1", "a version is a string"),
    (Refused, "authors = 'a'", "authors are a list"),
    (Refused, "authors = [1]", "an author is a string"),
    (Refused, "targets = [{ name = 'n' }]", "unknown key"),
    (Refused, "tool.x = 1", "a tool's settings are a table"),
];

const TRIGGER: &Rules = &[
    (Accepted, "id = 'any name'", "an id"),
    (Accepted, "executor = { type = 'http' }", "the executor that there is"),
    (Accepted, "executor = { type = 'spin' }", "its old name"),
    (Accepted, "executor = { type = 'http', x = 1 }", "nobody reads on"),
    (Accepted, "components = {}\ndependencies = {}", "asks for nothing"),
    (Elsewhere, "executor = { type = 'wagi', argv = 'x' }", "commands"),
    (Unsupported, "components = { x = 'function' }", "more components"),
    (Elsewhere, "dependencies = { middleware = [{ path = 'fixture.wasm' }] }", "middleware"),
    (Refused, "executor = { type = 'wagi', x = 1 }", "unknown key"),
    (Refused, "executor = { type = 'other' }", "no such executor"),
    (Refused, "executor = {}", "an executor has a type"),
    (Refused, "executor = 'http'", "an executor is a table"),
    (Refused, "id = 1", "an id is a string"),
    (Refused, "method = 'GET'", "unknown key"),
    (Refused, "static_response = { body = 'b' }", "a component or a static response"),
];

const LEADS_TO: &Rules = &[
    (Refused, "", "somewhere"),
    (Refused, "component = 'other'", "a component that is there"),
    (Refused, "component = 'my_function'", "a component's name"),
    (Refused, "component = 1", "a name or a component"),
    (Refused, "component = { source = 'fixture.wasm', x = 1 }", "unknown key in a component"),
    (Unsupported, "component = { source = 'fixture.wasm' }", "a component written here"),
    (
        Unsupported,
        "static_response = { status_code = 404, headers = { a = 'b' }, body = 'c' }",
        "no component",
    ),
    (Refused, "static_response = { status_code = '404' }", "a status is a number"),
];

const SOURCES: &Rules = &[
    (Refused, "", "there is a source"),
    (Refused, "source = 1", "a path or a table"),
    (Refused, "source = {}", "a path or a table"),
    (Refused, "source = { url = 'https://example.com/a.wasm' }", "a URL has a digest"),
    (Refused, "source = { url = 'https://example.com/a.wasm', digest = 'md5:0' }", "a digest is sha256"),
    (Elsewhere, "source = { url = 'https://example.com/a.wasm', digest = 'sha256:0' }", "a URL"),
    (Elsewhere, "source = { package = 'a:b', version = '1.0.0' }", "a registry"),
    (Refused, "source = { package = 'a:b' }", "a package has a version"),
    (Refused, "source = { path = 'fixture.wasm' }", "unknown key"),
];

const COMPONENT: &Rules = &[
    (Accepted, "description = 'd'", "described"),
    (Accepted, "environment = { A = '1', 'b c' = '' }", "an environment"),
    (Accepted, "build = { command = 'make', workdir = '.', watch = ['src/*'] }", "built"),
    (Accepted, "build = { command = ['make', 'make x'] }", "built by several commands"),
    (Accepted, "tool.x = { y = 1 }", "settings of tools"),
    (Accepted, "targets = ['spin-up:3.3']", "environments"),
    (
        Accepted,
        "profile.debug = { source = 's', environment = { A = '1' }, build = { command = 'c' } }",
        "a profile",
    ),
    (
        Accepted,
        "files = []\nexclude_files = []\nkey_value_stores = []\nsqlite_databases = []",
        "asks for nothing",
    ),
    (Accepted, "ai_models = []\nallowed_http_hosts = []\ndependencies = {}", "asks for nothing"),
    (Accepted, "dependencies_inherit_configuration = false", "asks for nothing"),
    (Unsupported, "files = ['*.toml']", "files"),
    (Unsupported, "files = [{ source = 'spin.toml', destination = '/a' }]", "files"),
    (Unsupported, "exclude_files = ['x']", "files"),
    (Elsewhere, "key_value_stores = ['default']", "stores"),
    (Elsewhere, "sqlite_databases = ['default']", "databases"),
    (Elsewhere, "ai_models = ['llama2-chat']", "models"),
    (Unsupported, "allowed_http_hosts = ['example.com']", "outbound HTTP, as it was written once"),
    (Elsewhere, "dependencies = { 'a:b' = '1' }", "composition"),
    (Unsupported, "dependencies_inherit_configuration = true", "composition"),
    (Unsupported, "profile.debug = { dependencies = { 'a:b' = '1' } }", "composition"),
    (Refused, "unheard_of = 1", "unknown key"),
    (Refused, "allowed_outbound_host = []", "unknown key"),
    (Refused, "allowed_outbound_hosts = 'tcp://127.0.0.1:1'", "hosts are a list"),
    (Refused, "allowed_outbound_hosts = [1]", "a host is a string"),
    (Refused, "description = 1", "a description is a string"),
    (Refused, "environment = { A = 1 }", "an environment has strings"),
    (Refused, "build = {}", "a build has a command"),
    (Refused, "build = { command = 'c', x = 1 }", "unknown key"),
    (Refused, "build = { command = 1 }", "a command is a string"),
    (Refused, "tool = { x = 1 }", "a tool's settings are a table"),
    (Refused, "profile.debug = { variables = {} }", "unknown key"),
    (Refused, "files = {}", "files are a list"),
    (Refused, "files = [{ source = 's' }]", "files have a destination"),
    (Refused, "key_value_stores = {}", "stores are a list"),
    (Refused, "key_value_stores = ['no name']", "a store's name"),
    (Refused, "key_value_stores = ['my-store_b']", "a store's name"),
    (Refused, "dependencies = []", "dependencies are a table"),
    (Refused, "dependencies_inherit_configuration = 'no'", "true or false"),
];

const MORE: &Rules = &[
    (Accepted, "[[trigger.http]]\nroute = '/a'\ncomponent = 'function'", "another route"),
    (Accepted, "[component.unused]\nsource = 'no-such.wasm'", "a component without a route, not loaded"),
    (Accepted, "[trigger]\nredis = []", "no trigger of another kind"),
    (
        Unsupported,
        "[[trigger.http]]\nroute = '/...'\ncomponent = 'function'",
        "a route twice: the last one counts",
    ),
    (Elsewhere, "[[trigger.redis]]\nchannel = 'c'\ncomponent = 'function'", "another kind of trigger"),
    (Refused, "[build]", "unknown table"),
    (Refused, "[component.unused]", "a component without a route has a source too"),
    (Refused, "[component.unused]\nsource = 's'\nallowed_outbound_hosts = ['x']", "and right hosts"),
    (Refused, "[component.unused]\nsource = 's'\nvariables = { v = '{{ x }}' }", "and declared variables"),
    (Refused, "[trigger.http]\nroute = '/a'\ncomponent = 'function'", "triggers are a list"),
    (Refused, "[application]\nname = 'b'", "TOML: a table twice"),
];
