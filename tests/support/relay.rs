//! What tests of the connection on which a follower passes many requests on share.
#![allow(dead_code, reason = "every test file includes this module and each uses its own part of it")]

use std::io::Read;
use std::net::TcpStream;

use super::node::Node;
use super::{START_DEADLINE, wait_until};

/// How many requests a follower has passed on together with others.
pub(crate) fn relayed(follower: &Node) -> usize {
    let text = follower.http().get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix("evenkv_relayed_requests_total "));
    line.expect("there is such a figure").parse().expect("a number")
}

/// A follower that has such a connection to its main.
pub(crate) fn connected(main: &str, settings: &[(&str, &str)]) -> Node {
    let follower = Node::follower(main, settings);
    let mut client = follower.http();
    wait_until("requests are passed on together", START_DEADLINE, || {
        client.get("/kvs/keys/none");
        relayed(&follower) > 0
    });
    follower
}

/// Reads the head of a request or an answer; nothing where the connection ends.
pub(crate) fn read_head(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    Some(head)
}

/// Reads what is in a frame.
pub(crate) fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).ok()?;
    let mut frame = vec![0; u32::from_le_bytes(head) as usize];
    stream.read_exact(&mut frame).ok()?;
    Some(frame)
}
