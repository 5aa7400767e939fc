//! What a client asks who wants to watch.

use std::borrow::Cow;

use tiny_http::Method;

use super::dispatch::Job;
use super::framing::Framing;
use super::node_handlers::header;
use super::routes::{self, Route};
use crate::error::Error;
use crate::model::cursor::Cursor;
use crate::wire::LAST_EVENT_ID;

/// A cursor in a query, for others.
pub const SINCE: &str = "since";

/// What is wanted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Changes of keys that begin with this.
    pub prefix: Vec<u8>,
    /// Whether values are told, too.
    pub values: bool,
    /// What comes after this: the number of the cluster that has given the cursor, and the cursor. From now on where there is none.
    pub since: Option<(u64, Cursor)>,
}

impl Wanted {
    /// Reads a request.
    ///
    /// # Errors
    /// As its client is to be told.
    pub fn of(job: &Job, max_key_length: usize) -> Result<Self, Error> {
        if *job.arrival.request.method() != Method::Get {
            return Err(Error::MethodNotAllowed(Route::Watch.allow()));
        }
        if job.arrival.framing != Framing::Empty {
            return Err(Error::BadRequest("Whoever watches sends no body".to_owned()));
        }
        let last = header(&job.arrival.request, LAST_EVENT_ID);
        let wanted = Self::parse(job.arrival.query().unwrap_or_default(), last.as_deref(), max_key_length)?;
        job.reach.check(&wanted.prefix)?;
        Ok(wanted)
    }

    fn parse(query: &str, last: Option<&str>, max_key_length: usize) -> Result<Self, Error> {
        let parameter = |name: &str| {
            let mut parameters = query.split('&').map(|one| one.split_once('=').unwrap_or((one, "")));
            parameters.find(|(found, _)| *found == name).map(|(_, value)| value)
        };
        let prefix = match parameter("prefix") {
            None | Some("") => Cow::Borrowed(&b""[..]),
            Some(encoded) => routes::decode_key(encoded)?,
        };
        if prefix.len() > max_key_length {
            return Err(Error::KeyTooLong { limit: max_key_length });
        }
        let values = match parameter("values") {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(Error::BadRequest("values is wrong: allowed is true or false".to_owned())),
        };
        let cursor = |name: &str, text: &str| {
            let wrong = format!("{name} is no cursor: allowed is the id of an event, as it came");
            Cursor::parse(text).ok_or(Error::BadRequest(wrong))
        };
        let since = match (last.map(str::trim).filter(|last| !last.is_empty()), parameter(SINCE)) {
            (Some(last), _) => Some(cursor(LAST_EVENT_ID, last)?),
            (None, Some(since)) => Some(cursor(SINCE, since)?),
            (None, None) => None,
        };
        Ok(Self { prefix: prefix.into_owned(), values, since })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_in_the_query_and_one_header() {
        let cursor = Cursor::everywhere(5);
        let text = cursor.text(7);
        let read = |query: &str, last: Option<&str>| Wanted::parse(query, last, 3).ok();
        let wanted = |prefix: &[u8], values, version: Option<u64>| {
            let since = version.map(|version| (7, Cursor::everywhere(version)));
            Some(Wanted { prefix: prefix.to_vec(), values, since })
        };
        let other = Cursor::everywhere(6).text(7);
        let table = [
            (String::new(), None, wanted(b"", false, None)),
            ("prefix=a%2F+&values=true".to_owned(), None, wanted(b"a/+", true, None)),
            ("values=false&prefix=".to_owned(), Some(""), wanted(b"", false, None)),
            ("other=1".to_owned(), Some(text.as_str()), wanted(b"", false, Some(5))),
            (format!("since={text}"), None, wanted(b"", false, Some(5))),
            (format!("since={other}"), Some(text.as_str()), wanted(b"", false, Some(5))),
            ("since=".to_owned(), None, None),
            ("since=1".to_owned(), None, None),
            (String::new(), Some("7"), None),
            ("prefix=%".to_owned(), None, None),
            ("prefix=abcd".to_owned(), None, None),
            ("values=yes".to_owned(), None, None),
            ("values".to_owned(), None, None),
        ];
        for (query, last, wanted) in table {
            assert_eq!(read(&query, last), wanted, "{query} {last:?}");
        }
    }
}
