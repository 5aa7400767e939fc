//! What the lines of a file say: pairs, and lines that cannot be one.

use std::borrow::Cow;
use std::cell::Cell;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read};
use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::super::client::BODY_LIMIT;
use super::format::{Column, Format};
use super::lines::{Line, Lines};
use crate::model::value::BYTES;

/// The longest line, or delimited record, that is read; a longer one is a failed line.
const LINE_LIMIT: u64 = BODY_LIMIT;

/// Stands as a record of its own behind a delimited file, in which nobody writes it: it ends the last record
/// where that has no line end, and shows up within it where a quote was never closed.
const END: &[u8] = b"\n\x1a\n";

/// A pair and the line where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) line: u64,
    pub(super) key: Vec<u8>,
    /// JSON text; bytes in base64 where they have a type of their own.
    pub(super) value: String,
    /// The type of bytes that are not JSON.
    pub(super) content_type: Option<String>,
    /// For how many seconds it lives, as JSON text.
    pub(super) ttl: Option<String>,
}

impl Record {
    /// A pair that lives for ever, whose value is JSON text.
    pub(super) fn json(line: u64, key: Vec<u8>, value: String) -> Self {
        Self { line, key, value, content_type: None, ttl: None }
    }

    /// About so many bytes of memory it takes.
    pub(super) fn length(&self) -> usize {
        size_of::<Self>() + self.key.len() + self.value.len()
    }

    /// The value as a client is told it that asks for JSON.
    pub(super) fn told(&self) -> Cow<'_, str> {
        match self.content_type {
            Some(_) => Cow::Owned(format!("\"{}\"", self.value)),
            None => Cow::Borrowed(&self.value),
        }
    }

    /// Appends the line of a batch that stores it.
    pub(super) fn put_line(&self, out: &mut Vec<u8>) {
        let text = |text: &str| serde_json::to_string(text).expect("a string is JSON");
        let key = match std::str::from_utf8(&self.key) {
            Ok(key) => format!("{{\"op\":\"put\",\"key\":{}", text(key)),
            Err(_) => format!("{{\"op\":\"put\",\"key-base64\":\"{}\"", STANDARD.encode(&self.key)),
        };
        out.extend_from_slice(key.as_bytes());
        match &self.content_type {
            None => {
                out.extend_from_slice(b",\"value\":");
                // Between the parts of JSON text, ends of lines are blanks; within its strings there are none.
                let blank = |byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte };
                out.extend(self.value.bytes().map(blank));
            }
            Some(content_type) => {
                let (value, content_type) = (&self.value, text(content_type));
                let value = format!(",\"value-base64\":\"{value}\",\"type\":{content_type}");
                out.extend_from_slice(value.as_bytes());
            }
        }
        if let Some(ttl) = &self.ttl {
            out.extend_from_slice(format!(",\"ttl\":{ttl}").as_bytes());
        }
        out.extend_from_slice(b"}\n");
    }

    /// A hash of the key, the same in every run.
    pub(super) fn key_hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.key);
        hasher.finish()
    }
}

/// What was made of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Record(Record),
    Bad { line: u64, reason: String },
}

impl Entry {
    /// The number of the line, counted from 1.
    pub(super) fn line(&self) -> u64 {
        match self {
            Entry::Record(record) => record.line,
            Entry::Bad { line, .. } => *line,
        }
    }
}

/// The entries of a file. An error of the iterator says why the rest of the file cannot be read, and is its last item.
pub(super) type Entries = Box<dyn Iterator<Item = Result<Entry, String>>>;

/// Reads `input` as `format` says.
pub(super) fn entries(format: Format, input: impl Read + 'static) -> Entries {
    match format {
        Format::Ndjson => by_line(input, ndjson),
        Format::Tsv => by_line(input, tsv),
        Format::Words => by_line(input, word),
        Format::Delimited { delimiter, key, quoting, header } => {
            let unparsed = Rc::new(Cell::new(0));
            let reader = csv::ReaderBuilder::new()
                .delimiter(delimiter)
                .quoting(quoting)
                .has_headers(header)
                .flexible(true)
                .terminator(csv::Terminator::Any(b'\n'))
                .from_reader(Metered { input: input.chain(END), unparsed: Rc::clone(&unparsed) });
            delimited(reader, unparsed, key)
        }
    }
}

