//! Request targets that are longer than the client under us takes.
//!
//! An `http::Uri` has at most 65,534 bytes, and a line of a request must fit into a buffer of the client. A key may have 65,536 bytes, three
//! times as many where all of them are escaped. So such a target stays out of the request: another one stands in for it, and the transport
//! puts it into the first line when that is sent. The client sends on the thread that asks, and the target waits there.

use std::cell::RefCell;
use std::sync::Arc;

/// A longer target, in bytes, is put in by the transport: what stands before it in a URI has far less than the rest.
const LONGEST_IN_URI: usize = 60_000;
/// What stands in for it. No node has such a path.
const STAND_IN: &str = "/a-long-target";

thread_local! {
    /// The target of the request that is about to be sent.
    static NEXT: RefCell<Option<LongTarget>> = const { RefCell::new(None) };
}

/// A target that does not fit into a URI, kept with its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LongTarget(Arc<str>);

impl LongTarget {
    /// What a request's URI is to name, and the target itself where that is something else.
    pub(super) fn of(target: &str) -> (&str, Option<Self>) {
        if target.len() <= LONGEST_IN_URI { (target, None) } else { (STAND_IN, Some(Self(target.into()))) }
    }
}

/// Has a request sent, by this thread, with the target that belongs to it.
pub(super) fn send_with<T>(target: Option<LongTarget>, send: impl FnOnce() -> T) -> T {
    NEXT.set(target);
    let answer = send();
    NEXT.set(None);
    answer
}

/// The beginning of a request that is to be sent up to the end of its target, and how many bytes of what the client has written that replaces;
/// nothing where they go as they are.
pub(super) fn beginning(written: &[u8]) -> Option<(Vec<u8>, usize)> {
    let LongTarget(target) = NEXT.take()?;
    let method = written.iter().position(|byte| *byte == b' ')? + 1;
    let rest = written[method..].strip_prefix(STAND_IN.as_bytes())?;
    Some(([&written[..method], target.as_bytes()].concat(), written.len() - rest.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_target_takes_the_place_of_what_stands_for_it_once() {
        let written = b"PUT /a-long-target HTTP/1.1\r\n\r\n";
        let short = "/k".repeat(LONGEST_IN_URI / 2);
        assert_eq!(LongTarget::of(&short), (short.as_str(), None));
        assert_eq!(send_with(None, || beginning(written)), None);
        let long = short + "?";
        let (named, target) = LongTarget::of(&long);
        assert_eq!(named, STAND_IN);
        send_with(target.clone(), || {
            let (sent, replaced) = beginning(written).unwrap();
            assert_eq!(sent, format!("PUT {long}").as_bytes());
            assert_eq!(&written[replaced..], b" HTTP/1.1\r\n\r\n");
            assert_eq!(beginning(written), None, "what follows goes as it is");
        });
        send_with(target, || ());
        assert_eq!(beginning(written), None, "nothing is left of a request that was not sent");
    }
}
