//! Names of nodes to socket addresses.
//!
//! The resolver that comes with ureq starts a thread for every request that has a deadline (796 against 124
//! microseconds a request, measured). Ours looks a name up once, and keeps the answer. A thread of its own looks it up again while it is used, soon
//! where the node was not reached: it may have come back at another address. So no request waits for a name server but
//! the first one, and one that does not answer takes no node away that is where it was.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::clock::now;
use crate::threads;

/// More addresses of one name than this are not tried.
const ADDRESSES_PER_NAME: usize = 4;
/// A name is looked up again after this: another node may answer at its former address.
const AGE: Duration = Duration::from_secs(5);
/// The same where no node was reached by it.
const DOUBTED_AGE: Duration = Duration::from_millis(500);
/// A name that nobody has used for this long is forgotten.
const UNUSED: Duration = Duration::from_mins(1);
/// How often it is looked which names are to be looked up again.
const LOOK: Duration = Duration::from_secs(1);
/// The same where one is doubted.
const LOOK_AT_DOUBTED: Duration = Duration::from_millis(100);

/// The names looked up so far, by `host:port`.
#[derive(Debug, Clone, Default)]
pub struct CachedNames(Arc<Mutex<Names>>);

#[derive(Debug, Default)]
struct Names {
    known: HashMap<String, Name>,
    /// Wakes the thread that looks them up again; there is none before the first name.
    thread: Option<Sender<()>>,
}

#[derive(Debug)]
struct Name {
    addresses: Vec<SocketAddr>,
    /// Whether the addresses are still these.
    current: Arc<AtomicBool>,
    looked_up: Instant,
    used: Instant,
    /// Whether no node was reached by them since.
    doubted: bool,
}

/// Whether a connection still leads to what the name stands for by which it was made. Where it was made by an address it always does.
#[derive(Debug)]
pub(super) struct Currency(Option<Arc<AtomicBool>>);

impl Currency {
    pub(super) fn is_lost(&self) -> bool {
        self.0.as_ref().is_some_and(|current| !current.load(Ordering::Relaxed))
    }
}

impl Name {
    fn new(addresses: Vec<SocketAddr>, now: Instant) -> Self {
        let current = Arc::new(AtomicBool::new(true));
        Self { addresses, current, looked_up: now, used: now, doubted: false }
    }

    fn is_due(&self, now: Instant) -> bool {
        now - self.looked_up >= if self.doubted { DOUBTED_AGE } else { AGE }
    }

    /// Takes what it was found to stand for. Where nothing was found it goes on as it was.
    fn take(&mut self, name: &str, found: io::Result<Vec<SocketAddr>>, now: Instant) {
        self.looked_up = now;
        self.doubted = false;
        let Ok(found) = found else { return };
        let is_same = found.len() == self.addresses.len()
            && found.iter().all(|address| self.addresses.contains(address));
        if !is_same {
            log::info!("{name} is {found:?} by now, and was {:?}", self.addresses);
            self.current.store(false, Ordering::Relaxed);
            self.current = Arc::new(AtomicBool::new(true));
        }
        self.addresses = found;
    }
}

impl CachedNames {
    /// The addresses of a name. Only the first look-up of a name waits for a name server.
    ///
    /// # Errors
    /// When the name is not known.
    pub fn look_up(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        if let Ok(literal) = name.parse() {
            return Ok(vec![literal]);
        }
        if let Some(known) = self.0.lock().known.get_mut(name) {
            known.used = now();
            return Ok(known.addresses.clone());
        }
        let found = ask_system(name)?;
        let mut names = self.0.lock();
        names.known.insert(name.to_owned(), Name::new(found.clone(), now()));
        if names.thread.is_none() {
            names.thread = self.start();
        }
        Ok(found)
    }

    /// No node was reached by a name: it is looked up again soon, and nobody waits for that.
    pub fn doubt(&self, name: &str) {
        let mut names = self.0.lock();
        let Some(known) = names.known.get_mut(name) else { return };
        known.doubted = true;
        if let Some(thread) = &names.thread {
            // One that is full wakes it as well.
            let _ = thread.try_send(());
        }
    }

    /// Whether a connection to an address is one to what a name stands for, from now on.
    pub(super) fn currency(&self, name: &str, address: SocketAddr) -> Currency {
        let names = self.0.lock();
        let of = |known: &Name| {
            let is_there = known.addresses.contains(&address);
            if is_there { Arc::clone(&known.current) } else { Arc::default() }
        };
        Currency(names.known.get(name).map(of))
    }

    fn start(&self) -> Option<Sender<()>> {
        let (sender, woken) = bounded(1);
        let names = Arc::downgrade(&self.0);
        match threads::spawn("names", move || look_up_again(&names, &woken)) {
            Ok(_) => Some(sender),
            Err(error) => {
                log::error!("names are not looked up again: {error}");
                None
            }
        }
    }

