//! `get`, `put` and `delete`: one pair.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::address::NodeArgs;
use super::answer::{AnswerArgs, ask};
use super::client::{Answer, BODY_LIMIT};
use super::failure::{Failure, PAIR_EXIT_CODES, PUT_EXIT_CODES};
use super::key::{path_of_bytes, path_of_key};
use super::output::{print, print_bytes};
use crate::model::ttl::Ttl;

const JSON: &str = "application/json";

/// What `get` is told.
#[derive(Debug, clap::Args)]
#[command(after_help = PAIR_EXIT_CODES)]
pub struct GetArgs {
    /// The key, of any bytes; write `--` before one that begins with a dash
    #[arg(allow_negative_numbers = true)]
    key: OsString,
    /// Print the value as it is: of a JSON string the text, other JSON as JSON, of anything else the bytes
    #[arg(long, short, conflicts_with = "json")]
    raw: bool,
    /// Print the entity tag, as `put --if-match` takes it, and not the value
    #[arg(long, conflicts_with_all = ["json", "raw"])]
    etag: bool,
    #[command(flatten)]
    answer: AnswerArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// What `put` is told.
#[derive(Debug, clap::Args)]
#[command(after_help = PUT_EXIT_CODES)]
pub struct PutArgs {
    /// The key, of any bytes; write `--` before one that begins with a dash
    #[arg(allow_negative_numbers = true)]
    key: OsString,
    /// The value: JSON if it is JSON, otherwise the string of this text; `-` reads it from standard input
    ///
    /// `put k 5` stores a number, `put k '"5"'` and `put --string k 5` a string, `put k five` a string too.
    /// JSON is stored as it is written, without the white space around it. A value from standard input that is
    /// taken as a string loses one newline at its end.
    #[arg(allow_negative_numbers = true, required_unless_present = "file")]
    value: Option<String>,
    /// Take the value as a string even if it is JSON
    #[arg(long, short)]
    string: bool,
    /// Store the bytes of this file as they are, and not VALUE; `-` reads them from standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["value", "string", "json"])]
    file: Option<PathBuf>,
    /// The content type under which the file is stored; what is application/json has to be JSON
    #[arg(
        long = "type",
        value_name = "TYPE",
        requires = "file",
        conflicts_with = "value",
        default_value = "application/octet-stream"
    )]
    content_type: String,
    /// Let the pair live for this time only, with decimals where these are wanted
    #[arg(long, value_name = "SECONDS", value_parser = ttl)]
    ttl: Option<Ttl>,
    /// Store it only if what is there has this entity tag, as `get --etag` prints it; `*`: if anything is there
    #[arg(long, value_name = "ETAG")]
    if_match: Option<String>,
    /// Store it only if what is there has not this entity tag; `*`: if nothing is there
    #[arg(long, value_name = "ETAG")]
    if_none_match: Option<String>,
    #[command(flatten)]
    answer: AnswerArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// What `delete` is told.
#[derive(Debug, clap::Args)]
#[command(after_help = PAIR_EXIT_CODES)]
pub struct DeleteArgs {
    /// The key, of any bytes; write `--` before one that begins with a dash
    #[arg(allow_negative_numbers = true)]
    key: OsString,
    #[command(flatten)]
    answer: AnswerArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// The body of a 200 to a GET. The value keeps the bytes in which it came.
#[derive(Deserialize)]
pub(super) struct Found<'a> {
    #[serde(borrow)]
    pub(super) value: &'a RawValue,
}

/// Prints the value, or says that there is none.
pub(super) fn get(args: &GetArgs) -> Result<bool, Failure> {
    if args.raw {
        return get_bytes(args);
    }
    let path = path_of_key(args.key.as_bytes());
    let answer = ask(&args.node.node, args.answer.timeout, |client| client.get(&path))?;
    args.answer.form().show(&answer)?;
    if is_absence(&answer) {
        eprintln!("evenkv: the key does not exist");
        return Ok(false);
    }
    let found: Found = answer.parse()?;
    match &answer.tag {
        Some(tag) if args.etag => print(tag.as_bytes())?,
        None if args.etag => return Err(Failure::Local("the node tells no entity tag".to_owned())),
        _ => args.answer.form().say(found.value.get())?,
    }
    Ok(true)
}

