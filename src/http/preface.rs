//! Keeps clients of HTTP/2 away from tiny_http, where the kernel lets us.
//!
//! At a request line that says HTTP/2.0 a thread of tiny_http waits for itself: it holds the connection until the process ends, and no shutdown wakes it.
//! What a client of HTTP/2 sends first is always the same, though. So a packet filter on the listening socket, which its connections inherit, drops a segment
//! that begins with it. The line never comes, and the connection ends at the idle time-out as a silent one does.
//!
//! No HTTP/1.1 request begins so, and nothing in one does: neither heads nor JSON have bare line breaks in a text. Between nodes a key of exactly these bytes could come to
//! stand at the beginning of a segment; that connection would then be given up and made anew.

use std::io;

use socket2::{SockFilter, Socket};

/// What a client of HTTP/2 sends first (RFC 9113, section 3.4).
const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Instructions of the classic packet filter, on an accumulator A and an index X (the kernel's `filter.rst`). A packet begins with its TCP header.
const LOAD_BYTE: u16 = 0x30;
const AND: u16 = 0x54;
const SHIFT_RIGHT: u16 = 0x74;
const MOVE_TO_X: u16 = 0x07;
const LOAD_PACKET_LENGTH: u16 = 0x80;
const SUBTRACT_X: u16 = 0x1c;
const IF_AT_LEAST: u16 = 0x35;
const LOAD_WORD_AT_X: u16 = 0x40;
const IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// The byte of a TCP header whose upper half says how long the header is, in words of four bytes.
const HEADER_LENGTH_AT: u32 = 12;

/// Has connections of this listener drop a segment that begins with the preface.
///
/// # Errors
/// Where the process may not: newer kernels want the capability `CAP_NET_ADMIN`.
pub fn keep_away(listener: &Socket) -> io::Result<()> {
    listener.attach_filter(&filter())
}

fn filter() -> Vec<SockFilter> {
    let words: Vec<u32> = PREFACE
        .chunks_exact(4)
        .map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]))
        .collect();
    let mut filter = vec![
        SockFilter::new(LOAD_BYTE, 0, 0, HEADER_LENGTH_AT),
        SockFilter::new(AND, 0, 0, 0xf0),
        SockFilter::new(SHIFT_RIGHT, 0, 0, 2),
        SockFilter::new(MOVE_TO_X, 0, 0, 0),
        // A load beyond the end of a packet would drop it.
        SockFilter::new(LOAD_PACKET_LENGTH, 0, 0, 0),
        SockFilter::new(SUBTRACT_X, 0, 0, 0),
    ];
    // Whatever differs jumps over the words that are left, and the first of the two ends.
    let over = |left: usize| u8::try_from(2 * left + 1).unwrap_or(u8::MAX);
    filter.push(SockFilter::new(IF_AT_LEAST, 0, over(words.len()), 24));
    for (index, word) in words.iter().enumerate() {
        filter.push(SockFilter::new(LOAD_WORD_AT_X, 0, 0, u32::try_from(4 * index).unwrap_or(0)));
        filter.push(SockFilter::new(IF_EQUAL, 0, over(words.len() - index - 1), *word));
    }
    filter.push(SockFilter::new(RETURN, 0, 0, 0));
    filter.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    filter
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::time::Duration;

    use socket2::{Domain, Type};

    use super::*;

    #[test]
    fn what_begins_with_the_preface_does_not_come() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        if let Err(error) = keep_away(&listener) {
            eprintln!("left out: this process may not attach a filter ({error})");
            return;
        }
        listener.listen(16).unwrap();
        let listener: std::net::TcpListener = listener.into();
        let begins = |bytes: &[u8]| [&PREFACE[..], bytes].concat();
        let table = [
            (PREFACE.to_vec(), false),
            (begins(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"), false),
            (PREFACE[..23].to_vec(), true),
            (b"x".to_vec(), true),
            ([b"x", &PREFACE[..]].concat(), true),
            (b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n".to_vec(), true),
            (b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), true),
        ];
        for (bytes, comes) in table {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut server = listener.accept().unwrap().0;
            client.write_all(&bytes).unwrap();
            // What is dropped never comes, so some time has to do.
            let wait = if comes { Duration::from_secs(10) } else { Duration::from_secs(1) };
            server.set_read_timeout(Some(wait)).unwrap();
            assert_eq!(server.read(&mut [0; 8]).is_ok(), comes, "{}", String::from_utf8_lossy(&bytes));
        }
    }
}
