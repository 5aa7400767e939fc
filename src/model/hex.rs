//! Numbers of 128 bits as text, always 32 hexadecimal digits: JSON numbers of that size do not survive every reader.

use serde::{Deserialize, Deserializer, Serializer, de};

const DIGITS: usize = 32;

/// For `#[serde(with = ..)]`.
pub(super) fn serialize<S: Serializer>(number: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{number:032x}"))
}

/// For `#[serde(with = ..)]`.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| de::Error::invalid_value(de::Unexpected::Str(&text), &"32 hexadecimal digits"))
}

fn parse(text: &str) -> Option<u128> {
    // The length alone does not do: `from_str_radix` takes a sign.
    let well_formed = text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u128::from_str_radix(text, 16).ok().filter(|_| well_formed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_32_digits_are_a_number() {
        let table = [
            ("000000000000000000000000000000ff", Some(255)),
            ("FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF", Some(u128::MAX)),
            ("", None),
            ("ff", None),
            ("+00000000000000000000000000000ff", None),
            ("0000000000000000000000000000000ff", None),
            ("000000000000000000000000000000fg", None),
        ];
        for (text, wanted) in table {
            assert_eq!(parse(text), wanted, "{text}");
        }
    }
}
