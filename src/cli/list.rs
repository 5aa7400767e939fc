//! `list`: the keys in their order.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::address::NodeArgs;
use super::answer::{AnswerArgs, Form};
use super::client::Client;
use super::failure::{Failure, PLAIN_EXIT_CODES};
use super::key::PrefixArgs;
use super::output::print_more;
use super::waiting::Waiting;

/// What `list` is told.
#[derive(Debug, clap::Args)]
#[command(after_help = PLAIN_EXIT_CODES)]
pub struct ListArgs {
    #[command(flatten)]
    prefix: PrefixArgs,
    #[command(flatten)]
    answer: AnswerArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// A page, with the pairs as the node tells them.
#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Row {
    key: Option<String>,
    #[serde(rename = "key-base64")]
    key_base64: Option<String>,
}

/// Prints a key a line, or what the node tells of each. Each page has the time for an answer.
pub(super) fn list(args: &ListArgs) -> Result<bool, Failure> {
    let (form, timeout) = (args.answer.form(), args.answer.timeout);
    let client = Client::new(&args.node.node, 1, timeout)?;
    let prefix = args.prefix.encoded();
    let mut after = Some(String::new());
    while let Some(key) = after {
        let answer = {
            let _waiting = Waiting::begin(&args.node.node, timeout);
            client.get(&format!("/v1/kv?prefix={prefix}&after={key}&watch=false"))?
        };
        let page: Page = answer.parse()?;
        let lines = page.keys.iter().map(|row| line(row, form)).collect::<Result<Vec<_>, _>>()?;
        if !lines.is_empty() && !print_more(&lines.join(&b'\n'))? {
            break;
        }
        after = page.next;
    }
    Ok(true)
}

fn line(row: &RawValue, form: Form) -> Result<Vec<u8>, Failure> {
    if form == Form::Json {
        return Ok(row.get().as_bytes().to_vec());
    }
    let wrong = || Failure::Local(format!("a key cannot be read: {row}"));
    let Row { key, key_base64 } = serde_json::from_str(row.get()).map_err(|_| wrong())?;
    match (key, key_base64) {
        (Some(key), _) => Ok(key.into_bytes()),
        (None, Some(coded)) => STANDARD.decode(coded).map_err(|_| wrong()),
        (None, None) => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_the_key_or_what_the_node_tells() {
        let table = [
            (r#"{"key":"a\"b","bytes":1}"#, Form::Words, Some(&b"a\"b"[..])),
            (r#"{"key-base64":"/wA="}"#, Form::Words, Some(b"\xff\0")),
            (r#"{"key":"a","bytes":1}"#, Form::Json, Some(b"{\"key\":\"a\",\"bytes\":1}")),
            (r#"{"key-base64":"?"}"#, Form::Words, None),
            (r#"{"bytes":1}"#, Form::Words, None),
        ];
        for (row, form, wanted) in table {
            let row: &RawValue = serde_json::from_str(row).unwrap();
            assert_eq!(line(row, form).ok().as_deref(), wanted, "{row}");
        }
    }
}
