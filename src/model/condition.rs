//! Entity tags, and the conditions that requests make about them (RFC 9110, sections 8.8.3 and 13).
//!
//! A tag that this cluster has given names a version of a pair, and no other cluster gives the same. So whoever reads a client's condition makes versions of its
//! tags, and whoever owns the key compares versions: a tag that is no version of this cluster names nothing that could ever be there.

use std::fmt;
use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::binary::{Malformed, Reader, put_list, put_number};

/// A condition names at most so many tags; a longer one is refused.
const MOST_TAGS: usize = 1024;
/// The binary form of no condition is longer than this.
pub const LONGEST_CONDITION: usize = 2 * (2 + MOST_TAGS * 10);

/// What the tags of a cluster begin with: its random id, so that no two clusters give the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TagSpace(u64);

impl TagSpace {
    /// That of the cluster with this id.
    pub fn of(cluster: &str) -> Self {
        Self(u64::from_str_radix(cluster, 16).unwrap_or_else(|_| {
            let mut hasher = SipHasher13::new();
            hasher.write(cluster.as_bytes());
            hasher.finish()
        }))
    }

    /// The number by which the cluster is known.
    pub fn number(self) -> u64 {
        self.0
    }

    /// The tag of a version, as headers have it.
    pub fn tag(self, version: u64) -> String {
        // Every answer has one, and formatting takes as long as reading a small pair.
        let mut text = Vec::with_capacity(2 + 2 * DIGITS + 1);
        text.push(b'"');
        text.extend_from_slice(&digits(self.0));
        text.push(b'-');
        text.extend_from_slice(&digits(version)[DIGITS - significant_digits(version)..]);
        text.push(b'"');
        String::from_utf8(text).expect("digits of ASCII")
    }

    /// The version that a tag without its quotes names, if this cluster may have given it.
    fn version(self, tag: &str) -> Option<u64> {
        let (space, version) = tag.split_once('-')?;
        let number = u64::from_str_radix(version, 16).ok()?;
        // Only what is written just so is the same tag.
        (space == format!("{:016x}", self.0) && version == format!("{number:x}")).then_some(number)
    }
}

/// Hexadecimal digits of 64 bits.
const DIGITS: usize = 16;

/// How many digits a number has without zeros before it.
fn significant_digits(number: u64) -> usize {
    DIGITS - (number | 1).leading_zeros() as usize / 4
}

/// The hexadecimal digits of a number, with zeros before it.
fn digits(number: u64) -> [u8; DIGITS] {
    std::array::from_fn(|place| b"0123456789abcdef"[(number >> (4 * (DIGITS - 1 - place)) & 0xf) as usize])
}

/// A tag as a client has sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EntityTag {
    is_weak: bool,
    /// What is between the quotes.
    text: String,
}

/// What a header names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Named {
    Any,
    These(Vec<EntityTag>),
}

/// A header whose value is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable(&'static str);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = "allowed is * or a list of entity tags with commas between, each in double quotes and with W/ before it where it is weak";
        write!(f, "{} cannot be read: {form}, at most {MOST_TAGS}", self.0)
    }
}

/// The name of the header that asks for one of some versions, or for any.
pub const IF_MATCH: &str = "If-Match";
/// The name of the header that asks for none of some versions, or for nothing at all.
pub const IF_NONE_MATCH: &str = "If-None-Match";
/// The name of the header that names the version of what is answered.
pub const ETAG: &str = "ETag";

/// The conditions of a request as its headers have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stated {
    if_match: Option<Named>,
    if_none_match: Option<Named>,
}

