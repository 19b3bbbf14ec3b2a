//! JSON objects of tokens: names once, values as they were written.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The most names of one object. Objects of identity providers have 30; a linear search finds one
/// of a hundred.
const MEMBERS_MAX: usize = 100;

/// The members of one JSON object. A repeated name makes the whole no object: two readers could
/// each believe another value (RFC 7515, section 4, and RFC 7519, section 4).
#[derive(Debug)]
pub struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

/// Not an object, a repeated name, too many names, or a value of another type than wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON object with each name once and each value of its type")]
pub struct BadObject;

impl<'a> Members<'a> {
    /// Reads an object.
    ///
    /// # Errors
    /// It is none, or has a name twice.
    pub fn parse(json: &'a [u8]) -> Result<Self, BadObject> {
        serde_json::from_slice(json).map_err(|_| BadObject)
    }

    /// The value of a name, `None` if the name is not there. A `null` is there, and is a `T` or an
    /// error: a limit that is `null` must not become no limit.
    ///
    /// # Errors
    /// The value is no `T`.
    pub fn get<T: Deserialize<'a>>(&self, name: &str) -> Result<Option<T>, BadObject> {
        let Some((_, value)) = self.0.iter().find(|(known, _)| known == name) else {
            return Ok(None);
        };
        serde_json::from_str(value.get()).map(Some).map_err(|_| BadObject)
    }

    /// True if the name is there, whatever its value.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::new();
        while let Some(name) = map.next_key::<Name<'de>>()? {
            if members.len() == MEMBERS_MAX || members.iter().any(|(known, _)| *known == name.0) {
                return Err(A::Error::custom("a name twice, or too many"));
            }
            members.push((name.0, map.next_value()?));
        }
        Ok(Members(members))
    }
}

/// A name, borrowed where it has no escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Borrowed<'a>(#[serde(borrow)] Cow<'a, str>);
        Borrowed::deserialize(deserializer).map(|name| Name(name.0))
    }
}
