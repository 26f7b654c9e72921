use proptest::prelude::*;

use super::*;

fn declared(all: &[(&str, Option<&str>)]) -> BTreeMap<String, Declaration> {
    let declare = |(name, default): &(&str, Option<&str>)| {
        ((*name).to_owned(), Declaration { default: default.map(str::to_owned) })
    };
    all.iter().map(declare).collect()
}

fn given(all: &[(&str, &str)]) -> BTreeMap<String, String> {
    all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn environment(all: &'static [(&str, &str)]) -> impl Fn(&str) -> Result<String, VarError> {
    |wanted| {
        let found = all.iter().find(|(name, _)| *name == wanted);
        found.map(|(_, value)| (*value).to_owned()).ok_or(VarError::NotPresent)
    }
}

fn expand(variables: &Variables, template: &str) -> Result<String, VariableError> {
    variables.expand(&Template::parse(template)?)
}

#[test]
fn the_command_line_precedes_the_environment_which_precedes_the_default() {
    let declared = declared(&[("a", Some("default")), ("b", Some("default")), ("c", Some("default"))]);
    let environment = environment(&[("SPIN_VARIABLE_A", "env"), ("SPIN_VARIABLE_B", "env")]);
    let variables = Variables::resolve(&declared, &given(&[("a", "given")]), environment).unwrap();
    assert_eq!(expand(&variables, "{{ a }} {{b}} {{  c}}").unwrap(), "given env default");
}

#[test]
fn an_empty_value_is_a_value() {
    let declared = declared(&[("a", Some("default"))]);
    let variables =
        Variables::resolve(&declared, &given(&[]), environment(&[("SPIN_VARIABLE_A", "")])).unwrap();
    assert_eq!(expand(&variables, "<{{ a }}>").unwrap(), "<>");
}

#[test]
fn missing_required_variables_are_all_named_with_what_to_set() {
    let declared = declared(&[("nats_user", None), ("nats_password", None), ("other", Some(""))]);
    let error = Variables::resolve(&declared, &given(&[]), environment(&[])).err().unwrap().to_string();
    assert_eq!(
        error,
        "no value for 'nats_password' (set SPIN_VARIABLE_NATS_PASSWORD) and 'nats_user' (set SPIN_VARIABLE_NATS_USER)"
    );
}

#[test]
fn a_given_variable_must_be_declared() {
    let error = Variables::resolve(&declared(&[]), &given(&[("typo", "x")]), environment(&[])).err();
    assert_eq!(error, Some(VariableError::Undeclared("typo".into())));
}

#[test]
fn a_template_may_only_use_declared_variables() {
    assert_eq!(expand(&Variables::default(), "{{ typo }}"), Err(VariableError::Undeclared("typo".into())));
}

#[test]
fn braces_must_be_closed() {
    let error = Template::parse("{{ a }} {{ b").unwrap_err();
    assert!(error.to_string().contains("'{{' without '}}'"), "{error}");
}

#[test]
fn names_follow_spins_rule() {
    for good in ["a", "a1", "nats_server", "a_1_b"] {
        assert_eq!(check_name(good), Ok(()), "{good}");
    }
    for bad in ["", "A", "1a", "_a", "a_", "a__b", "a-b", "ä", "a b"] {
        assert!(check_name(bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn text_without_braces_stays_as_it_is(text in "[^{}]*") {
        prop_assert!(Template::parse(&text).unwrap().is_literal());
        prop_assert_eq!(expand(&Variables::default(), &text).unwrap(), text);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in r"[{} a-c\PC]*") {
        if let Ok(template) = Template::parse(&text) {
            _ = Variables::default().expand(&template);
        }
    }

    #[test]
    fn a_value_is_put_where_its_name_is(before in "[^{}]*", value in ".*", after in "[^{}]*") {
        let variables =
            Variables::resolve(&declared(&[("v", None)]), &given(&[("v", &value)]), environment(&[])).unwrap();
        let text = expand(&variables, &format!("{before}{{{{ v }}}}{after}")).unwrap();
        prop_assert_eq!(text, format!("{before}{value}{after}"));
    }
}
