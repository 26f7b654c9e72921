//! The variables that a template reads.

use std::collections::HashSet;

use minijinja::Template;

/// Their names, those of functions and of what every template is given among them.
pub(super) fn read_by(template: &Template<'_, '_>) -> HashSet<String> {
    let mut names = template.undeclared_variables(false);
    // `{% set x = x | default(1) %}` counts as a declaration.
    names.extend(defaults(template.source()).map(str::to_owned));
    names
}

/// Names that are set to something that depends on themselves.
fn defaults(source: &str) -> impl Iterator<Item = &str> {
    source.split("{%").skip(1).filter_map(|tag| {
        let tag = tag.split_once("%}")?.0.trim_matches(['-', '+', ' ', '\t', '\n', '\r']);
        let (name, value) = tag.strip_prefix("set")?.split_once('=')?;
        let is_part_of_name = |c: char| c.is_alphanumeric() || c == '_';
        let name = name.trim();
        value.split(|c| !is_part_of_name(c)).any(|word| word == name).then_some(name)
    })
}
