//! Those who watch: one thread asks the shards what was done, tells each what he wants to know, and writes to all. None of them holds a worker.
//!
//! All who are up to date share one **feed**, and so one question to each shard, and the text of each event. Whoever goes on from a cursor is first in a second feed, together with others who
//! come meanwhile, which begins where the one who is furthest behind is; once it is nowhere behind the first one, they go over to that.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::Mutex;
use tiny_http::Method;

use super::answer::Answer;
use super::dispatch::Job;
use super::routes::Interface;
use super::sockets::{self, Pace, Socket};
use super::watch_request::Wanted;
use super::watch_text;
use super::watcher::Watcher;
use crate::clock::now;
use crate::error::{Applied, Error};
use crate::model::condition::TagSpace;
use crate::model::cursor::Cursor;
use crate::model::history::{Event, Page};
use crate::model::meta::MetaState;
use crate::node::host;
use crate::reshard::controller::Controller;
use crate::wire::RESYNC;

/// How often shards are asked while somebody watches.
const ROUND: Duration = Duration::from_millis(20);
/// While nobody does, it is looked so often whether somebody has come.
const IDLE_ROUND: Duration = Duration::from_millis(50);
/// A shard that does not answer within this time is asked again later,
const ASKED_FOR: Duration = Duration::from_millis(300);
/// after this time: the others are not to wait for it each time.
const REST: Duration = Duration::from_millis(200);
/// So many pages of a shard are read in one round.
const PAGES: usize = 8;
/// So often a comment is written, also to whoever is told much: what is between them and us may judge by these whether a connection lives.
const COMMENT: Duration = Duration::from_secs(10);
/// So often it is looked at most which clients have closed their connections: nothing else tells before something is written to them.
const LOOKED: Duration = Duration::from_secs(1);
/// So many may watch.
const MOST: usize = 4096;

/// Those who want to watch and are not taken yet.
pub struct Watches<W> {
    coming: Mutex<Vec<(Box<Job>, W)>>,
    count: AtomicUsize,
}

impl<W> Default for Watches<W> {
    fn default() -> Self {
        Self { coming: Mutex::default(), count: AtomicUsize::new(0) }
    }
}

impl<W> Watches<W> {
    /// Takes a request.
    ///
    /// # Errors
    /// The request, where too many watch.
    pub fn join(&self, job: Box<Job>, wanted: W) -> Result<(), Box<Job>> {
        let mut coming = self.coming.lock();
        if coming.len() + self.count() >= MOST {
            return Err(job);
        }
        coming.push((job, wanted));
        Ok(())
    }

    /// How many watch.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Notes how many do.
    pub fn set_count(&self, count: usize) {
        self.count.store(count, Ordering::Relaxed);
    }

    /// Those who have come.
    pub fn take(&self) -> Vec<(Box<Job>, W)> {
        std::mem::take(&mut *self.coming.lock())
    }
}

/// Some who watch and are at one place.
struct Feed {
    cursor: Cursor,
    watchers: Vec<Watcher>,
}

/// What came of asking all shards.
enum Round {
    /// All that there was by then is told.
    Complete,
    /// Some of it is not: why, where that is known.
    Partial(Option<String>),
}

/// When it was looked last who is gone.
#[derive(Default)]
pub struct Looked(Pace);

/// Clients that have closed their connections.
pub struct Gone(HashSet<SocketAddr>);

impl Looked {
    /// Those who have closed their connections to a port, if it is time to look.
    pub fn gone(&mut self, port: u16) -> Gone {
        let closed = self.0.look(LOOKED, || sockets::closed_by_client(port).unwrap_or_default());
        Gone(closed.unwrap_or_default().into_keys().collect())
    }
}

impl Gone {
    /// Notes which of these are among them.
    pub fn note<'a>(&self, watchers: impl Iterator<Item = &'a mut Watcher>) {
        if self.0.is_empty() {
            return;
        }
        for watcher in watchers.filter(|watcher| self.0.contains(&watcher.client())) {
            watcher.is_gone();
        }
    }
}

/// What becomes of requests.
#[derive(Clone, Copy)]
pub struct Client<'a> {
    /// Answers one that is refused.
    pub refuse: &'a dyn Fn(Box<Job>, Answer),
    /// Counts one that is being answered.
    pub begin: &'a dyn Fn(&Job),
}

