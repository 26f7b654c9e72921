//! The functions that chat templates call.

use std::io;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use time::OffsetDateTime;
use time::format_description::parse_strftime_owned;

use super::Refusal;

/// Spaces of indentation at most.
const MOST_INDENT: usize = 16;

/// The template refuses the conversation.
pub(super) fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, "the template raised an exception");
    Err(error.with_source(Refusal(message)))
}

/// Whether a loop takes the value: unlike minijinja's own, None is none such.
pub(super) fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// A time (unix milliseconds) in UTC, written as C's `strftime` does.
pub(super) fn strftime(milliseconds: u64, format: &str) -> Result<String, Error> {
    let invalid =
        |what: String| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {what}"));
    let seconds = i64::try_from(milliseconds / 1000).unwrap_or(i64::MAX);
    let time = OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| invalid(error.to_string()))?;
    let items = parse_strftime_owned(format).map_err(|error| invalid(error.to_string()))?;
    time.format(&items).map_err(|error| invalid(error.to_string()))
}

/// JSON as Python's `json.dumps` writes it, but with `ensure_ascii` off by default.
#[allow(clippy::needless_pass_by_value)] // filters take their options so
pub(super) fn to_json(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get("indent")?,
    };
    let indent = indent.map(|indent| indent.min(MOST_INDENT));
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    options.assert_all_used()?;
    let (between, after_key) = match separators.as_deref() {
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
        Some([between, after_key]) => (between.clone(), after_key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson takes two separators")),
    };
    let style = PythonStyle { between, after_key, indent, ascii, depth: 0, is_empty: true };
    let value = if sort { &sorted(value) } else { value };
    let json = write(value, style).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, "can't write this value as JSON").with_source(error)
    })?;
    Ok(Value::from(json))
}

/// The same without options.
pub(super) fn python_json(value: &serde_json::Value) -> String {
    let (between, after_key) = (", ".to_owned(), ": ".to_owned());
    let style = PythonStyle { between, after_key, indent: None, ascii: false, depth: 0, is_empty: true };
    // Values of this type can always be written.
    write(value, style).unwrap_or_default()
}

fn write(value: &impl Serialize, style: PythonStyle) -> serde_json::Result<String> {
    let mut json = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut json, style))?;
    Ok(String::from_utf8_lossy(&json).into_owned())
}

/// The value with the keys of all its maps in order.
fn sorted(value: &Value) -> Value {
    match value.kind() {
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter().into_iter().flatten().collect();
            keys.sort();
            let entry = |key: Value| (key.clone(), sorted(&value.get_item(&key).unwrap_or_default()));
            Value::from_pairs(keys.into_iter().map(entry))
        }
        ValueKind::Seq => Value::from_iter(value.try_iter().into_iter().flatten().map(|item| sorted(&item))),
        _ => value.clone(),
    }
}

/// How Python lays out JSON.
struct PythonStyle {
    between: String,
    after_key: String,
    /// Spaces a level, each item on its own line; all on one line if none.
    indent: Option<usize>,
    /// Other characters are escaped.
    ascii: bool,
    depth: usize,
    /// Whether the list or map that ends next has no items.
    is_empty: bool,
}

impl PythonStyle {
    fn begin(&mut self, out: &mut (impl io::Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.is_empty = true;
        out.write_all(bracket)
    }

    fn item(&mut self, out: &mut (impl io::Write + ?Sized), first: bool) -> io::Result<()> {
        if !first {
            out.write_all(self.between.as_bytes())?;
        }
        self.new_line(out)
    }

    fn end(&mut self, out: &mut (impl io::Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth = self.depth.saturating_sub(1);
        if !self.is_empty {
            self.new_line(out)?;
        }
        self.is_empty = false;
        out.write_all(bracket)
    }

    fn new_line(&self, out: &mut (impl io::Write + ?Sized)) -> io::Result<()> {
        let Some(indent) = self.indent else { return Ok(()) };
        out.write_all(b"\n")?;
        out.write_all(" ".repeat(indent * self.depth).as_bytes())
    }
}

impl Formatter for PythonStyle {
    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.item(out, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.is_empty = false;
        Ok(())
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.item(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.after_key.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.is_empty = false;
        Ok(())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if !self.ascii {
            return out.write_all(fragment.as_bytes());
        }
        for character in fragment.chars() {
            if matches!(character, ' '..='~') {
                write!(out, "{character}")?;
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}
