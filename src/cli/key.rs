//! How a key travels in the path of a URL.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

/// The bytes that stand for themselves are those that RFC 3986 calls unreserved. Even `/` is escaped: what is
/// between us and the node may merge or resolve segments, and must find none.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The option of the subcommands that are about keys which begin alike.
#[derive(Debug, clap::Args)]
pub(super) struct PrefixArgs {
    /// Only the keys that begin with this, of any bytes
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    prefix: Option<OsString>,
}

impl PrefixArgs {
    /// As a part of a query.
    pub(super) fn encoded(&self) -> String {
        encoded_prefix(self.prefix.as_deref())
    }
}

/// What keys begin with, as a part of a query; nothing for all keys.
pub(super) fn encoded_prefix(prefix: Option<&OsStr>) -> String {
    encoded_key(prefix.map_or(&b""[..], OsStr::as_bytes))
}

/// The path of a key of any bytes. The node decodes it once and has the same bytes again.
pub(super) fn path_of_key(key: &[u8]) -> String {
    format!("/kv-store/keys/{}", encoded_key(key))
}

/// A key as a part of a path or a query.
pub(super) fn encoded_key(key: &[u8]) -> String {
    percent_encode(key, ESCAPED).to_string()
}

/// The path under which the body is the value.
pub(super) fn path_of_bytes(key: &[u8]) -> String {
    format!("/v1/kv/{}", encoded_key(key))
}

#[cfg(test)]
mod tests {
    use percent_encoding::percent_decode_str;

    use super::path_of_key;

    #[test]
    fn keys_are_escaped_bytewise() {
        for (key, expected) in [
            (&b"plain-key_1.txt~"[..], "plain-key_1.txt~"),
            (b"", ""),
            (b".", "."),
            (b"..", ".."),
            (b"a/../b", "a%2F..%2Fb"),
            (b"//", "%2F%2F"),
            (b"a b+c", "a%20b%2Bc"),
            (b"100%", "100%25"),
            (b"%2F", "%252F"),
            (b"?#&=", "%3F%23%26%3D"),
            ("ключ".as_bytes(), "%D0%BA%D0%BB%D1%8E%D1%87"),
            (b"\x00\n\xff", "%00%0A%FF"),
        ] {
            assert_eq!(path_of_key(key), format!("/kv-store/keys/{expected}"), "{key:?}");
        }
    }

    #[test]
    fn every_byte_comes_back() {
        let key: Vec<u8> = (0..=255).collect();
        let path = path_of_key(&key);
        assert!(path.is_ascii());
        let decoded: Vec<u8> = percent_decode_str(path.strip_prefix("/kv-store/keys/").unwrap()).collect();
        assert_eq!(decoded, key);
    }
}
