//! `get`, `put` and `delete`: one pair.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::address::NodeArgs;
use super::answer::{AnswerArgs, ask};
use super::client::{Answer, BODY_LIMIT};
use super::failure::{Failure, PAIR_EXIT_CODES, PLAIN_EXIT_CODES};
use super::key::path_of_key;

/// What `get` is told.
#[derive(Debug, clap::Args)]
#[command(after_help = PAIR_EXIT_CODES)]
pub struct GetArgs {
    /// The key, of any bytes; write `--` before one that begins with a dash
    #[arg(allow_negative_numbers = true)]
    key: OsString,
    /// Print the text of a JSON string, without quotes and escapes; other values are printed as JSON
    #[arg(long, short, conflicts_with = "json")]
    raw: bool,
    #[command(flatten)]
    answer: AnswerArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// What `put` is told.
#[derive(Debug, clap::Args)]
#[command(after_help = PLAIN_EXIT_CODES)]
pub struct PutArgs {
    /// The key, of any bytes; write `--` before one that begins with a dash
    #[arg(allow_negative_numbers = true)]
    key: OsString,
    /// The value: JSON if it is JSON, otherwise the string of this text; `-` reads it from standard input
    ///
    /// `put k 5` stores a number, `put k '"5"'` and `put --string k 5` a string, `put k five` a string too.
    /// JSON is stored as it is written, without the white space around it. A value from standard input that is
    /// taken as a string loses one newline at its end.
    #[arg(allow_negative_numbers = true)]
    value: String,
    /// Take the value as a string even if it is JSON
    #[arg(long, short)]
    string: bool,
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
    let path = path_of_key(args.key.as_bytes());
    let answer = ask(&args.node.node, args.answer.timeout, |client| client.get(&path))?;
    args.answer.form().show(&answer)?;
    if is_absence(&answer) {
        eprintln!("evenkv: the key does not exist");
        return Ok(false);
    }
    let found: Found = answer.parse()?;
    args.answer.form().say(&printed(found.value.get(), args.raw)?)?;
    Ok(true)
}

/// Stores the value and prints whether the key was there.
pub(super) fn put(args: &PutArgs) -> Result<bool, Failure> {
    let value = match args.value.as_str() {
        "-" => json_value(&read_value(io::stdin().lock())?, args.string, true),
        text => json_value(text, args.string, false),
    };
    let path = path_of_key(args.key.as_bytes());
    let answer = ask(&args.node.node, args.answer.timeout, |client| client.put_value(&path, &value))?;
    let form = args.answer.form();
    form.show(&answer)?;
    match answer.status {
        201 => form.say("added")?,
        200 => form.say("updated")?,
        _ => return Err(answer.refusal()),
    }
    Ok(true)
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

/// The text that stands for a value on the terminal.
fn printed(json: &str, raw: bool) -> Result<String, Failure> {
    if !raw || !json.starts_with('"') {
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

fn read_value(input: impl Read) -> Result<String, Failure> {
    let mut text = Vec::new();
    let read = input.take(BODY_LIMIT + 1).read_to_end(&mut text);
    read.map_err(|error| Failure::Local(format!("cannot read standard input: {error}")))?;
    if text.len() as u64 > BODY_LIMIT {
        return Err(Failure::Local(format!("the value on standard input is larger than {BODY_LIMIT} bytes")));
    }
    String::from_utf8(text).map_err(|_| {
        Failure::Local("the value on standard input is not UTF-8, so it cannot be JSON".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::{json_value, printed, read_value};

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
        for (json, raw, expected) in [
            (r#""a\n\"b\"""#, true, "a\n\"b\""),
            (r#""a\n""#, false, r#""a\n""#),
            ("[1,  2]", true, "[1,  2]"),
            ("null", true, "null"),
        ] {
            assert_eq!(printed(json, raw).unwrap(), expected);
        }
        assert!(printed(r#""\ud800""#, true).is_err());
    }

    #[test]
    fn input_that_is_not_text_is_refused() {
        assert_eq!(read_value(&b"abc"[..]).unwrap(), "abc");
        assert!(read_value(&b"\xff"[..]).is_err());
    }
}
