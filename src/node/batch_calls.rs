//! Passing parts of batches on, each to its node, all at the same time: short ones on the connection for many requests where the node has to wait for no log, others by HTTP.

use std::borrow::Cow;

use ureq::http::Method;

use super::batch::{Part, Question, Replies, ask_one_by_one};
use super::calls::{header, is_unknown_path, left_ms, make_room, refused, reply};
use super::host;
use super::keys::{NotServed, Outcome, Reply, Request, Value};
use super::state::Node;
use crate::error::Error;
use crate::model::condition::TagSpace;
use crate::model::format;
use crate::model::shard::Done;
use crate::peers::client::{Patience, complete, read_body};
use crate::peers::multiplex::Begun;
use crate::peers::no_answer::{NoAnswer, NoAnswerKind};
use crate::threads;
use crate::wire::frames::Form;
use crate::wire::{self, Addressed, batches, frames};

/// A longer value, in bytes, takes part of the memory for large ones.
const LARGE_VALUE: usize = 64 * 1024;
/// An answer without values is no longer than this for each question.
const SHORT_ANSWER: u64 = 8 << 10;

/// A part that is longer, in bytes, or has more questions would hold up the requests that share the connection.
const LONGEST_FRAME: usize = 128 << 10;
const MOST_QUESTIONS: usize = 2000;
/// Values of so many bytes are read where the answer is a frame.
const FRAME_ROOM: usize = 64 << 10;

/// Passes parts on, and waits for all of them.
pub(super) fn ask_all(node: &Node, parts: &[Part]) -> Vec<Replies> {
    let begun: Vec<_> = parts.iter().map(|part| begin(node, part)).collect();
    let rest: Vec<&Part> =
        parts.iter().zip(&begun).filter(|(_, begun)| begun.is_none()).map(|(part, _)| part).collect();
    let mut by_http = threads::all_at_once("batch", &rest, |part| ask(node, part)).into_iter();
    let end = |(part, begun): (&Part, Option<Begun>)| match begun {
        Some(begun) => end(node, part, begun),
        None => by_http.next().expect("each that is not begun goes by HTTP"),
    };
    parts.iter().zip(begun).map(end).collect()
}

/// Sends a part in a frame. Nothing where it has to go by HTTP.
fn begin(node: &Node, part: &Part) -> Option<Begun> {
    // Whoever has the only replica waits for no log, unless it keeps one on its disk.
    part.addressed.incarnation.filter(|_| !node.is_durable())?;
    if part.questions.len() > MOST_QUESTIONS {
        return None;
    }
    let connection = node.peers.at(&part.to).connection()?;
    let body = body(part, part.room.min(FRAME_ROOM)).ok()?;
    if connection.form() < Form::Batches || body.len() > LONGEST_FRAME {
        return None;
    }
    let mut frame = Vec::with_capacity(body.len() + frames::HEAD);
    frames::put_part((0, connection.form()), &body, &mut frame);
    connection.begin(part.questions.first()?.group, part.deadline, frame)
}

fn end(node: &Node, part: &Part, begun: Begun) -> Replies {
    let answer = begun.end();
    node.peers.at(&part.to).note(answer.as_ref().err());
    let replies = answer.and_then(|frame| {
        let answers = frames::part_answer(&frame).map_err(|error| senseless(&error.to_string()))?;
        read_answers(node, part, answers)
    });
    replies.unwrap_or_else(|error| of_none(part, &error))
}

fn ask(node: &Node, part: &Part) -> Replies {
    let told = ask_by_http(node, part);
    match told {
        Ok(Some(replies)) => replies,
        // It is of a version that does not know parts of batches.
        Ok(None) => host::run(ask_one_by_one(node, part)),
        Err(error) => of_none(part, &error),
    }
}

fn of_none(part: &Part, error: &NoAnswer) -> Replies {
    part.questions.iter().map(|_| Some(Err(error.clone()))).collect()
}