/// A parser is given the number of the line and the line, and says what is there or what is wrong.
type Parser = fn(u64, &[u8]) -> Result<Parsed, String>;

/// What a line says.
enum Parsed {
    Pair(Record),
    /// It is one of an export, which ends with a line of its own.
    Exported(Record),
    /// The last line of an export, which has so many pairs before it.
    End(u64),
}

/// What is known of a file that may be an export.
#[derive(Default)]
struct Export {
    lines: u64,
    is_one: bool,
    /// How many pairs its last line names.
    end: Option<u64>,
}

impl Export {
    /// Takes what a line says; a line after the last is none.
    fn take(&mut self, line: u64, parsed: Result<Parsed, String>) -> Option<Entry> {
        if self.end.is_some() {
            let reason = "it comes after the last line of an export".to_owned();
            return Some(Entry::Bad { line, reason });
        }
        if let Ok(Parsed::End(keys)) = parsed {
            self.end = Some(keys);
            return None;
        }
        self.lines += 1;
        self.is_one |= matches!(parsed, Ok(Parsed::Exported(_)));
        Some(match parsed {
            Ok(Parsed::Pair(record) | Parsed::Exported(record)) => Entry::Record(record),
            Ok(Parsed::End(_)) => return None,
            Err(reason) => Entry::Bad { line, reason },
        })
    }

