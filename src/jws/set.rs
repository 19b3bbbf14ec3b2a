//! The keys that may have signed.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Algorithm, Key};

/// The most keys of one set; identity providers have two to ten.
const KEYS_MAX: usize = 64;

/// Keys, replaced as a whole. Immutable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeySet {
    keys: Vec<Key>,
}

/// What is no JWKS that one could go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKeySet {
    /// Not the JSON of RFC 7517.
    #[error("the answer is no JWKS: {{\"keys\":[…]}} was expected")]
    NotJwks,
    /// More keys than anybody has.
    #[error("the JWKS has more than {KEYS_MAX} keys")]
    TooMany,
    /// It has no key for any of the configured algorithms.
    #[error("the JWKS has no key for auth.algorithm")]
    NoneFits,
}

/// No key can be chosen for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoKey;

impl KeySet {
    /// The one configured key.
    #[must_use]
    pub fn of(key: Key) -> KeySet {
        KeySet { keys: vec![key] }
    }

    /// The public keys of a JWKS. What is of no use (secrets, other kinds, other purposes) is left out.
    ///
    /// # Errors
    /// It is none, or has no key for any of these algorithms. A key set that would keep everybody out is not taken, so that
    /// garbage does not replace good keys.
    pub fn from_jwks(json: &[u8], algorithms: &[Algorithm]) -> Result<KeySet, BadKeySet> {
        #[derive(Deserialize)]
        struct Jwks<'a> {
            #[serde(borrow)]
            keys: Vec<&'a RawValue>,
        }
        let jwks: Jwks<'_> = serde_json::from_slice(json).map_err(|_| BadKeySet::NotJwks)?;
        if jwks.keys.len() > KEYS_MAX {
            return Err(BadKeySet::TooMany);
        }
        let keys: Vec<Key> = jwks
            .keys
            .into_iter()
            .filter_map(|json| Key::from_jwk(json.get()))
            .collect();
        let fits = |key: &Key| algorithms.iter().any(|algorithm| key.fits(*algorithm));
        if !keys.iter().any(fits) {
            return Err(BadKeySet::NoneFits);
        }
        Ok(KeySet { keys })
    }

    /// The key to verify with. A `kid` chooses among the keys that fit the algorithm and does nothing else; where token or
    /// key has none, the only key that comes into question is meant.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub fn choose(&self, algorithm: Algorithm, kid: Option<&str>) -> Result<&Key, NoKey> {
        let fitting = || self.keys.iter().filter(|key| key.fits(algorithm));
        if let Some(kid) = kid
            && let Some(key) = fitting().find(|key| key.kid() == Some(kid))
        {
            return Ok(key);
        }
        let mut possible = fitting().filter(|key| kid.is_none() || key.kid().is_none());
        match (possible.next(), possible.next()) {
            (Some(key), None) => Ok(key),
            _ => Err(NoKey),
        }
    }

    /// The names of its keys, for the log.
    #[must_use]
    pub fn names(&self) -> String {
        let names = self
            .keys
            .iter()
            .map(|key| key.kid().unwrap_or("(no kid)").escape_debug().to_string());
        names.collect::<Vec<_>>().join(", ")
    }
}
