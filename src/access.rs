//! Who may ask for what: the tokens of `AUTH_TOKENS_FILE`, of which only hashes are kept.
//!
//! A file has a line for each token: `<sha256 of the token, in hex> <role> [<prefix of keys, percent-encoded>]`. Blank lines, and those that begin with `#`, say nothing.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use percent_encoding::percent_decode_str;
use sha2::{Digest, Sha256};

use crate::error::Error;

/// What a token is good for; each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look at how the cluster is, and at no pair.
    Monitor,
    /// Read pairs.
    Read,
    /// Change pairs.
    Write,
    /// Change the cluster.
    Admin,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::Monitor, Self::Read, Self::Write, Self::Admin];

    /// Its name in a file of tokens.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Monitor => "monitor",
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The keys that somebody may see: those that begin with a prefix. Everybody sees all of them where there are no tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach(Option<Arc<[u8]>>);

impl Reach {
    /// The keys that begin so.
    pub fn of(prefix: &[u8]) -> Self {
        Self((!prefix.is_empty()).then(|| prefix.into()))
    }

    /// Refuses a key, or a prefix of keys, that is not within.
    ///
    /// # Errors
    /// [`Error::Forbidden`].
    pub fn check(&self, key_or_prefix: &[u8]) -> Result<(), Error> {
        let Some(prefix) = self.0.as_deref().filter(|prefix| !key_or_prefix.starts_with(prefix)) else {
            return Ok(());
        };
        Err(Error::Forbidden(format!(
            "This token reaches only the keys that begin with \"{}\": ask for those, or with another token",
            prefix.escape_ascii()
        )))
    }
}

/// What a token is good for, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Grant {
    role: Role,
    reach: Reach,
}

/// The SHA-256 of a token.
type Hash = [u8; 32];

/// All tokens, by their hashes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tokens(Vec<(Hash, Grant)>);

/// The hash of a token.
fn hash(token: &str) -> Hash {
    Sha256::digest(token.as_bytes()).into()
}

/// The line of a file that stands for a token.
pub fn line(token: &str, role: Role, prefix: &str) -> String {
    let hash = hash(token);
    let (high, low) = hash.split_at(size_of::<u128>());
    let [high, low] = [high, low]
        .map(|half| u128::from_be_bytes(half.try_into().expect("a half of a hash has so many bytes")));
    format!("{high:032x}{low:032x} {role} {prefix}").trim_end().to_owned()
}

/// Compares in a time that does not tell how much of it is right.
pub fn is_same(known: &[u8], shown: &[u8]) -> bool {
    let differences = known.iter().zip(shown).fold(0, |found, (a, b)| found | (a ^ b));
    known.len() == shown.len() && differences == 0
}

impl Tokens {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// A sentence that names the line and says what is allowed. What stands in the line is not repeated: it may be a token.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (hash, grant) = read(line).map_err(|error| format!("line {}: {error}", at + 1))?;
            if tokens.iter().any(|(known, _)| *known == hash) {
                return Err(format!("line {}: the same token stands in an earlier line", at + 1));
            }
            tokens.push((hash, grant));
        }
        Ok(Self(tokens))
    }

    /// What a token is good for. It takes as long whichever it is, and whether it is one.
    fn find(&self, token: &str) -> Option<&Grant> {
        let shown = hash(token);
        self.0
            .iter()
            .fold(None, |found, (hash, grant)| if is_same(hash, &shown) { Some(grant) } else { found })
    }
}

fn read(line: &str) -> Result<(Hash, Grant), String> {
    let mut words = line.split_ascii_whitespace();
    let (digits, role, prefix) = (words.next().unwrap_or_default(), words.next(), words.next());
    let hash = parse_hash(digits)
        .ok_or("it does not begin with the SHA-256 of a token: allowed are 64 hexadecimal digits")?;
    let role = Role::ALL.into_iter().find(|known| Some(known.name()) == role);
    let role = role.ok_or("the role is wrong or missing: allowed are monitor, read, write and admin")?;
    if words.next().is_some() {
        return Err("there is more than hash, role and prefix: a blank in a prefix is %20".to_owned());
    }
    if prefix.is_some() && role == Role::Admin {
        return Err("admin has no prefix: it may do everything".to_owned());
    }
    let prefix: Vec<u8> = percent_decode_str(prefix.unwrap_or_default()).collect();
    Ok((hash, Grant { role, reach: Reach::of(&prefix) }))
}

fn parse_hash(digits: &str) -> Option<Hash> {
    if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = Hash::default();
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(hash)
}

/// Judges who asks, where there is a file of tokens.
#[derive(Debug, Default)]
pub struct Access(Option<Guarded>);

#[derive(Debug)]
struct Guarded {
    path: PathBuf,
    tokens: RwLock<Arc<Tokens>>,
}

impl Access {
    /// Everybody may do everything.
    pub fn open() -> Self {
        Self::default()
    }

    /// Who is in this file may do what it says.
    pub fn guarded(path: &Path, tokens: Arc<Tokens>) -> Self {
        Self(Some(Guarded { path: path.to_owned(), tokens: RwLock::new(tokens) }))
    }

    /// Whether it matters who asks.
    pub fn is_guarded(&self) -> bool {
        self.0.is_some()
    }

    /// Reads the file again; how many tokens it has, where there is one. What cannot be read leaves everything as it was.
    ///
    /// # Errors
    /// A sentence that names the file and says what is wrong.
    pub fn reload(&self) -> Option<Result<usize, String>> {
        let guarded = self.0.as_ref()?;
        Some(load(&guarded.path).map(|tokens| {
            let count = tokens.0.len();
            *guarded.tokens.write() = Arc::new(tokens);
            count
        }))
    }

