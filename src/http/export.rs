//! What `/v1/export` gives: all pairs, line by line, and what tells a whole file from a torn one.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::{mem, vec};

use tiny_http::Method;

use super::answer::Answer;
use super::answer_body::Body;
use super::body::Limit;
use super::dispatch::Job;
use super::error_form::ErrorForm;
use super::listing::{Asked, Form, LINES_TYPE, Row};
use super::routes::Route;
use crate::clock::{Deadline, now};
use crate::error::Error;
use crate::model::condition::TagSpace;
use crate::model::store::Checksum;
use crate::node::export::Export;
use crate::node::host;
use crate::node::state::Node;
use crate::wire::listing::Entry;

/// The body of such a request says nothing, and is refused where it is longer.
const BODY: Limit = Limit { bytes: 1 << 20, allowed: 1 << 20 };
/// Lines are written together until they have so many bytes.
const WRITTEN_BYTES: usize = 32 << 10;

/// Answers a request for an export.
pub fn answer(node: &Arc<Node>, job: &mut Job) -> Answer {
    let method = job.arrival.method().clone();
    find_answer(node, job, &method).unwrap_or_else(|error| Answer::error(&error, &method, ErrorForm::Problem))
}

fn find_answer(node: &Arc<Node>, job: &mut Job, method: &Method) -> Result<Answer, Error> {
    let body = job.read_body(BODY, &node.budget);
    if *method != Method::Get {
        return Err(Error::MethodNotAllowed(Route::V1Export.allow()));
    }
    body?;
    let asked = Asked::parse(job.arrival.query().unwrap_or_default())?;
    job.reach.check(&asked.span.prefix)?;
    if *job.arrival.request.method() == Method::Head {
        // Nobody is to keep anything for one that is not read.
        return Ok(stream(io::empty()));
    }
    let mut lines = Lines {
        node: Arc::clone(node),
        export: Export::new(asked.span.prefix),
        tags: TagSpace::of(""),
        entries: Vec::new().into_iter(),
        bytes: Vec::new(),
        read: 0,
        sum: Checksum::default(),
        is_over: false,
    };
    // So that one that cannot even begin is still refused.
    lines.ask(Deadline::after(job.complete, node.request_timeout))?;
    Ok(stream(lines))
}

fn stream(lines: impl Read + Send + 'static) -> Answer {
    let body = Body::Stream { reader: Box::new(lines), length: None };
    Answer { body, content_type: Cow::Borrowed(LINES_TYPE), ..Answer::json(200, &b""[..]) }
}

/// The lines of an export, which asks for the next pairs when those before them have been read.
struct Lines {
    node: Arc<Node>,
    export: Export,
    tags: TagSpace,
    /// What was told and is not written yet.
    entries: vec::IntoIter<Entry>,
    /// What is written, and how much of that was read.
    bytes: Vec<u8>,
    read: usize,
    /// Over all lines that were written.
    sum: Checksum,
    /// The last line was written.
    is_over: bool,
}

impl Lines {
    /// Asks for the next pairs.
    fn ask(&mut self, deadline: Deadline) -> Result<(), Error> {
        if let Some(exported) = host::run(self.node.export_some(&mut self.export, deadline))? {
            (self.tags, self.entries) = (exported.tags, exported.entries.into_iter());
        }
        Ok(())
    }

    /// Writes the next lines.
    fn write(&mut self) -> Result<(), Error> {
        (self.bytes, self.read) = (mem::take(&mut self.bytes), 0);
        self.bytes.clear();
        let deadline = Deadline::after(now(), self.node.request_timeout);
        while self.bytes.len() < WRITTEN_BYTES && !self.is_over {
            if self.node.is_stopping() {
                return Err(Error::NotServing("the node is stopping".to_owned()));
            }
            if self.entries.len() == 0 {
                self.ask(deadline)?;
            }
            if let Some(entry) = self.entries.next() {
                self.put(&entry);
            } else {
                let Checksum { pairs, sum } = self.sum;
                // Nothing can go wrong when text is written into memory.
                drop(writeln!(self.bytes, "{{\"end\":true,\"keys\":{pairs},\"checksum\":\"{sum:032x}\"}}"));
                self.is_over = true;
            }
        }
        Ok(())
    }

    fn put(&mut self, entry: &Entry) {
        let stored = entry.value.as_deref().unwrap_or_default();
        self.sum = self.sum + Checksum::of_content(&entry.key, stored);
        let row = Row {
            key: &entry.key,
            tag: self.tags.tag(entry.version),
            length: None,
            left: entry.left,
            stored: Some(stored),
        };
        row.put(&mut self.bytes, Form::Exact);
        self.bytes.push(b'\n');
    }
}

impl Read for Lines {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.bytes.len() {
            // The answer has begun: that it ends in the middle is all that can be said.
            self.write().map_err(|error| {
                log::warn!("an export breaks off: {error}");
                io::Error::other(error)
            })?;
        }
        let count = self.bytes.len().min(self.read + buffer.len()) - self.read;
        buffer[..count].copy_from_slice(&self.bytes[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}
