//! The proof that every connection was answered. A server that starves some connections looks faster: those that are
//! left share its processors among fewer.
//!
//! wrk does not tell its connections apart, the kernel does: for each socket `ss -i` prints how many bytes it has
//! received. The load generator's sockets are looked at twice, and every one must have received something in between.

use std::collections::HashMap;
use std::io;
use std::process::Command;

/// Bytes received on each connection of a client, by the addresses of both ends.
pub(crate) type Received = HashMap<String, u64>;

/// Looks at all established connections that a process has opened.
///
/// # Errors
/// When there is no `ss`.
pub(crate) fn look(client: u32) -> io::Result<Received> {
    let output = Command::new("ss").args(["-HtinpO", "state", "established"]).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("ss failed: {}", String::from_utf8_lossy(&output.stderr))));
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout), client))
}

/// Reads lines of `Recv-Q Send-Q own-address peer-address users:(("name",pid=1,fd=3)) details`; a connection without
/// the detail received nothing.
fn parse(lines: &str, client: u32) -> Received {
    let owner = format!(",pid={client},");
    let of_line = |line: &str| {
        let mut fields = line.split_whitespace().skip(2);
        let ends = format!("{} {}", fields.next()?, fields.next()?);
        let received = fields.find_map(|field| field.strip_prefix("bytes_received:")?.parse().ok());
        Some((ends, received.unwrap_or(0)))
    };
    lines.lines().filter(|line| line.contains(&owner)).filter_map(of_line).collect()
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
    /// A sentence that says how many of the wanted connections were not there or not answered.
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