    /// What is wrong with the file as a whole, at its end.
    fn torn(&self) -> Option<String> {
        match self.end {
            Some(keys) if keys != self.lines => Some(format!(
                "the file is torn: its last line says that it has {keys} pairs, and {} are there",
                self.lines
            )),
            None if self.is_one => Some(
                "the file is torn: it is an export, and its last line, {\"end\":true,..}, is not there"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

fn by_line(input: impl Read + 'static, parse: Parser) -> Entries {
    let mut lines = Lines::new(input, usize::try_from(LINE_LIMIT).unwrap_or(usize::MAX));
    let (mut has_failed, mut export) = (false, Export::default());
    Box::new(std::iter::from_fn(move || {
        while !has_failed {
            let (line, text) = match lines.next() {
                Ok(Some((line, Line::Whole(text)))) => (line, text),
                Ok(Some((line, Line::TooLong))) => {
                    let reason = format!("the line is longer than {LINE_LIMIT} bytes");
                    return Some(Ok(Entry::Bad { line, reason }));
                }
                Ok(None) => {
                    has_failed = true;
                    return export.torn().map(Err);
                }
                Err(error) => {
                    has_failed = true;
                    return Some(Err(format!("cannot read on: {error}")));
                }
            };
            if !text.is_empty()
                && let Some(entry) = export.take(line, parse(line, &text))
            {
                return Some(Ok(entry));
            }
        }
        None
    }))
}

fn entry(line: u64, parsed: Result<(Vec<u8>, String), String>) -> Entry {
    match parsed {
        Ok((key, value)) => Entry::Record(Record::json(line, key, value)),
        Err(reason) => Entry::Bad { line, reason },
    }
}

fn ndjson(line: u64, text: &[u8]) -> Result<Parsed, String> {
    #[derive(Deserialize)]
    struct Pair<'a> {
        key: Option<String>,
        #[serde(rename = "key-base64")]
        key_base64: Option<String>,
        #[serde(borrow, default, deserialize_with = "raw")]
        value: Option<&'a RawValue>,
        #[serde(rename = "value-base64")]
        value_base64: Option<String>,
        #[serde(rename = "type")]
        content_type: Option<serde_json::Value>,
        #[serde(borrow, default, deserialize_with = "raw")]
        ttl: Option<&'a RawValue>,
        #[serde(default)]
        etag: serde_json::Value,
        #[serde(default)]
        end: serde_json::Value,
        #[serde(default)]
        keys: serde_json::Value,
    }
    let form = "not {\"key\": \"..\", \"value\": ..}";
    let pair = serde_json::from_slice::<Pair>(text).map_err(|error| {
        // The parser saw one line and says so; the line's number in the file is told elsewhere.
        format!("{form}: {}", error.to_string().replace(" at line 1 column ", " at column "))
    })?;
    let decoded = |name: &str, text: String| {
        STANDARD.decode(text).map_err(|error| format!("{form}: {name} is wrong: {error}"))
    };
    if let (true, Some(keys), None) = (pair.end == true, pair.keys.as_u64(), &pair.key) {
        return Ok(Parsed::End(keys));
    }
    let key = match (pair.key, pair.key_base64) {
        (Some(key), _) => key.into_bytes(),
        (None, Some(key)) => decoded("key-base64", key)?,
        (None, None) => return Err(format!("{form}: missing field `key`")),
    };
    let mut record = match (pair.value, pair.value_base64) {
        (Some(value), _) => Record::json(line, key, value.get().to_owned()),
        (None, Some(value)) => {
            // As a node would write it.
            let value = STANDARD.encode(decoded("value-base64", value)?);
            let content_type = pair.content_type.as_ref().and_then(|text| text.as_str());
            let content_type = Some(content_type.unwrap_or(BYTES).to_owned());
            Record { content_type, ..Record::json(line, key, value) }
        }
        (None, None) => return Err(format!("{form}: missing field `value`")),
    };
    if !pair.etag.as_str().is_some_and(|tag| tag.starts_with('"')) {
        // It is no line of an export, and its other fields mean nothing.
        return Ok(Parsed::Pair(record));
    }
    record.ttl = pair.ttl.map(|ttl| ttl.get().to_owned());
    Ok(Parsed::Exported(record))
}

/// JSON text as it stands there, be it null.
fn raw<'de, D: Deserializer<'de>>(reader: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(reader).map(Some)
}

fn tsv(line: u64, text: &[u8]) -> Result<Parsed, String> {
    let tab = text.iter().position(|byte| *byte == b'\t').ok_or("there is no tab between key and value")?;
    let value = std::str::from_utf8(&text[tab + 1..]).map_err(|_| "the value is not UTF-8")?;
    let value = serde_json::Value::from(value).to_string();
    Ok(Parsed::Pair(Record::json(line, text[..tab].to_vec(), value)))
}

#[expect(clippy::unnecessary_wraps, reason = "all parsers have one shape")]
fn word(line: u64, text: &[u8]) -> Result<Parsed, String> {
    Ok(Parsed::Pair(Record::json(line, text.to_vec(), line.to_string())))
}

/// The line of a record is counted back from where the record ends, since the reader counts the ends of empty
/// lines, and of `\r\n`, to the record after them. So each record must end in `\n`, also the last one.
fn delimited<R: Read + 'static>(mut reader: csv::Reader<R>, unparsed: Rc<Cell<u64>>, key: Column) -> Entries {
    let mut record = csv::ByteRecord::new();
    let mut has_failed = false;
    Box::new(std::iter::from_fn(move || {
        while !has_failed {
            unparsed.set(0);
            match reader.read_byte_record(&mut record) {
                Ok(true) if matches!(record.as_slice(), b"\r" | b"\x1a") => {}
                Ok(true) => {
                    let within: u64 = record.as_slice().iter().map(|byte| u64::from(*byte == b'\n')).sum();
                    let line = reader.position().line() - within;
                    if record.as_slice().ends_with(END) {
                        let reason = "a quote is left open, up to the end of the file (see --no-quoting)";
                        return Some(Ok(Entry::Bad { line, reason: reason.to_owned() }));
                    }
                    return Some(Ok(entry(line - 1, fields(&record, key))));
                }
                Ok(false) => return None,
                Err(error) => {
                    has_failed = true;
                    let line = reader.position().line();
                    return Some(Err(format!("cannot read on after line {line}: {error}")));
                }
            }
        }
        None
    }))
}

fn fields(record: &csv::ByteRecord, key: Column) -> Result<(Vec<u8>, String), String> {
    let texts = record.iter().map(std::str::from_utf8).collect::<Result<Vec<&str>, _>>();
    let mut texts = texts.map_err(|_| "the fields are not UTF-8")?;
    if let Some(last) = texts.last_mut() {
        *last = last.strip_suffix('\r').unwrap_or(last);
    }
    let key = texts
        .get(key.get() - 1)
        .ok_or_else(|| format!("there is no field {key} for the key, the line has {}", texts.len()))?;
    Ok((key.as_bytes().to_vec(), serde_json::Value::from(texts.clone()).to_string()))
}

/// Bounds what a record may take: a quote that is never closed would make one record of the rest of the file.
struct Metered<R> {
    input: R,
    /// Bytes read since the last record ended, give or take a buffer.
    unparsed: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.unparsed.get() > LINE_LIMIT {
            let text = format!(
                "a record is longer than {LINE_LIMIT} bytes; is a quote left open (see --no-quoting)?"
            );
            return Err(io::Error::other(text));
        }
        let count = self.input.read(buffer)?;
        self.unparsed.set(self.unparsed.get() + count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read};
    use std::num::NonZeroUsize;

    use super::{Entry, Format, Record, entries};

    fn read(format: Format, input: &[u8]) -> Vec<Entry> {
        entries(format, io::Cursor::new(input.to_vec())).map(Result::unwrap).collect()
    }

    fn pair(line: u64, key: impl AsRef<[u8]>, value: &str) -> Entry {
        Entry::Record(Record::json(line, key.as_ref().to_vec(), value.to_owned()))
    }

    /// The line and a part of the reason of a bad one; the pair otherwise.
    fn check(found: &[Entry], expected: &[Result<Entry, (u64, &str)>]) {
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            match (found, expected) {
                (Entry::Bad { line, reason }, Err((number, part))) => {
                    assert_eq!(line, number, "{reason}");
                    assert!(reason.contains(part), "{reason}");
                }
                (found, Ok(expected)) => assert_eq!(found, expected),
                (found, expected) => panic!("{found:?} is not {expected:?}"),
            }
        }
    }

    #[test]
    fn ndjson_lines() {
        let input = b"{\"key\":\"a\",\"value\":{\"x\": 1.0,  \"y\":[]}}\r\n\
            {\"value\": null, \"more\": 1, \"key\": \"\\u00e9/\"}\n\
            \n\
            {\"key\":\"a\"}\n\
            {\"value\":1}\n\
            {\"key\":5,\"value\":1}\n\
            {\"key\":\"a\",\"value\":}\n\
            {\"key\":\"a\",\"value\":1} {}\n\
            [1]\n\
            {\"key\":\"\xff\",\"value\":1}\n\
            {\"key\":\"\",\"value\":\"last\"}";
        check(
            &read(Format::Ndjson, input),
            &[
                Ok(pair(1, "a", "{\"x\": 1.0,  \"y\":[]}")),
                Ok(pair(2, "é/", "null")),
                Err((4, "missing field `value`")),
                Err((5, "missing field `key`")),
                Err((6, "expected a string at column 8")),
                Err((7, "expected value at column 20")),
                Err((8, "trailing characters")),
                Err((9, "not {\"key\": \"..\", \"value\": ..}")),
                Err((10, "invalid unicode")),
                Ok(pair(11, "", "\"last\"")),
            ],
        );
    }

    #[test]
    fn lines_of_an_export() {
        let typed = |line, key: &[u8], value: &str, content_type: &str| {
            let content_type = Some(content_type.to_owned());
            Record { content_type, ..Record::json(line, key.to_vec(), value.to_owned()) }
        };
        let lines = "{\"key\":\"a\",\"value\":[1],\"type\":\"application/json\",\"etag\":\"\\\"7\\\"\",\"ttl\":1.5}\n\
            {\"key-base64\":\"/w==\",\"value-base64\":\"AA==\",\"type\":\"image/x\",\"etag\":\"x\"}\n\
            {\"key\":\"b\",\"value-base64\":\"?\",\"etag\":\"x\"}\n";
        let end = |keys: u64| format!("{lines}{{\"end\":true,\"keys\":{keys},\"checksum\":\"c\"}}\n");
        let read = |text: &str| {
            entries(Format::Ndjson, io::Cursor::new(text.as_bytes().to_vec())).collect::<Vec<_>>()
        };
        let good = read(&end(3));
        assert_eq!(good.len(), 3, "{good:?}");
        let ttl = Some("1.5".to_owned());
        assert_eq!(
            good[0],
            Ok(Entry::Record(Record { ttl, ..Record::json(1, b"a".to_vec(), "[1]".to_owned()) }))
        );
        assert_eq!(good[1], Ok(Entry::Record(typed(2, b"\xff", "AA==", "image/x"))));
        assert!(matches!(&good[2], Ok(Entry::Bad { line: 3, reason }) if reason.contains("value-base64")));
        // One that lacks lines in the middle or at its end, and one with lines after its end.
        for (torn, said) in [(end(4), "has 4 pairs, and 3"), (lines.to_owned(), "its last line")] {
            let found = read(&torn);
            assert!(matches!(&found[3], Err(reason) if reason.contains(said)), "{found:?}");
        }
        let longer = read(&format!("{}{lines}", end(3)));
        assert!(matches!(&longer[3], Ok(Entry::Bad { line: 5, .. })), "{longer:?}");
        let mut sent = Vec::new();
        for entry in good {
            if let Ok(Entry::Record(record)) = entry {
                record.put_line(&mut sent);
            }
        }
        let wanted = "{\"op\":\"put\",\"key\":\"a\",\"value\":[1],\"ttl\":1.5}\n\
            {\"op\":\"put\",\"key-base64\":\"/w==\",\"value-base64\":\"AA==\",\"type\":\"image/x\"}\n";
        assert_eq!(String::from_utf8(sent).unwrap(), wanted);
    }

    #[test]
    fn tsv_lines() {
        let input = b"key\tvalue \"q\"\nk2\ta\tb\r\n\nno tab\n\xff\x01\t5\nkey\t\xff\n\tempty key\nk\t\n";
        check(
            &read(Format::Tsv, input),
            &[
                Ok(pair(1, "key", "\"value \\\"q\\\"\"")),
                Ok(pair(2, "k2", "\"a\\tb\"")),
                Err((4, "no tab")),
                Ok(pair(5, b"\xff\x01", "\"5\"")),
                Err((6, "not UTF-8")),
                Ok(pair(7, "", "\"empty key\"")),
                Ok(pair(8, "k", "\"\"")),
            ],
        );
    }

    #[test]
    fn words_have_their_line_as_value() {
        check(
            &read(Format::Words, "A's\n\n étude \r\nlast".as_bytes()),
            &[Ok(pair(1, "A's", "1")), Ok(pair(3, " étude ", "3")), Ok(pair(4, "last", "4"))],
        );
        check(&read(Format::Words, b"\xe9tude\n"), &[Ok(pair(1, b"\xe9tude", "1"))]);
    }

    #[test]
    fn delimited_records() {
        let key = NonZeroUsize::new(2).unwrap();
        let quoted = Format::Delimited { delimiter: b';', key, quoting: true, header: false };
        let input = b"a;k1;c\n\"x;\"\"y\";\"two\nlines\";\r\n\nonly\r\n\r\nb;\xff\n\nc;\"k2\"\r\nd;k3";
        check(
            &read(quoted, input),
            &[
                Ok(pair(1, "k1", r#"["a","k1","c"]"#)),
                Ok(pair(2, "two\nlines", r#"["x;\"y","two\nlines",""]"#)),
                Err((5, "no field 2")),
                Err((7, "not UTF-8")),
                Ok(pair(9, "k2", r#"["c","k2"]"#)),
                Ok(pair(10, "k3", r#"["d","k3"]"#)),
            ],
        );
        let plain = Format::Delimited { delimiter: b';', key, quoting: false, header: true };
        check(
            &read(plain, b"name;key\n\"open;k\nnext;\"k2\"\n"),
            &[Ok(pair(2, "k", r#"["\"open","k"]"#)), Ok(pair(3, "\"k2\"", r#"["next","\"k2\""]"#))],
        );
    }

    #[test]
    fn an_open_quote_is_told() {
        let key = NonZeroUsize::MIN;
        let format = Format::Delimited { delimiter: b',', key, quoting: true, header: false };
        let open = Err((2, "a quote is left open"));
        check(&read(format, b"a,b\nc,\"d\ne,f\n"), &[Ok(pair(1, "a", r#"["a","b"]"#)), open]);
        check(&read(format, b"a,\"b\n\""), &[Ok(pair(1, "a", r#"["a","b\n"]"#))]);
    }

    #[test]
    fn an_open_quote_does_not_swallow_everything() {
        let key = NonZeroUsize::MIN;
        let format = Format::Delimited { delimiter: b',', key, quoting: true, header: false };
        let endless = (&b"a,b\n\"open"[..]).chain(io::repeat(b'x'));
        let found: Vec<_> = entries(format, endless).collect();
        assert_eq!(found[0], Ok(pair(1, "a", r#"["a","b"]"#)));
        assert!(found[1].as_ref().unwrap_err().contains("quote left open"), "{:?}", found[1]);
        assert_eq!(found.len(), 2);
    }
}
