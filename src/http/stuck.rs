//! Connections that their clients have closed and that cannot be let go.
//!
//! A connection whose client has closed it is closed here, too, as soon as whoever reads from it sees that, or has answered its last request. One that is still there
//! a while later, without a request in progress, is held by a thread of tiny_http that waits for what never comes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

/// How often they are looked for. One that is there twice in a row counts.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// So many of them are worth a warning, as is a tenth of the descriptors.
const MANY: u64 = 500;
/// Descriptors that a connection holds.
const DESCRIPTORS: u64 = 2;

/// Looks for them from time to time.
#[derive(Debug, Default)]
pub struct Stuck {
    /// Those that may be, by the addresses of their clients, with the numbers of their sockets.
    suspects: HashMap<SocketAddr, u64>,
    /// There was a warning at so many.
    warned: u64,
}

impl Stuck {
    /// How many there are, where these are the connections that clients have closed.
    pub fn count(
        &mut self,
        mut closed: HashMap<SocketAddr, u64>,
        is_busy: impl Fn(SocketAddr) -> bool,
    ) -> u64 {
        closed.retain(|client, _| !is_busy(*client));
        let known = std::mem::replace(&mut self.suspects, closed);
        self.suspects.iter().filter(|(client, number)| known.get(client) == Some(*number)).count() as u64
    }

    /// What is to be said where so many connections are held for good by a process that may have so many descriptors: once, and again at twice as many.
    pub fn warning(&mut self, held: u64, descriptors: u64) -> Option<String> {
        let many = MANY.min(descriptors / 10 / DESCRIPTORS).max(1).max(self.warned * 2);
        if held < many {
            return None;
        }
        self.warned = held;
        Some(format!(
            "{held} connections cannot be let go before this process ends: each holds a thread and two of {descriptors} descriptors. \
             They come of clients that speak HTTP/2, or declare bodies that nobody sends: put a proxy in front that keeps these away, and restart this node"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_closed_and_is_not_busy_is_stuck_at_the_second_look() {
        let client = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let mut stuck = Stuck::default();
        let closed = HashMap::from([(client(1), 11), (client(2), 12), (client(3), 13)]);
        assert_eq!(stuck.count(closed.clone(), |_| false), 0);
        assert_eq!(stuck.count(closed, |busy| busy == client(2)), 2);
        // One port is another connection's by now, and one request was answered only a moment ago.
        let closed = HashMap::from([(client(1), 21), (client(2), 12), (client(3), 13)]);
        assert_eq!(stuck.count(closed.clone(), |_| false), 1);
        assert_eq!(stuck.count(closed, |_| false), 3);
        assert_eq!(stuck.count(HashMap::new(), |_| false), 0);
    }

    #[test]
    fn a_warning_comes_at_a_tenth_of_the_descriptors_or_500_and_again_at_twice_as_many() {
        for (descriptors, first) in [(1024, 51), (256, 12), (1 << 20, 500)] {
            let mut stuck = Stuck::default();
            assert_eq!(stuck.warning(first - 1, descriptors), None);
            assert!(stuck.warning(first, descriptors).is_some_and(|text| text.contains(&first.to_string())));
            assert_eq!(stuck.warning(2 * first - 1, descriptors), None);
            assert!(stuck.warning(2 * first, descriptors).is_some());
        }
        assert_eq!(Stuck::default().warning(0, 0), None);
    }
}