impl Stated {
    /// Reads the values of both headers, each of any number of lines; nothing where there is neither.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn parse(if_match: &[&str], if_none_match: &[&str]) -> Result<Option<Self>, Unreadable> {
        if if_match.is_empty() && if_none_match.is_empty() {
            return Ok(None);
        }
        let named = |name, lines: &[&str]| match lines {
            [] => Ok(None),
            lines => Named::parse(lines).map(Some).ok_or(Unreadable(name)),
        };
        Ok(Some(Self {
            if_match: named(IF_MATCH, if_match)?,
            if_none_match: named(IF_NONE_MATCH, if_none_match)?,
        }))
    }

    /// The same in terms of the versions of a cluster. `If-Match` compares strongly, so a weak tag matches nothing there.
    pub fn within(&self, space: TagSpace) -> Condition {
        let versions = |named: &Named, takes_weak: bool| match named {
            Named::Any => Versions::Any,
            Named::These(tags) => {
                let tags = tags.iter().filter(|tag| takes_weak || !tag.is_weak);
                Versions::These(tags.filter_map(|tag| space.version(&tag.text)).collect())
            }
        };
        Condition {
            if_match: self.if_match.as_ref().map(|named| versions(named, false)),
            if_none_match: self.if_none_match.as_ref().map(|named| versions(named, true)),
        }
    }

    /// Whatever is stated, so that two that differ in it have different bytes.
    pub fn fingerprint(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for named in [&self.if_match, &self.if_none_match] {
            match named {
                None => out.push(0),
                Some(Named::Any) => out.push(1),
                Some(Named::These(tags)) => {
                    out.push(2);
                    put_list(&mut out, tags.iter(), |tag, out| {
                        out.push(u8::from(tag.is_weak));
                        super::binary::put_bytes(out, tag.text.as_bytes());
                    });
                }
            }
        }
        out
    }
}

impl Named {
    /// Reads the lines of a header, which are one list.
    fn parse(lines: &[&str]) -> Option<Self> {
        if let [line] = lines
            && line.trim_matches([' ', '\t']) == "*"
        {
            return Some(Self::Any);
        }
        let mut tags = Vec::new();
        for line in lines {
            let mut rest = *line;
            loop {
                // Empty elements mean nothing (section 5.6.1.2).
                rest = rest.trim_start_matches([' ', '\t', ',']);
                if rest.is_empty() {
                    break;
                }
                let (tag, after) = EntityTag::parse(rest)?;
                let after = after.trim_start_matches([' ', '\t']);
                if tags.len() == MOST_TAGS || !(after.is_empty() || after.starts_with(',')) {
                    return None;
                }
                tags.push(tag);
                rest = after;
            }
        }
        // A list of nothing is what somebody sends who has lost his tag.
        (!tags.is_empty()).then_some(Self::These(tags))
    }
}

impl EntityTag {
    /// Reads a tag, and says what follows it.
    fn parse(text: &str) -> Option<(Self, &str)> {
        let strong = text.strip_prefix("W/");
        let (text, rest) = strong.unwrap_or(text).strip_prefix('"')?.split_once('"')?;
        let is_sound = text.chars().all(|c| c == '!' || ('#'..='~').contains(&c) || !c.is_ascii());
        is_sound.then(|| (Self { is_weak: strong.is_some(), text: text.to_owned() }, rest))
    }
}

/// What one of the headers names, as versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Versions {
    /// Any: `*`.
    Any,
    /// These; where there are none nothing matches.
    These(Box<[u64]>),
}

impl Versions {
    fn name(&self, version: u64) -> bool {
        match self {
            Self::Any => true,
            Self::These(versions) => versions.contains(&version),
        }
    }
}

/// What a request asks of what is there before it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// One of these has to be there.
    pub if_match: Option<Versions>,
    /// None of these may be there.
    pub if_none_match: Option<Versions>,
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It does.
    Holds,
    /// What is there is none that `If-Match` names.
    NotThere,
    /// What is there is one that `If-None-Match` names.
    There,
}

impl Condition {
    /// Judges what is there: a pair of this version, or nothing. `If-Match` comes first (section 13.2.2).
    pub fn judge(&self, there: Option<u64>) -> Judgement {
        let is_named = |versions: &Versions| there.is_some_and(|version| versions.name(version));
        if self.if_match.as_ref().is_some_and(|wanted| !is_named(wanted)) {
            Judgement::NotThere
        } else if self.if_none_match.as_ref().is_some_and(is_named) {
            Judgement::There
        } else {
            Judgement::Holds
        }
    }

