//! A table of the manifest, read field by field; a field that nobody takes is an error.

use std::collections::BTreeMap;

use toml::{Table, Value};

/// A field that can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{path}' {message}")]
pub struct FieldError {
    /// Where it is: `component.function.source`.
    pub path: String,
    /// What is wrong with it, and what to do.
    pub message: String,
}

/// A table whose fields are taken out one by one.
pub(super) struct Section {
    path: String,
    table: Table,
}

impl Section {
    pub(super) fn new(path: impl Into<String>, table: Table) -> Self {
        Self { path: path.into(), table }
    }

    pub(super) fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    pub(super) fn error(&self, name: &str, message: String) -> FieldError {
        FieldError { path: self.path_of(name), message }
    }

    pub(super) fn missing(&self, name: &str, remedy: &str) -> FieldError {
        self.error(name, format!("is missing. Add {name} {remedy}"))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.table.keys().map(String::as_str)
    }

    pub(super) fn is_table(&self, name: &str) -> bool {
        self.table.get(name).is_some_and(Value::is_table)
    }

    pub(super) fn string(&mut self, name: &str) -> Result<Option<String>, FieldError> {
        match self.table.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type(name, "a string", &other)),
        }
    }

    pub(super) fn integer(&mut self, name: &str) -> Result<Option<i64>, FieldError> {
        match self.table.remove(name) {
            None => Ok(None),
            Some(Value::Integer(number)) => Ok(Some(number)),
            Some(other) => Err(self.wrong_type(name, "a whole number", &other)),
        }
    }

    pub(super) fn boolean(&mut self, name: &str) -> Result<Option<bool>, FieldError> {
        match self.table.remove(name) {
            None => Ok(None),
            Some(Value::Boolean(value)) => Ok(Some(value)),
            Some(other) => Err(self.wrong_type(name, "true or false", &other)),
        }
    }

    pub(super) fn strings(&mut self, name: &str) -> Result<Vec<String>, FieldError> {
        let items = match self.table.remove(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(other) => return Err(self.wrong_type(name, "an array of strings", &other)),
        };
        let read = |item| match item {
            Value::String(text) => Ok(text),
            other => Err(self.wrong_type(name, "an array of strings", &other)),
        };
        items.into_iter().map(read).collect()
    }

    pub(super) fn section(&mut self, name: &str) -> Result<Option<Self>, FieldError> {
        match self.table.remove(name) {
            None => Ok(None),
            Some(Value::Table(table)) => Ok(Some(Self::new(self.path_of(name), table))),
            Some(other) => Err(self.wrong_type(name, "a table", &other)),
        }
    }

    /// All that is in it, each a table.
    pub(super) fn sections(mut self) -> Result<Vec<(String, Self)>, FieldError> {
        let names: Vec<String> = self.names().map(str::to_owned).collect();
        let mut sections = Vec::with_capacity(names.len());
        for name in names {
            if let Some(section) = self.section(&name)? {
                sections.push((name, section));
            }
        }
        Ok(sections)
    }

    /// `[[name]]`.
    pub(super) fn array_of_sections(&mut self, name: &str) -> Result<Vec<Self>, FieldError> {
        let items = match self.table.remove(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(other) => return Err(self.wrong_type(name, "an array of tables", &other)),
        };
        let read = |(index, item)| match item {
            Value::Table(table) => Ok(Self::new(self.path_of(&format!("{name}[{index}]")), table)),
            other => Err(self.wrong_type(name, "an array of tables", &other)),
        };
        items.into_iter().enumerate().map(read).collect()
    }

    /// A table of strings.
    pub(super) fn strings_by_name(&mut self, name: &str) -> Result<BTreeMap<String, String>, FieldError> {
        let Some(mut section) = self.section(name)? else { return Ok(BTreeMap::new()) };
        let names: Vec<String> = section.names().map(str::to_owned).collect();
        let mut strings = BTreeMap::new();
        for name in names {
            if let Some(text) = section.string(&name)? {
                strings.insert(name, text);
            }
        }
        Ok(strings)
    }

    /// Takes out what makes no difference here.
    pub(super) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.table.remove(*name);
        }
    }

    /// Refuses fields by name, each with the reason, unless they ask for nothing.
    pub(super) fn refuse(&mut self, names: &[(&str, &str)]) -> Result<(), FieldError> {
        for (name, reason) in names {
            match self.table.remove(*name) {
                Some(value) if !asks_for_nothing(&value) => {
                    let message = format!("{reason}. Take it out, or run the application with `spin up`");
                    return Err(self.error(name, message));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Refuses what is left.
    pub(super) fn finish(self) -> Result<(), FieldError> {
        match self.names().next() {
            None => Ok(()),
            Some(name) => {
                let message = "is not a field that this host knows. Correct its name or take it out";
                Err(self.error(name, message.to_owned()))
            }
        }
    }

    fn wrong_type(&self, name: &str, expected: &str, got: &Value) -> FieldError {
        self.error(name, format!("must be {expected}, not {}", got.type_str()))
    }
}

fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Table(table) => table.is_empty(),
        Value::Boolean(value) => !value,
        _ => false,
    }
}