/// The thread that tells them.
struct Teller<'a> {
    controller: &'a Controller,
    port: u16,
    client: Client<'a>,
    live: Option<Feed>,
    /// Those who come from a cursor, and are not up to date yet.
    behind: Option<Feed>,
    /// They come next, when those before them are up to date.
    waiting: Vec<Watcher>,
    /// Those who begin now; they have been told nothing, or that they have missed something.
    fresh: Vec<Watcher>,
    /// The shards that did not answer, and when they are asked again.
    resting: HashMap<u64, Instant>,
    /// The cluster whose changes are told.
    cluster: Option<u64>,
    looked: Looked,
}

/// Tells those who watch what is done, until the channel closes.
pub fn run(
    watches: &Watches<Wanted>,
    controller: &Controller,
    (port, stop): (u16, &Receiver<()>),
    client: Client<'_>,
) {
    let mut teller = Teller {
        controller,
        port,
        client,
        live: None,
        behind: None,
        waiting: Vec::new(),
        fresh: Vec::new(),
        resting: HashMap::new(),
        cluster: None,
        looked: Looked::default(),
    };
    let mut pause = IDLE_ROUND;
    while stop.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let coming = watches.take();
        let told = catch_unwind(AssertUnwindSafe(|| teller.round(coming)));
        if told.is_err() {
            log::error!("telling those who watch broke off: they are cut off, and can go on elsewhere");
            teller.end_all();
        }
        watches.set_count(teller.count());
        pause = if teller.count() > 0 { ROUND } else { IDLE_ROUND };
    }
    teller.end_all();
}