/// Prints the value as it is, or says that there is none.
fn get_bytes(args: &GetArgs) -> Result<bool, Failure> {
    let path = path_of_bytes(args.key.as_bytes());
    let answer = ask(&args.node.node, args.answer.timeout, |client| client.get(&path))?;
    let is = |wanted: &str| answer.content_type.as_deref().is_some_and(|said| essence(said) == wanted);
    match answer.status {
        200 if is(JSON) => {
            let text = str::from_utf8(&answer.body)
                .map_err(|_| Failure::Local("the value is said to be JSON and is no text".to_owned()))?;
            print(text_of(text)?.as_bytes())?;
        }
        200 => print_bytes(&answer.body)?,
        // Other servers say 404 too, to every path.
        404 if is("application/problem+json") => {
            eprintln!("evenkv: the key does not exist");
            return Ok(false);
        }
        _ => return Err(answer.refusal()),
    }
    Ok(true)
}

/// A content type without its parameters.
fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Stores the value and prints whether the key was there.
pub(super) fn put(args: &PutArgs) -> Result<bool, Failure> {
    let key = args.key.as_bytes();
    let (path, content_type, body) = match (&args.file, args.value.as_deref().unwrap_or_default()) {
        // Only there the body is the value.
        (Some(file), _) => (path_of_bytes(key), args.content_type.as_str(), read_file(file)?),
        (None, "-") => {
            let value = json_value(&read_value(io::stdin().lock())?, args.string, true);
            (path_of_key(key), JSON, envelope(&value))
        }
        (None, text) => (path_of_key(key), JSON, envelope(&json_value(text, args.string, false))),
    };
    let ttl = args.ttl.map(|ttl| ttl.to_string());
    let [if_match, if_none_match] =
        [&args.if_match, &args.if_none_match].map(|tag| tag.as_deref().map(quoted));
    // In lower case, as the library has them.
    let headers = [("evenkv-ttl", ttl), ("if-match", if_match), ("if-none-match", if_none_match)];
    let headers: Vec<(&str, &str)> =
        headers.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
    let answer = ask(&args.node.node, args.answer.timeout, |client| {
        client.put_as(&path, content_type, body, &headers)
    })?;
    let form = args.answer.form();
    form.show(&answer)?;
    match answer.status {
        201 => form.say("added")?,
        200 => form.say("updated")?,
        412 => {
            eprintln!("evenkv: the condition does not hold");
            return Ok(false);
        }
        _ => return Err(answer.refusal()),
    }
    Ok(true)
}

/// The body that has a value, which is JSON text and goes out as it is.
fn envelope(value: &str) -> Vec<u8> {
    format!("{{\"value\":{value}}}").into_bytes()
}

fn ttl(text: &str) -> Result<Ttl, String> {
    Ttl::parse(text).map_err(|error| error.to_string())
}

/// An entity tag as a header has it: a shell has often taken the quotes away.
fn quoted(tag: &str) -> String {
    if tag == "*" || tag.contains('"') { tag.to_owned() } else { format!("\"{tag}\"") }
}

/// Deletes the key, or says that it is absent.
pub(super) fn delete(args: &DeleteArgs) -> Result<bool, Failure> {
    let path = path_of_key(args.key.as_bytes());
    let answer = ask(&args.node.node, args.answer.timeout, |client| client.delete(&path))?;
    let form = args.answer.form();
    form.show(&answer)?;
    match answer.status {
        200 => form.say("deleted").map(|()| true),
        _ if is_absence(&answer) => {
            eprintln!("evenkv: the key does not exist");
            Ok(false)
        }
        _ => Err(answer.refusal()),
    }
}