    /// Judges a request by its header `Authorization`: the keys that it may be about.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] without a token that is known, [`Error::Forbidden`] where it is not good for that.
    pub fn judge(&self, needed: Role, authorization: Option<&str>) -> Result<Reach, Error> {
        let Some(guarded) = &self.0 else { return Ok(Reach::default()) };
        let shown = authorization.and_then(bearer).ok_or(Error::Unauthorized { was_shown: false })?;
        let tokens = Arc::clone(&guarded.tokens.read());
        let grant = tokens.find(shown).ok_or(Error::Unauthorized { was_shown: true })?;
        if grant.role < needed {
            return Err(Error::Forbidden(format!(
                "This token has the role {}, and this takes {needed}: ask with another token",
                grant.role
            )));
        }
        Ok(grant.reach.clone())
    }
}

/// Reads a file of tokens.
///
/// # Errors
/// A sentence that names the file and says what is wrong.
pub fn load(path: &Path) -> Result<Tokens, String> {
    let text =
        fs::read_to_string(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    Tokens::parse(&text).map_err(|error| format!("{}, {error}", path.display()))
}

/// The token in a header (RFC 6750, section 2.1; the name of the scheme is read as RFC 9110 says, section 11.1).
fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim_start()).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(lines: &[String]) -> Tokens {
        Tokens::parse(&lines.join("\n")).unwrap()
    }

    #[test]
    fn a_line_is_a_hash_a_role_and_a_prefix() {
        let of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(line("abc", Role::Read, ""), format!("{of_abc} read"));
        assert_eq!(line("abc", Role::Write, "a%2Fb"), format!("{of_abc} write a%2Fb"));
        let wrong = [
            ("abc read".to_owned(), "line 1: it does not begin"),
            (format!("\n{} read", &of_abc[1..]), "line 2: it does not begin"),
            (format!("{}g read", &of_abc[1..]), "line 1: it does not begin"),
            (of_abc.to_owned(), "line 1: the role"),
            (format!("{of_abc} Read"), "line 1: the role"),
            (format!("{of_abc} admin a"), "line 1: admin has no prefix"),
            (format!("{of_abc} read a b"), "line 1: there is more"),
            (format!("{of_abc} read\n{of_abc} admin"), "line 2: the same token"),
        ];
        for (text, says) in wrong {
            let error = Tokens::parse(&text).unwrap_err();
            assert!(error.starts_with(says) && !error.contains(&of_abc[1..]), "{text}: {error}");
        }
        assert_eq!(Tokens::parse(&format!("# none\n\n  {of_abc}\tmonitor \n")).unwrap().0.len(), 1);
    }

    #[test]
    fn a_token_may_do_what_its_role_and_those_before_it_may() {
        let lines = Role::ALL.map(|role| line(role.name(), role, ""));
        let access = Access::guarded(Path::new("none"), Arc::new(tokens(&lines)));
        for shown in Role::ALL {
            for needed in Role::ALL {
                let judged = access.judge(needed, Some(&format!("Bearer {shown}")));
                assert_eq!(judged.is_ok(), needed <= shown, "{shown} for {needed}");
                assert!(judged.is_ok() || matches!(judged, Err(Error::Forbidden(_))), "{judged:?}");
            }
        }
        let strangers =
            [None, Some("Bearer"), Some("Bearer "), Some("Basic admin"), Some("admin"), Some("Bearer x")];
        for header in strangers {
            let judged = access.judge(Role::Monitor, header);
            assert_eq!(
                judged,
                Err(Error::Unauthorized { was_shown: header == Some("Bearer x") }),
                "{header:?}"
            );
        }
        assert!(access.judge(Role::Admin, Some(" bearer  admin ")).is_ok());
        assert_eq!(Access::open().judge(Role::Admin, None), Ok(Reach::default()));
    }

    #[test]
    fn a_prefix_is_where_a_token_reaches() {
        let lines = [line("a", Role::Write, "a%2F"), line("all", Role::Write, "")];
        let access = Access::guarded(Path::new("none"), Arc::new(tokens(&lines)));
        let reach = access.judge(Role::Read, Some("Bearer a")).unwrap();
        for (key, is_within) in [("a/", true), ("a/b", true), ("a", false), ("", false), ("b/a/", false)] {
            assert_eq!(reach.check(key.as_bytes()).is_ok(), is_within, "{key}");
        }
        let all = access.judge(Role::Read, Some("Bearer all")).unwrap();
        assert!(all.check(b"").is_ok());
    }

    #[test]
    fn a_file_that_cannot_be_read_leaves_the_tokens_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        fs::write(&path, line("old", Role::Admin, "")).unwrap();
        let access = Access::guarded(&path, Arc::new(load(&path).unwrap()));
        let is_known = |token: &str| access.judge(Role::Admin, Some(&format!("Bearer {token}"))).is_ok();
        fs::write(&path, "half a line").unwrap();
        assert!(access.reload().unwrap().unwrap_err().contains("line 1"));
        assert!(is_known("old"));
        fs::write(&path, line("new", Role::Admin, "")).unwrap();
        assert_eq!(access.reload(), Some(Ok(1)));
        assert!(is_known("new") && !is_known("old"));
        fs::remove_file(&path).unwrap();
        assert!(access.reload().unwrap().unwrap_err().contains("cannot be read"));
        assert!(is_known("new"));
        assert_eq!(Access::open().reload(), None);
    }
}
