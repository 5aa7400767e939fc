//! The proof that every connection was answered. A server that starves some connections looks faster: those that are
//! left share its processors among fewer.
//!
//! wrk does not tell its connections apart, the kernel does: for each socket `ss -i` prints how many bytes it has
//! received. The load generator's sockets are looked at twice, and every one must have received something in between.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::process::Command;

/// Bytes received on each connection to a server, by the client's own address.
pub(crate) type Received = HashMap<String, u64>;

/// Looks at all established connections to a server, from the client's side.
///
/// # Errors
/// When there is no `ss`.
pub(crate) fn look(server: SocketAddr) -> io::Result<Received> {
    let filter = format!("dport = :{} and dst {}", server.port(), server.ip());
    let output = Command::new("ss").args(["-HtinO", "state", "established", &filter]).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("ss failed: {}", String::from_utf8_lossy(&output.stderr))));
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// Reads lines of `Recv-Q Send-Q own-address peer-address details`; a connection without the detail received nothing.
fn parse(lines: &str) -> Received {
    let of_line = |line: &str| {
        let mut fields = line.split_whitespace().skip(2);
        let own = fields.next()?.to_owned();
        let received = fields.find_map(|field| field.strip_prefix("bytes_received:")?.parse().ok());
        Some((own, received.unwrap_or(0)))
    };
    lines.lines().filter_map(of_line).collect()
}

/// Bytes received by the worst and the average connection between two looks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    least: u64,
    average: u64,
}

impl Spread {
    /// Compares two looks.
    ///
    /// # Errors
    /// A sentence that says how many of the wanted connections were not there or not answered. Those of the kicker
    /// live for less than a millisecond, so none is there both times.
    pub(crate) fn between(before: &Received, after: &Received, wanted: u64) -> Result<Self, String> {
        let grown: Vec<u64> =
            before.iter().filter_map(|(own, bytes)| Some(after.get(own)? - bytes)).collect();
        if grown.len() as u64 != wanted {
            return Err(format!("{} connections of {wanted} were there all the time", grown.len()));
        }
        let starved = grown.iter().filter(|bytes| **bytes == 0).count();
        if starved > 0 {
            return Err(format!("{starved} connections of {wanted} were not answered"));
        }
        let least = grown.iter().copied().min().unwrap_or(0);
        Ok(Self { least, average: grown.iter().sum::<u64>() / wanted })
    }

    /// What the worst connection got of what they got on average, in percent.
    pub(crate) fn worst_percent(self) -> u64 {
        self.least * 100 / self.average.max(1)
    }
}