/// Whether the answer says that the key is absent; other servers say 404 too, to every path.
pub(super) fn is_absence(answer: &Answer) -> bool {
    #[derive(Deserialize)]
    struct Absent {
        #[serde(rename = "doesExist")]
        does_exist: bool,
    }
    answer.status == 404 && serde_json::from_slice::<Absent>(&answer.body).is_ok_and(|said| !said.does_exist)
}

/// The text of a JSON string, and any other JSON as it is.
fn text_of(json: &str) -> Result<String, Failure> {
    if !json.starts_with('"') {
        return Ok(json.to_owned());
    }
    serde_json::from_str(json)
        .map_err(|error| Failure::Local(format!("the string has no text ({error}); it is {json}")))
}

/// The JSON of a value that a person wrote.
fn json_value(text: &str, is_string: bool, from_input: bool) -> String {
    if !is_string && let Ok(json) = serde_json::from_str::<&RawValue>(text) {
        return json.get().to_owned();
    }
    // What comes from standard input ends in a newline that nobody means.
    let text = if from_input { text.strip_suffix('\n').unwrap_or(text) } else { text };
    serde_json::Value::from(text).to_string()
}

fn read_file(file: &Path) -> Result<Vec<u8>, Failure> {
    if file == Path::new("-") {
        return read_all(io::stdin().lock(), "standard input");
    }
    let name = file.display().to_string();
    let opened = File::open(file).map_err(|error| Failure::Local(format!("cannot read {name}: {error}")))?;
    read_all(opened, &name)
}

fn read_all(input: impl Read, name: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = input.take(BODY_LIMIT + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure::Local(format!("cannot read {name}: {error}")))?;
    if bytes.len() as u64 > BODY_LIMIT {
        return Err(Failure::Local(format!("the value in {name} is larger than {BODY_LIMIT} bytes")));
    }
    Ok(bytes)
}

fn read_value(input: impl Read) -> Result<String, Failure> {
    String::from_utf8(read_all(input, "standard input")?).map_err(|_| {
        Failure::Local("the value on standard input is not UTF-8, so it cannot be JSON".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::{json_value, quoted, read_value, text_of};

    #[test]
    fn a_value_is_json_where_it_can_be() {
        for (text, is_string, from_input, expected) in [
            ("5", false, false, "5"),
            ("1.50e3", false, false, "1.50e3"),
            (" {\"b\": 1,  \"a\": [] }\n", false, true, "{\"b\": 1,  \"a\": [] }"),
            ("null", false, false, "null"),
            ("\"5\"", false, false, "\"5\""),
            ("5", true, false, "\"5\""),
            ("five", false, false, "\"five\""),
            ("", false, false, "\"\""),
            ("{oops", false, false, "\"{oops\""),
            ("say \"hi\"\n", false, false, "\"say \\\"hi\\\"\\n\""),
            ("hello\n\n", false, true, "\"hello\\n\""),
            ("5\n", true, true, "\"5\""),
        ] {
            assert_eq!(json_value(text, is_string, from_input), expected, "{text:?}");
        }
    }

    #[test]
    fn raw_prints_the_text_of_a_string() {
        for (json, expected) in [(r#""a\n\"b\"""#, "a\n\"b\""), ("[1,  2]", "[1,  2]"), ("null", "null")] {
            assert_eq!(text_of(json).unwrap(), expected);
        }
        assert!(text_of(r#""\ud800""#).is_err());
    }

    #[test]
    fn a_tag_gets_the_quotes_that_it_lacks() {
        for (tag, expected) in [("*", "*"), ("a7", "\"a7\""), ("\"a7\"", "\"a7\""), ("W/\"x\"", "W/\"x\"")] {
            assert_eq!(quoted(tag), expected);
        }
    }

    #[test]
    fn input_that_is_not_text_is_refused() {
        assert_eq!(read_value(&b"abc"[..]).unwrap(), "abc");
        assert!(read_value(&b"\xff"[..]).is_err());
    }
}