    /// Appends its binary form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for versions in [&self.if_match, &self.if_none_match] {
            match versions {
                None => out.push(0),
                Some(Versions::Any) => out.push(1),
                Some(Versions::These(versions)) => {
                    out.push(2);
                    put_list(out, versions.iter(), |version, out| put_number(out, *version));
                }
            }
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the bytes are no condition.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut versions = || match reader.byte()? {
            0 => Ok(None),
            1 => Ok(Some(Versions::Any)),
            2 => Ok(Some(Versions::These(reader.list(Reader::number)?.into()))),
            _ => Err(Malformed("unknown kind of condition")),
        };
        let (if_match, if_none_match) = (versions()?, versions()?);
        if if_match.is_none() && if_none_match.is_none() {
            return Err(Malformed("a condition that asks for nothing"));
        }
        Ok(Self { if_match, if_none_match })
    }

    /// Reads what `Display` writes.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > 2 * LONGEST_CONDITION || !text.is_ascii() || !text.len().is_multiple_of(2) {
            return None;
        }
        let bytes = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok());
        let bytes: Vec<u8> = bytes.collect::<Option<_>>()?;
        let mut reader = Reader::new(&bytes);
        let condition = Self::decode(&mut reader).ok()?;
        reader.end().ok().map(|()| condition)
    }
}