impl Teller<'_> {
    fn count(&self) -> usize {
        let of = |feed: &Option<Feed>| feed.as_ref().map_or(0, |feed| feed.watchers.len());
        of(&self.live) + of(&self.behind) + self.waiting.len() + self.fresh.len()
    }

    fn end_all(&mut self) {
        let feeds = [self.live.take(), self.behind.take()].into_iter().flatten();
        let watchers = feeds.flat_map(|feed| feed.watchers).chain(self.waiting.drain(..));
        watchers.for_each(Watcher::end);
        for watcher in self.fresh.drain(..) {
            if watcher.has_missed {
                watcher.end();
            } else {
                let error = Error::NotServing("The node is stopping: watch at another one".to_owned());
                (self.client.refuse)(watcher.into_job(), problem(&error));
            }
        }
    }

    fn round(&mut self, coming: Vec<(Box<Job>, Wanted)>) {
        let node = &self.controller.node;
        let Some(state) = node.state() else {
            for (job, _) in coming {
                let error = Error::NotServing("The node has no view yet".to_owned());
                (self.client.refuse)(job, problem(&error));
            }
            return self.end_all();
        };
        let is_stopping = node.is_leaving() || node.is_stopping();
        if self.cluster.replace(number(&state)).is_some_and(|before| before != number(&state)) {
            // What they were told was of another one.
            self.end_all();
        }
        self.take(coming);
        if is_stopping {
            self.end_all();
        }
        if self.count() == 0 {
            return;
        }
        let live = self.live.take();
        let mut live =
            live.unwrap_or_else(|| Feed { cursor: Cursor::everywhere(Cursor::NOW), watchers: Vec::new() });
        let round = self.follow(&state, &mut live);
        let is_known = live.cursor.is_settled();
        let text = is_known.then(|| live.cursor.text(number(&state)));
        match round {
            Round::Complete if is_known => {
                for watcher in self.fresh.drain(..) {
                    let text = text.as_deref().unwrap_or_default();
                    live.watchers.push(begin(watcher, text, self.client));
                }
            }
            Round::Complete => self.refuse_late("a part of the keys is served by no shard at the moment"),
            Round::Partial(reason) => {
                self.refuse_late(reason.as_deref().unwrap_or("a shard does not answer"));
            }
        }
        self.catch_up(&state, &mut live);
        let gone = self.looked.gone(self.port);
        let behind = self.behind.iter_mut().flat_map(|behind| &mut behind.watchers);
        let others = self.waiting.iter_mut().chain(&mut self.fresh);
        gone.note(live.watchers.iter_mut().chain(behind).chain(others));
        live.watchers = flushed(std::mem::take(&mut live.watchers), |watcher| match (&watcher.own, &text) {
            (None, Some(text)) => watch_text::comment(Some(text)),
            // It is further than the others, and they will be there soon.
            _ => watch_text::comment(None),
        });
        if let Some(behind) = &mut self.behind {
            behind.watchers = flushed(std::mem::take(&mut behind.watchers), |_| watch_text::comment(None));
        }
        for watchers in [&mut self.waiting, &mut self.fresh] {
            *watchers = flushed(std::mem::take(watchers), |_| Vec::new());
        }
        self.behind = self.behind.take().filter(|behind| !behind.watchers.is_empty());
        // Without anybody nothing is asked; whoever comes begins anew.
        self.live = Some(live);
        if self.count() == 0 {
            self.live = None;
            self.resting.clear();
        }
    }

    /// Takes those who have come.
    fn take(&mut self, coming: Vec<(Box<Job>, Wanted)>) {
        if coming.is_empty() {
            return;
        }
        let clients: HashSet<_> = coming.iter().map(|(job, _)| job.ticket.client()).collect();
        let mut sockets = Socket::of_all(self.port, &clients);
        for (job, mut wanted) in coming {
            let Some(socket) = sockets.remove(&job.ticket.client()) else {
                let reason = "The connection is not found among the sockets of the process".to_owned();
                (self.client.refuse)(job, problem(&Error::Overloaded(reason)));
                continue;
            };
            let since = wanted.since.take();
            let mut watcher = Watcher::new(job, socket, wanted);
            match since {
                Some((by, cursor)) if Some(by) == self.cluster => {
                    watcher.own = Some(cursor);
                    watcher.begin(self.client.begin);
                    self.waiting.push(watcher);
                }
                since => {
                    // It is of another cluster, whose changes nobody knows here.
                    if since.is_some() {
                        watcher.has_missed = true;
                        watcher.begin(self.client.begin);
                    }
                    self.fresh.push(watcher);
                }
            }
        }
    }

    /// Refuses those who have waited for too long until it is known where they begin.
    fn refuse_late(&mut self, reason: &str) {
        let timeout = self.controller.node.request_timeout * 9 / 10;
        let is_late = |watcher: &mut Watcher| !watcher.has_missed && now() - watcher.arrived() > timeout;
        for watcher in self.fresh.extract_if(.., is_late) {
            let error = Error::Unavailable {
                reason: format!("It is not known from where on you would watch: {reason}"),
                applied: Applied::No,
            };
            (self.client.refuse)(watcher.into_job(), problem(&error));
        }
    }

    /// Brings those who come from a cursor up to date, and over to the others.
    fn catch_up(&mut self, state: &MetaState, live: &mut Feed) {
        if self.behind.is_none() && !self.waiting.is_empty() {
            let watchers = std::mem::take(&mut self.waiting);
            let cursors = watchers.iter().filter_map(|watcher| watcher.own.clone());
            let cursor = cursors.reduce(|one, other| one.earliest(&other));
            self.behind = cursor.map(|cursor| Feed { cursor, watchers });
        }
        let Some(mut behind) = self.behind.take() else { return };
        let mut round = Round::Partial(None);
        // Who reads slowly holds up those who come with him, until he is cut off.
        if behind.watchers.iter().all(Watcher::has_room) {
            round = self.follow(state, &mut behind);
        }
        if matches!(round, Round::Complete) && behind.cursor.is_at_or_after(&live.cursor) {
            for mut watcher in behind.watchers {
                let own = watcher.own.take();
                watcher.own =
                    Some(own.map_or_else(|| behind.cursor.clone(), |own| own.furthest(&behind.cursor)));
                live.watchers.push(watcher);
            }
        } else {
            self.behind = Some(behind);
        }
    }

    /// Asks every shard what was done beyond where a feed is, and tells it.
    fn follow(&mut self, state: &MetaState, feed: &mut Feed) -> Round {
        let mut round = Round::Complete;
        for shard in &state.view.shards {
            match self.follow_group(state, shard.group, feed) {
                Ok(false) if matches!(round, Round::Complete) => round = Round::Partial(None),
                Ok(_) => {}
                Err(reason) => round = Round::Partial(Some(format!("shard {}: {reason}", shard.id))),
            }
        }
        for watcher in &mut feed.watchers {
            if watcher.own.as_ref().is_some_and(|own| feed.cursor.is_at_or_after(own)) {
                watcher.own = None;
            }
        }
        round
    }

    /// The same of one shard; whether all of it is told.
    fn follow_group(&mut self, state: &MetaState, group: u64, feed: &mut Feed) -> Result<bool, String> {
        if self.resting.get(&group).is_some_and(|until| now() < *until) {
            return Err("it did not answer just now".to_owned());
        }
        self.resting.remove(&group);
        for _ in 0..PAGES {
            let page = host::run(self.controller.changes(state, group, &feed.cursor, ASKED_FOR));
            let page = page.map_err(|error| {
                log::debug!("group {group} does not say what was done: {error}");
                self.resting.insert(group, now() + REST);
                error.to_string()
            })?;
            if page.is_lost() {
                self.miss(&page, feed);
                continue;
            }
            let tags = TagSpace::of(&state.cluster);
            feed.tell(&page, state, tags);
            if page.up_to.is_some() {
                return Ok(true);
            }
            feed.watchers.iter_mut().for_each(Watcher::flush);
        }
        Ok(false)
    }

    /// The ring has turned beyond where a feed is: whoever is not further himself has missed something, and goes on from now.
    fn miss(&mut self, page: &Page, feed: &mut Feed) {
        let has_missed = |watcher: &mut Watcher| {
            let at = watcher.own.as_ref().map(|own| own.furthest(&feed.cursor));
            page.has_lost(at.as_ref().unwrap_or(&feed.cursor))
        };
        let missed: Vec<Watcher> = feed.watchers.extract_if(.., has_missed).collect();
        for mut watcher in missed {
            watcher.own = None;
            watcher.has_missed = true;
            self.fresh.push(watcher);
        }
        for (span, floor) in &page.floors {
            feed.cursor.raise(&[*span], *floor);
        }
    }
}