fn senseless(what: &str) -> NoAnswer {
    NoAnswer { kind: NoAnswerKind::Senseless, reason: format!("its answer makes no sense: {what}") }
}

/// Nothing where the node does not know the path.
fn ask_by_http(node: &Node, part: &Part) -> Result<Option<Replies>, NoAnswer> {
    let peer = node.peers.at(&part.to);
    let head = peer.request(Method::POST, batches::BATCH);
    let head = head.header(wire::VIEW_HEADER, part.addressed.to_string());
    let request = complete(head.header(wire::FORMAT_HEADER, format::CURRENT), body(part, part.room)?)?;
    let group = part.questions.first().map_or(0, |question| question.group);
    peer.ask_about(group, || {
        let response = peer.exchange(request, Patience::Until(part.deadline))?;
        if is_unknown_path(&response) {
            let _ = read_body(response, SHORT_ANSWER);
            return Ok(None);
        }
        if header(response.headers(), wire::RESULT_HEADER).is_none() {
            return Ok(Some(of_all(part, &NotServed::Failed(refused(&part.to, response)))));
        }
        let (length, _permit) = match make_room(node, &part.to, &response) {
            Ok(room) => room,
            Err(error) => return Ok(Some(of_all(part, &NotServed::Failed(error)))),
        };
        let body = read_body(response, length)?;
        read_answers(node, part, &body).map(Some)
    })
}

fn body(part: &Part, room: usize) -> Result<Vec<u8>, NoAnswer> {
    let mut body = batches::begin(room);
    for (place, Question { key, operation, id, .. }) in part.questions.iter().enumerate() {
        let question = frames::Question::<&Addressed> {
            addressed: &part.addressed,
            left_ms: left_ms(part.deadline),
            id: *id,
            is_stale: false,
            key,
            action: operation.action,
            condition: operation.condition.map(Cow::Borrowed),
            ttl: operation.ttl,
        };
        batches::put_question(&question, place, &mut body)
            .map_err(|error| NoAnswer { kind: NoAnswerKind::NotSent, reason: error.to_string() })?;
    }
    Ok(body)
}

fn of_all(part: &Part, not_served: &NotServed) -> Replies {
    part.questions.iter().map(|_| Some(Ok(Err(not_served.clone())))).collect()
}

fn read_answers(node: &Node, part: &Part, body: &[u8]) -> Result<Replies, NoAnswer> {
    let answers = batches::read_answers(body).map_err(|error| senseless(&error.to_string()))?;
    let mut replies: Replies = part.questions.iter().map(|_| None).collect();
    let tags = TagSpace::of(&part.addressed.cluster);
    for (place, answer) in answers {
        let asked = part.questions.get(place).ok_or_else(|| senseless("it answers what was not asked"))?;
        replies[place] = Some(match answer {
            frames::Answer::ByHttp => ask_again(node, part, asked),
            answer => Ok(with_room(node, reply(&part.to, answer, tags))),
        });
    }
    Ok(replies)
}

/// Reads a value that is too long for a frame.
fn ask_again(
    node: &Node,
    part: &Part,
    Question { group, key, operation, id }: &Question,
) -> Result<Reply, NoAnswer> {
    let request = Request::new(key, *operation, *id, part.deadline).by_http(true);
    host::run(node.host.key(node, (&part.to, &part.addressed, *group), &request))
}

/// A large value is held until it is written.
fn with_room(node: &Node, reply: Reply) -> Reply {
    match reply {
        Ok(Outcome {
            done: Done::Read(Some(Value::Received { bytes, version, left, .. })),
            by,
            age,
            tags,
        }) if bytes.len() > LARGE_VALUE => {
            let Some(permit) = node.budget.take(bytes.len()) else {
                let reason = "The memory for large answers is in use: try again later".to_owned();
                return Err(NotServed::Failed(Error::Overloaded(reason)));
            };
            let value = Value::Received { bytes, version, left, permit: Some(permit) };
            Ok(Outcome { done: Done::Read(Some(value)), by, age, tags })
        }
        reply => reply,
    }
}