/// As headers between nodes have it: its binary form in hexadecimal digits.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPACE: TagSpace = TagSpace(0xab);

    fn tag(version: u64) -> String {
        SPACE.tag(version)
    }

    fn parsed(if_match: &[&str], if_none_match: &[&str]) -> Condition {
        Stated::parse(if_match, if_none_match).unwrap().unwrap().within(SPACE)
    }

    #[expect(clippy::unnecessary_wraps, reason = "as a condition has it")]
    fn these(versions: &[u64]) -> Option<Versions> {
        Some(Versions::These(versions.into()))
    }

    #[test]
    fn a_tag_is_the_id_of_its_cluster_and_the_version_in_hexadecimal_digits() {
        for version in [0, 1, 9, 10, 15, 16, 0xabc, 1 << 44, u64::MAX] {
            for space in [0, 0xab, u64::MAX] {
                assert_eq!(TagSpace(space).tag(version), format!("\"{space:016x}-{version:x}\""));
            }
        }
        assert_eq!(TagSpace::of("00000000000000ab"), SPACE);
    }

    #[test]
    fn a_header_is_a_star_or_a_list_of_tags() {
        let (one, two) = (tag(1), tag(0x2_0000_0000_0000));
        let weak = format!("W/{one}");
        let table: [(&[&str], Option<Versions>); 15] = [
            (&["*"], Some(Versions::Any)),
            (&["\t* "], Some(Versions::Any)),
            (&[&one], these(&[1])),
            (&[&format!("{one},{two}")], these(&[1, 0x2_0000_0000_0000])),
            (&[&format!(" ,, {one}\t , ,{two} ,")], these(&[1, 0x2_0000_0000_0000])),
            (&[&one, &two], these(&[1, 0x2_0000_0000_0000])),
            (&["", &two], these(&[0x2_0000_0000_0000])),
            // Tags that this cluster has not given; one may have a comma in it.
            (&["\"\""], these(&[])),
            (&["\"a,b\", \"1\""], these(&[])),
            (&[&TagSpace(0xac).tag(1)], these(&[])),
            (&["\"00000000000000ab-01\""], these(&[])),
            (&["\"00000000000000AB-1\""], these(&[])),
            (&["\"ab-1\""], these(&[])),
            (&["\"00000000000000ab-+1\""], these(&[])),
            (&[&weak], these(&[])),
        ];
        for (lines, wanted) in table {
            assert_eq!(parsed(lines, &[]).if_match, wanted, "{lines:?}");
        }
        assert_eq!(parsed(&[], &[&weak]).if_none_match, these(&[1]), "compared weakly");
    }

    #[test]
    fn what_is_no_star_and_no_list_is_refused() {
        let many = vec!["\"a\""; MOST_TAGS + 1].join(",");
        for text in [
            "",
            " ",
            ",",
            "a",
            "\"a",
            "a\"",
            "\"a\" \"b\"",
            "\"a\"b",
            "*,*",
            "*, \"a\"",
            "\"a\", *",
            "w/\"a\"",
            "W/",
            "W/ \"a\"",
            "\"a b\"",
            "\"\u{7f}\"",
            "'a'",
            &many,
        ] {
            assert_eq!(Stated::parse(&[text], &[]), Err(Unreadable(IF_MATCH)), "{text:?}");
            assert_eq!(
                Stated::parse(&[], &["\"a\"", text]).is_err(),
                !text.trim_matches([' ', ',']).is_empty(),
                "{text:?}"
            );
        }
        assert!(Stated::parse(&["*", "*"], &[]).is_err());
        assert_eq!(Stated::parse(&[], &[]), Ok(None));
        let said = Unreadable(IF_MATCH).to_string();
        assert!(said.starts_with("If-Match cannot be read: allowed is * or"), "{said}");
    }

    #[test]
    fn a_condition_is_judged_by_what_is_there() {
        use Judgement::{Holds, NotThere, There};
        let any = Some(Versions::Any);
        // If-Match, If-None-Match, and what comes of it where there is nothing, version 1, and version 2.
        let table = [
            (any.clone(), None, [NotThere, Holds, Holds]),
            (these(&[1]), None, [NotThere, Holds, NotThere]),
            (these(&[]), None, [NotThere, NotThere, NotThere]),
            (None, any.clone(), [Holds, There, There]),
            (None, these(&[1]), [Holds, There, Holds]),
            (None, these(&[]), [Holds, Holds, Holds]),
            (any.clone(), any.clone(), [NotThere, There, There]),
            (these(&[1]), these(&[1]), [NotThere, There, NotThere]),
            (these(&[1, 2]), these(&[1]), [NotThere, There, Holds]),
        ];
        for (if_match, if_none_match, wanted) in table {
            let condition = Condition { if_match, if_none_match };
            assert_eq!([None, Some(1), Some(2)].map(|there| condition.judge(there)), wanted, "{condition:?}");
        }
    }

    fn versions() -> impl Strategy<Value = Option<Versions>> {
        let these = prop::collection::vec(any::<u64>(), 0..4).prop_map(|all| Versions::These(all.into()));
        prop::option::of(prop_oneof![Just(Versions::Any), these])
    }

    proptest! {
        #[test]
        fn a_condition_survives_a_round_trip(if_match in versions(), if_none_match in versions()) {
            let condition = Condition { if_match, if_none_match };
            let (mut bytes, is_one) = (Vec::new(), condition.if_match.is_some() || condition.if_none_match.is_some());
            condition.encode(&mut bytes);
            let read = Condition::decode(&mut Reader::new(&bytes));
            prop_assert_eq!(read.ok(), is_one.then(|| condition.clone()));
            prop_assert_eq!(Condition::parse(&condition.to_string()), is_one.then_some(condition));
        }

        #[test]
        fn a_tag_names_its_version_in_its_own_cluster_only(version: u64, space: u64, other: u64) {
            let tag = TagSpace(space).tag(version);
            let stated = Stated::parse(&[&tag], &[]).unwrap().unwrap();
            prop_assert_eq!(stated.within(TagSpace(space)).judge(Some(version)), Judgement::Holds);
            if other != space {
                prop_assert_eq!(stated.within(TagSpace(other)).judge(Some(version)), Judgement::NotThere);
            }
        }

        #[test]
        fn no_text_harms_whoever_reads_it(text: String, bytes: Vec<u8>) {
            let _ = Stated::parse(&[&text], &[&text]);
            let _ = (Condition::parse(&text), Condition::decode(&mut Reader::new(&bytes)));
        }

        #[test]
        fn conditions_that_differ_have_fingerprints_that_do(
            one in prop::collection::vec("(W/)?\"[ab-]{0,3}\"", 1..3), two in prop::collection::vec("(W/)?\"[ab-]{0,3}\"", 1..3),
        ) {
            let stated = |tags: &[String]| Stated::parse(&[&tags.join(",")], &[]).unwrap().unwrap();
            let (one, two) = (stated(&one), stated(&two));
            prop_assert_eq!(one == two, one.fingerprint() == two.fingerprint());
        }
    }
}
