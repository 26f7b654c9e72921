//! Lines of usage events, to a file or to stdout.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::{Map, Value};

use super::Format;

/// The columns of CSV; the same fields, and those that later versions add, are in JSON.
const COLUMNS: [&str; 15] = [
    "sequence",
    "id",
    "job",
    "key",
    "model",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "queue_ms",
    "prefill_ms",
    "first_token_ms",
    "decode_ms",
    "created",
    "finished",
    "outcome",
];

/// The outcome of an event that can't be read, so that it is missed by nobody.
const UNREADABLE: &str = "unreadable";
/// Bytes that are read at once in search of the last line.
const BLOCK: u64 = 64 * 1024;

/// Writes events as lines.
pub(super) struct ExportWriter {
    format: Format,
    destination: Destination,
    /// Whether the line of names is still to be written.
    needs_head: bool,
    pending: Vec<Map<String, Value>>,
}

enum Destination {
    Stdout,
    File(File),
}

impl ExportWriter {
    /// Opens `output`, or stdout. A file that is not to be replaced (`append`) is continued after its last
    /// complete line.
    pub(super) fn open(format: Format, output: Option<&Path>, append: bool) -> io::Result<Self> {
        let destination = match output {
            None => Destination::Stdout,
            Some(path) if append => {
                let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
                remove_partial_line(&mut file)?;
                Destination::File(file)
            }
            Some(path) => Destination::File(File::create(path)?),
        };
        let is_new = match &destination {
            Destination::Stdout => true,
            Destination::File(file) => file.metadata()?.len() == 0,
        };
        Ok(Self { format, destination, needs_head: is_new && format == Format::Csv, pending: Vec::new() })
    }

    /// Adds the line of an event: its sequence in the stream, its message id, and what it says.
    pub(super) fn push(&mut self, sequence: u64, id: &str, payload: &[u8]) {
        self.pending.push(line(sequence, id, payload));
    }

    /// The number of lines that are not written yet.
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Writes all lines; those of a file are on the disk when this returns.
    pub(super) fn commit(&mut self) -> io::Result<()> {
        let lines = std::mem::take(&mut self.pending);
        if lines.is_empty() && !self.needs_head {
            return Ok(());
        }
        let text = match self.format {
            Format::Jsonl => json_lines(&lines)?,
            Format::Csv => csv_lines(&lines, self.needs_head)?,
        };
        self.needs_head = false;
        match &mut self.destination {
            Destination::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(&text)?;
                stdout.flush()
            }
            Destination::File(file) => {
                file.write_all(&text)?;
                // A pipe can't be synced.
                if file.metadata()?.is_file() { file.sync_data() } else { Ok(()) }
            }
        }
    }
}

/// Cuts off what follows the last line feed: a line whose writer was killed, and whose event therefore comes again.
fn remove_partial_line(file: &mut File) -> io::Result<()> {
    if !file.metadata()?.is_file() {
        return Ok(());
    }
    let length = file.metadata()?.len();
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(start))?;
        let mut block = Vec::new();
        Read::by_ref(file).take(end - start).read_to_end(&mut block)?;
        if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
            end = start + at as u64 + 1;
            break;
        }
        end = start;
    }
    if end < length { file.set_len(end) } else { Ok(()) }
}

fn line(sequence: u64, id: &str, payload: &[u8]) -> Map<String, Value> {
    let mut line = fields([("sequence", sequence.into()), ("id", id.into())]);
    match serde_json::from_slice(payload) {
        Ok(Value::Object(event)) => line.extend(event),
        _ => {
            eprintln!(
                "warning: the usage event with the sequence {sequence} can't be read; its outcome is `{UNREADABLE}`"
            );
            let payload = String::from_utf8_lossy(payload);
            line.extend(fields([("outcome", UNREADABLE.into()), ("payload", payload.as_ref().into())]));
        }
    }
    line
}

fn fields(fields: [(&str, Value); 2]) -> Map<String, Value> {
    fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
}

fn json_lines(lines: &[Map<String, Value>]) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line)?;
        text.push(b'\n');
    }
    Ok(text)
}

fn csv_lines(lines: &[Map<String, Value>], with_head: bool) -> io::Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    if with_head {
        writer.write_record(COLUMNS)?;
    }
    for line in lines {
        writer.write_record(COLUMNS.map(|column| match line.get(column) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }))?;
    }
    writer.into_inner().map_err(csv::IntoInnerError::into_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use emberline_protocol::event::{Timings, Usage};
    use emberline_protocol::key::KeyId;
    use emberline_protocol::subject::JobId;
    use emberline_protocol::usage::{Outcome, UsageEvent};

    fn payload(model: &str) -> Vec<u8> {
        let event = UsageEvent {
            v: 2,
            job: JobId::from_random(1),
            key: KeyId::of_key(b"abc"),
            model: model.into(),
            usage: Usage { prompt_tokens: 10, cached_tokens: 4, completion_tokens: 3 },
            timings: Timings { queue_ms: 1.5, ..Timings::default() },
            created: 7,
            finished: 8,
            outcome: Outcome::Done,
        };
        serde_json::to_vec(&event).unwrap()
    }

    #[test]
    fn csv_has_every_field_of_an_event() {
        let line = line(5, "i", &payload("m"));
        let missing: Vec<&String> =
            line.keys().filter(|field| *field != "v" && !COLUMNS.contains(&field.as_str())).collect();
        assert!(missing.is_empty() && line.len() == COLUMNS.len() + 1, "{missing:?}");
        let text = String::from_utf8(csv_lines(&[line], true).unwrap()).unwrap();
        let (head, row) = text.split_once('\n').unwrap();
        assert_eq!(head, COLUMNS.join(","));
        let (job, key) = (JobId::from_random(1), KeyId::of_key(b"abc"));
        assert_eq!(row, format!("5,i,{job},{key},m,10,4,3,1.5,0.0,0.0,0.0,7,8,done\n"));
    }

    #[test]
    fn what_cannot_be_read_is_a_line_that_says_so() {
        let line = line(6, "i", b"junk");
        assert_eq!(line["payload"], "junk");
        let text = String::from_utf8(csv_lines(&[line], false).unwrap()).unwrap();
        assert!(text.starts_with("6,i,") && text.ends_with(",unreadable\n"), "{text}");
    }

    #[test]
    fn a_line_that_was_not_finished_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("usage.jsonl");
        let long = "x".repeat(usize::try_from(BLOCK).unwrap() * 2);
        let two_lines = format!("a\n{long}");
        for (before, after) in [
            ("", ""),
            ("a\nb\n", "a\nb\n"),
            ("a\nb", "a\n"),
            ("a", ""),
            (two_lines.as_str(), "a\n"),
            (long.as_str(), ""),
        ] {
            std::fs::write(&path, before).unwrap();
            let mut writer = ExportWriter::open(Format::Jsonl, Some(&path), true).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), after);
            writer.push(1, "i", b"{}");
            writer.commit().unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            let line = text.strip_prefix(after).unwrap();
            assert!(line.ends_with('\n') && line.lines().count() == 1, "{text}");
            let line: Value = serde_json::from_str(line).unwrap();
            assert_eq!(line, serde_json::json!({"sequence": 1, "id": "i"}));
        }
    }

    #[test]
    fn the_names_of_the_columns_are_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("usage.csv");
        for sequence in [1, 2] {
            let mut writer = ExportWriter::open(Format::Csv, Some(&path), true).unwrap();
            writer.push(sequence, "i", &payload("m"));
            writer.commit().unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().filter(|line| line.starts_with("sequence,")).count(), 1);
        assert_eq!(text.lines().count(), 3, "{text}");
    }
}