impl Feed {
    /// Tells all what is new in a page.
    fn tell(&mut self, page: &Page, state: &MetaState, tags: TagSpace) {
        let (hash_key, cluster) = (state.hash_key, tags.number());
        let watchers = &mut self.watchers;
        page.advance(&mut self.cursor, hash_key, |event, hash, cursor| {
            let mut texts = Texts { event, tags, data: [None, None], id: None, whole: [None, None] };
            for watcher in watchers.iter_mut().filter(|one| event.key.starts_with(&one.wanted.prefix)) {
                let values = watcher.wanted.values;
                match &watcher.own {
                    Some(own) if own.at(hash) >= event.version => {}
                    Some(own) => {
                        let at = own.furthest(cursor);
                        let text =
                            watch_text::event(watch_text::name(event), &at.text(cluster), texts.data(values));
                        watcher.push(text.into());
                    }
                    None => watcher.push(texts.whole(values, cursor)),
                }
            }
        });
    }
}

/// What is told of one event: made when somebody wants it, and once.
struct Texts<'a> {
    event: &'a Event<'a>,
    tags: TagSpace,
    /// Without the value, and with it.
    data: [Option<String>; 2],
    id: Option<String>,
    whole: [Option<Arc<[u8]>>; 2],
}

impl Texts<'_> {
    fn data(&mut self, values: bool) -> &str {
        let (event, tags) = (self.event, self.tags);
        self.data[usize::from(values)].get_or_insert_with(|| watch_text::data(event, tags, values))
    }

    fn whole(&mut self, values: bool, cursor: &Cursor) -> Arc<[u8]> {
        if let Some(whole) = &self.whole[usize::from(values)] {
            return Arc::clone(whole);
        }
        let cluster = self.tags.number();
        let id = self.id.get_or_insert_with(|| cursor.text(cluster)).clone();
        let name = watch_text::name(self.event);
        let whole: Arc<[u8]> = watch_text::event(name, &id, self.data(values)).into();
        self.whole[usize::from(values)] = Some(Arc::clone(&whole));
        whole
    }
}

/// The number of the cluster, which is in every cursor.
fn number(state: &MetaState) -> u64 {
    TagSpace::of(&state.cluster).number()
}

fn problem(error: &Error) -> Answer {
    Answer::error(error, &Method::Get, Interface::V1)
}

/// Has somebody begin where all others are by now.
fn begin(mut watcher: Watcher, text: &str, client: Client<'_>) -> Watcher {
    if std::mem::take(&mut watcher.has_missed) {
        watcher.push(watch_text::event(RESYNC, text, "{}").into());
    } else {
        watcher.begin(client.begin);
        watcher.push(watch_text::comment(Some(text)).into());
    }
    watcher
}

/// Writes what waits, and comments when it is time; without those whose connection has ended.
fn flushed(watchers: Vec<Watcher>, comment: impl Fn(&Watcher) -> Vec<u8>) -> Vec<Watcher> {
    let mut there = Vec::with_capacity(watchers.len());
    for mut watcher in watchers {
        if now() - watcher.commented >= COMMENT && watcher.has_room() {
            let text = comment(&watcher);
            if !text.is_empty() {
                watcher.push(text.into());
                watcher.commented = now();
            }
        }
        watcher.flush();
        if watcher.is_over() {
            watcher.end();
        } else {
            there.push(watcher);
        }
    }
    there
}
