//! Reading the body of a request: how much of it, and how slowly it may come.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use tiny_http::Request;

use super::framing::Framing;
use super::watchdog::Watch;
use crate::budget::{Budget, Permit};
use crate::clock::now;
use crate::error::Error;

/// A body may come as slowly as it likes for this long.
const GRACE: Duration = Duration::from_secs(2);
/// A client of whose body nothing at all comes for this long is answered 408.
const SILENCE: Duration = Duration::from_secs(2);
/// After that it has to have come at this rate on average, in bytes a second, or the request is answered 408.
const SLOWEST_BODY: u64 = 64 * 1024;
/// Bytes read at one time, and by which the memory taken grows.
const PIECE: usize = 64 * 1024;

/// A body in memory, and the part of the memory for large ones that it takes.
#[derive(Debug, Default)]
pub struct BodyBytes {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Given back with the bytes.
    permit: Option<Permit>,
}

impl BodyBytes {
    /// A body that takes no part of the memory for large ones.
    pub fn small(bytes: Vec<u8>) -> Self {
        Self { bytes, permit: None }
    }

    /// The bytes, and what is to be given back with them.
    pub fn into_parts(self) -> (Vec<u8>, Option<Permit>) {
        (self.bytes, self.permit)
    }
}

/// How long a body may be.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// The most bytes that are read.
    pub bytes: usize,
    /// What the client is told that it may send at most, in bytes.
    pub allowed: usize,
}

/// Reads the whole body of a request, up to a limit, behind a head that does not count.
///
/// # Errors
/// [`Error::TooLarge`], [`Error::TooSlow`], [`Error::Overloaded`], or [`Error::BadRequest`] where it ends too soon.
pub fn read(
    request: &mut Request,
    framing: &Framing,
    limit: Limit,
    budget: &Budget,
    watch: Option<Watch>,
    head: Vec<u8>,
) -> Result<BodyBytes, Error> {
    match framing {
        Framing::Empty => Ok(BodyBytes::small(head)),
        Framing::Buffered(length) => {
            if *length > limit.bytes {
                return Err(too_large(limit.allowed));
            }
            let mut bytes = head;
            bytes.reserve_exact(*length);
            request.as_reader().read_to_end(&mut bytes).map_err(|error| broken(&error))?;
            Ok(BodyBytes { bytes, permit: None })
        }
        Framing::OnItsWay { length: Some(length), .. } if *length > limit.bytes => {
            Err(too_large(limit.allowed))
        }
        Framing::OnItsWay { length, .. } => {
            // tiny_http does not stop at the declared length where the client wants to upgrade.
            let reader = request.as_reader();
            let allowed = length.unwrap_or(limit.bytes + 1) as u64;
            read_paced(&mut Paced::new(reader, watch).take(allowed), *length, limit, budget, head)
        }
        Framing::Refused { error, .. } => Err(error.clone()),
    }
}

fn read_paced(
    reader: &mut impl Read,
    length: Option<usize>,
    limit: Limit,
    budget: &Budget,
    head: Vec<u8>,
) -> Result<BodyBytes, Error> {
    let full = || Error::Overloaded("The memory for large bodies is in use: try again later".to_owned());
    let mut permit = budget.take(PIECE).ok_or_else(full)?;
    let (mut taken, start) = (PIECE, head.len());
    let mut bytes = head;
    while length != Some(bytes.len() - start) {
        if bytes.len() - start == taken {
            let more = length.map_or(taken, |length| taken.min(length - taken));
            if !permit.grow(more) {
                return Err(full());
            }
            taken += more;
        }
        let before = bytes.len() - start;
        match reader.by_ref().take((taken - before) as u64).read_to_end(&mut bytes) {
            Ok(_) if bytes.len() - start > limit.bytes => return Err(too_large(limit.allowed)),
            Ok(0) if length.is_some() => {
                return Err(Error::BadRequest(format!("The body ended after {before} bytes: send it whole")));
            }
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => return Err(broken(&error)),
        }
    }
    Ok(BodyBytes { bytes, permit: Some(permit) })
}