    /// Looks up what is due, one name after the other, and says how soon it is to be looked again.
    fn look_up_due(&self, look_up: impl Fn(&str) -> io::Result<Vec<SocketAddr>>) -> Duration {
        let start = now();
        let due: Vec<String> = {
            let mut names = self.0.lock();
            names.known.retain(|_, known| start - known.used < UNUSED);
            names
                .known
                .iter()
                .filter(|(_, known)| known.is_due(start))
                .map(|(name, _)| name.clone())
                .collect()
        };
        for name in due {
            let found = look_up(&name);
            if let Some(known) = self.0.lock().known.get_mut(&name) {
                known.take(&name, found, now());
            }
        }
        if self.0.lock().known.values().any(|known| known.doubted) { LOOK_AT_DOUBTED } else { LOOK }
    }
}

#[cfg(test)]
impl CachedNames {
    /// Has a name stand for an address from now on.
    pub(super) fn set(&self, name: &str, address: SocketAddr) {
        let mut names = self.0.lock();
        let known = names.known.entry(name.to_owned()).or_insert_with(|| Name::new(Vec::new(), now()));
        known.take(name, Ok(vec![address]), now());
    }
}

/// Runs as long as somebody uses the names.
fn look_up_again(names: &Weak<Mutex<Names>>, woken: &Receiver<()>) {
    let mut wait = LOOK;
    while woken.recv_timeout(wait) != Err(RecvTimeoutError::Disconnected) {
        let Some(names) = names.upgrade() else { return };
        wait = CachedNames(names).look_up_due(ask_system);
    }
}

fn ask_system(name: &str) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<_> = name.to_socket_addrs()?.take(ADDRESSES_PER_NAME).collect();
    if found.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(found) }
}

impl Resolver for CachedNames {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let authority = uri.authority().ok_or(ureq::Error::HostNotFound)?;
        let mut addresses = self.empty();
        for address in self.look_up(authority.as_str()).map_err(|_| ureq::Error::HostNotFound)? {
            addresses.push(address);
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, last], 1))
    }

    /// Names with one, which was looked up and used so long ago.
    fn names(looked_up: Duration, used: Duration) -> CachedNames {
        let names = CachedNames::default();
        let mut name = Name::new(vec![at(1)], now());
        let before = |age| now().checked_sub(age).expect("the machine was started before");
        (name.looked_up, name.used) = (before(looked_up), before(used));
        names.0.lock().known.insert("a:1".to_owned(), name);
        names
    }

    fn addresses(names: &CachedNames) -> Vec<SocketAddr> {
        names.0.lock().known.get("a:1").map(|name| name.addresses.clone()).unwrap_or_default()
    }

    #[test]
    fn a_name_is_looked_up_again_when_it_is_old_or_doubted_and_forgotten_when_it_is_not_used() {
        let moved = |names: &CachedNames| {
            names.look_up_due(|_| Ok(vec![at(2)]));
            addresses(names)
        };
        let second = Duration::from_secs(1);
        assert_eq!(moved(&names(second, second)), [at(1)]);
        assert_eq!(moved(&names(AGE, second)), [at(2)]);
        let doubted = names(second, second);
        doubted.doubt("a:1");
        assert_eq!(moved(&doubted), [at(2)]);
        assert_eq!(moved(&names(second, UNUSED)), []);
    }

    #[test]
    fn a_name_that_is_doubted_again_at_once_is_looked_up_a_little_later() {
        let names = names(Duration::ZERO, Duration::ZERO);
        names.doubt("a:1");
        let wait = names.look_up_due(|name| panic!("{name} has just been looked up"));
        assert_eq!(wait, LOOK_AT_DOUBTED);
    }

    #[test]
    fn a_name_server_that_does_not_answer_takes_no_address_away() {
        let names = names(AGE, Duration::ZERO);
        let current = names.currency("a:1", at(1));
        names.look_up_due(|_| Err(io::ErrorKind::TimedOut.into()));
        assert_eq!(addresses(&names), [at(1)]);
        assert!(!current.is_lost());
    }

    #[test]
    fn a_connection_is_told_when_its_name_stands_for_others() {
        let names = names(AGE, Duration::ZERO);
        let current = names.currency("a:1", at(1));
        names.0.lock().known.get_mut("a:1").unwrap().take("a:1", Ok(vec![at(1)]), now());
        assert!(!current.is_lost(), "the same one is no other");
        names.0.lock().known.get_mut("a:1").unwrap().take("a:1", Ok(vec![at(2)]), now());
        assert!(current.is_lost());
        assert!(names.currency("a:1", at(1)).is_lost() && !names.currency("a:1", at(2)).is_lost());
        assert!(!names.currency("127.0.0.1:1", at(1)).is_lost(), "an address stays what it is");
    }

    #[test]
    fn an_address_is_its_own_name() {
        let names = CachedNames::default();
        assert_eq!(names.look_up("127.0.0.9:1").unwrap(), [at(9)]);
        names.doubt("127.0.0.9:1");
        assert!(names.0.lock().known.is_empty() && names.0.lock().thread.is_none());
    }
}
