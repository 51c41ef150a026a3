//! Standard output, and values as people and programs read them. Knows nothing of the commands.

use std::borrow::Cow;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

use snapshot::error::{Error, Result};
use snapshot::format::cbor::Time;
use snapshot::id::hex;

/// Version of the JSON documents: it rises when a field goes or changes its meaning, not when one is added.
pub const JSON_VERSION: u32 = 1;

/// Standard output. Whoever reads it may leave early: that is success, remembered here.
pub struct Out {
    /// Called before anything is written: takes the progress bar away.
    before: Option<Box<dyn FnOnce()>>,
    inner: BufWriter<StdoutLock<'static>>,
    terminal: bool,
    closed: bool,
}

impl Out {
    /// Takes standard output for this thread; `before` is called once, when the first is written.
    pub fn new(before: impl FnOnce() + 'static) -> Self {
        let stdout = io::stdout().lock();
        let terminal = stdout.is_terminal();
        let inner = BufWriter::with_capacity(64 << 10, stdout);
        Self { before: Some(Box::new(before)), inner, terminal, closed: false }
    }

    /// Whether a person is reading.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether the reader has left.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Writes a part of a line.
    pub fn text(&mut self, text: impl AsRef<[u8]>) -> Result<()> {
        self.write_all(text.as_ref()).map_err(|e| Error::file("write", "standard output", e))
    }

    /// Writes a line.
    pub fn line(&mut self, text: impl AsRef<[u8]>) -> Result<()> {
        self.text(text)?;
        self.text("\n")
    }

    /// Writes one JSON document as a line.
    pub fn json(&mut self, value: &Value) -> Result<()> {
        self.line(value.to_string())
    }

    /// Sends what is buffered.
    pub fn finish(&mut self) -> Result<()> {
        self.flush().map_err(|e| Error::file("write", "standard output", e))
    }

    fn remember<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        self.closed |= matches!(&result, Err(e) if e.kind() == io::ErrorKind::BrokenPipe);
        result
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(before) = self.before.take() {
            before();
        }
        let result = self.inner.write(bytes);
        self.remember(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.inner.flush();
        self.remember(result)
    }
}

/// Text that can't command the terminal or fake a line: control characters are written as escapes.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(escape).collect())
}

/// Bytes of a path for people.
pub fn clean_path(path: &[u8]) -> String {
    clean(&String::from_utf8_lossy(path)).into_owned()
}

/// `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    // What would be rounded to 1024.0 belongs to the next unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS.get(unit).unwrap_or(&"EiB"))
}

/// `3,001`.
pub fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 file`, `3,001 files`.
pub fn count(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", number(n), if n == 1 { one } else { many })
}

fn stamp(time: Time) -> Option<Timestamp> {
    Timestamp::new(time.secs, i32::try_from(time.nanos).ok()?).ok()
}

/// RFC 3339 in UTC. A time outside the years that have such a form (a forged one) is given in seconds, as `@secs`.
pub fn rfc3339(time: Time) -> String {
    stamp(time).map_or_else(|| format!("@{}", time.secs), |t| t.to_string())
}

/// Date and time to the second, in this machine's time zone.
pub fn local_time(time: Time) -> String {
    stamp(time).map_or_else(
        || format!("@{}", time.secs),
        |t| t.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

/// Puts a path into a JSON object: as text under `key`, and its bytes in hex under `key_hex` if it isn't UTF-8.
pub fn put_path(object: &mut Map<String, Value>, key: &str, path: &[u8]) {
    object.insert(key.into(), json!(String::from_utf8_lossy(path)));
    if std::str::from_utf8(path).is_err() {
        object.insert(format!("{key}_hex"), json!(hex(path)));
    }
}

/// A JSON object that begins with the version of these documents.
pub fn document(fields: Value) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("version".into(), json!(JSON_VERSION));
    if let Value::Object(fields) = fields {
        object.extend(fields);
    }
    object
}

/// Writes a line with the commands to run, in their order, if there are any.
pub fn steps_line(out: &mut Out, title: &str, steps: &[&str]) -> Result<()> {
    if steps.is_empty() {
        return Ok(());
    }
    let steps: Vec<_> = steps.iter().map(|step| format!("`{step}`")).collect();
    out.line(format!("{title}: {}", steps.join(", then ")))
}

/// Rows in aligned columns.
pub struct Table {
    right: &'static [usize],
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings; the columns numbered in `right` hold numbers and are aligned so.
    pub fn new(headings: &[&str], right: &'static [usize]) -> Self {
        Self { right, rows: vec![headings.iter().map(|h| (*h).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|c| clean(c).into_owned()).collect());
    }

    /// The lines, without blanks at their ends.
    pub fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| self.rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max();
        let widths: Vec<_> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
        let cell = |(column, (text, width)): (usize, (&String, &usize))| {
            let width = *width;
            if self.right.contains(&column) { format!("{text:>width$}") } else { format!("{text:<width$}") }
        };
        let line = |row: &Vec<String>| row.iter().zip(&widths).enumerate().map(cell).collect::<Vec<_>>().join("  ");
        self.rows.iter().map(|row| line(row).trim_end().to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_for_people() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1024), "1.0 KiB");
        assert_eq!(size((1 << 20) - 1), "1.0 MiB");
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!(size(u64::MAX), "16.0 EiB");
        assert_eq!(number(0), "0");
        assert_eq!(number(999), "999");
        assert_eq!(number(1_234_567), "1,234,567");
        assert_eq!(count(1, "file", "files"), "1 file");
        assert_eq!(clean("a\u{1b}[2J\nb"), "a\\u{1b}[2J\\nb");
    }

    #[test]
    fn times_for_programs() {
        assert_eq!(rfc3339(Time { secs: 0, nanos: 500_000_000 }), "1970-01-01T00:00:00.5Z");
        assert_eq!(rfc3339(Time { secs: -1, nanos: 750_000_000 }), "1969-12-31T23:59:59.75Z");
        assert_eq!(rfc3339(Time { secs: i64::MAX, nanos: 0 }), format!("@{}", i64::MAX));
        assert_eq!(rfc3339(Time { secs: 0, nanos: u32::MAX }), "@0");
    }

    #[test]
    fn paths_keep_their_bytes() {
        let mut object = Map::new();
        put_path(&mut object, "path", b"a\xff");
        assert_eq!(Value::Object(object), json!({"path": "a\u{fffd}", "path_hex": "61ff"}));
    }

    #[test]
    fn columns_align() {
        let mut table = Table::new(&["name", "size"], &[1]);
        table.row(vec!["é\n".into(), "7".into()]);
        assert_eq!(table.lines(), ["name  size", "é\\n      7"]);
    }
}