/// What is said of a value that is longer than so many bytes.
pub fn too_large(allowed: usize) -> Error {
    Error::TooLarge(format!("The value is too large: allowed are {allowed} bytes"))
}

/// What a client is told whose body could not be read.
pub fn broken(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::TooSlow(format!(
            "The body came too slowly: allowed is {SLOWEST_BODY} bytes a second after the first {} s, and no pause of {} s",
            GRACE.as_secs(),
            SILENCE.as_secs()
        )),
        _ => Error::BadRequest(format!("The body could not be read: {error}")),
    }
}

/// A reader that gives up on a client which is too slow, or silent.
///
/// The limits of the socket count anew with every byte; a total has to be counted here.
pub struct Paced<'a> {
    reader: &'a mut dyn Read,
    /// Ends a read that waits for too long; without it that lasts until the idle time-out.
    watch: Option<Watch>,
    pace: Pace,
}

impl<'a> Paced<'a> {
    /// Begins to count the time now.
    pub fn new(reader: &'a mut dyn Read, watch: Option<Watch>) -> Self {
        Self { reader, watch, pace: Pace::begin() }
    }
}

impl Read for Paced<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &self.watch {
            Some(watch) => watch.read(self.reader, buffer, self.pace.next_by())?,
            None => self.reader.read(buffer)?,
        };
        self.pace.took(count);
        if count > 0 && self.pace.is_late() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(count)
    }
}

/// How fast a body comes, and by when more of it has to.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    start: Instant,
    count: u64,
}

impl Pace {
    /// Nothing has come yet.
    pub fn begin() -> Self {
        Self { start: now(), count: 0 }
    }

    /// So many bytes came.
    pub fn took(&mut self, count: usize) {
        self.count += count as u64;
    }

    /// How many bytes have come.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How long it has taken so far.
    pub fn elapsed(&self) -> Duration {
        now() - self.start
    }

    /// Whether more should have come by now.
    pub fn is_late(&self) -> bool {
        now() > self.enough_until()
    }

    /// The moment by which the next bytes have to come.
    pub fn next_by(&self) -> Instant {
        self.enough_until().min(now() + SILENCE)
    }

    fn enough_until(&self) -> Instant {
        self.start + GRACE + Duration::from_secs(self.count / SLOWEST_BODY)
    }
}

#[cfg(test)]
mod tests {
    use tiny_http::TestRequest;

    use super::*;

    fn read_with(framing: &Framing, limit: usize, budget: usize) -> Result<usize, Error> {
        let body: &'static str = Box::leak("x".repeat(5000).into_boxed_str());
        let mut request: Request = TestRequest::new().with_body(body).into();
        read(
            &mut request,
            framing,
            Limit { bytes: limit, allowed: limit },
            &Budget::new(budget),
            None,
            b"head".to_vec(),
        )
        .map(|body| body.bytes.strip_prefix(b"head").expect("it is before the body").len())
    }

    #[test]
    fn a_body_is_read_up_to_its_limits() {
        let on_its_way = |length| Framing::OnItsWay { length, upgrade: false, expect: false };
        assert_eq!(read_with(&Framing::Empty, 10, 0), Ok(0));
        assert_eq!(read_with(&on_its_way(Some(5000)), 5000, PIECE), Ok(5000));
        assert_eq!(read_with(&on_its_way(None), 5000, PIECE), Ok(5000));
        assert!(matches!(read_with(&on_its_way(Some(5000)), 4999, PIECE), Err(Error::TooLarge(_))));
        assert!(matches!(read_with(&on_its_way(None), 4999, PIECE), Err(Error::TooLarge(_))));
        assert!(matches!(read_with(&on_its_way(Some(5000)), 5000, PIECE - 1), Err(Error::Overloaded(_))));
        let upgrade = Framing::OnItsWay { length: Some(3), upgrade: true, expect: false };
        assert_eq!(read_with(&upgrade, 10, PIECE), Ok(3));
    }
}
