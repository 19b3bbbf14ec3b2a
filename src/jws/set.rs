//! The keys that may have signed.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Algorithm, VerifyingKey};

/// The most keys of one set; identity providers have two to ten.
const KEYS_MAX: usize = 64;

/// U+FEFF in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The most keys that one token is tried with. The key of a token without a key name is among few:
/// an issuer publishes the next key beside the present and the last one.
pub const TRIES_MAX: usize = 4;

/// Keys, replaced as a whole. Immutable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeySet {
    keys: Vec<VerifyingKey>,
    /// Keys of a JWKS that cannot be used, each with its name and the reason.
    left_out: Vec<String>,
}

/// Why a text is no usable JWKS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKeySet {
    /// Not the JSON of RFC 7517.
    #[error("the answer is no JWKS: {{\"keys\":[…]}} was expected")]
    NotJwks,
    /// More keys than anybody has.
    #[error("the JWKS has more than {KEYS_MAX} keys")]
    TooMany,
    /// It has no key for any of the configured algorithms; the left-out keys, with reasons.
    #[error("the JWKS has no key for auth.algorithm{0}")]
    NoneFits(String),
}

/// The keys that may have signed a token, at most [`TRIES_MAX`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidates<'a> {
    /// In the order in which they are tried; none: no key may have signed it.
    pub keys: Vec<&'a VerifyingKey>,
    /// The token names the key. Where it does not, another key than these may have signed it.
    pub named: bool,
}

impl KeySet {
    /// The configured keys.
    #[must_use]
    pub fn of(keys: Vec<VerifyingKey>) -> KeySet {
        KeySet {
            keys,
            left_out: Vec::new(),
        }
    }

    /// The public keys of a JWKS. Unusable keys (secrets, other kinds, other purposes) are left
    /// out. A byte order mark, which some editors write in front, does no harm.
    ///
    /// # Errors
    /// It is none, or has no key for any of these algorithms. A key set that would keep everybody
    /// out is not taken, so that garbage does not replace good keys.
    pub fn from_jwks(json: &[u8], algorithms: &[Algorithm]) -> Result<KeySet, BadKeySet> {
        #[derive(Deserialize)]
        struct Jwks<'a> {
            #[serde(borrow)]
            keys: Vec<&'a RawValue>,
        }
        let json = json.strip_prefix(BYTE_ORDER_MARK).unwrap_or(json);
        let jwks: Jwks<'_> = serde_json::from_slice(json).map_err(|_| BadKeySet::NotJwks)?;
        if jwks.keys.len() > KEYS_MAX {
            return Err(BadKeySet::TooMany);
        }
        let mut set = KeySet::default();
        for json in jwks.keys {
            match VerifyingKey::from_jwk(json.get()) {
                Ok(key) => set.keys.push(key),
                Err((kid, why)) => set.left_out.push(format!("{}: {why}", shown(kid.as_deref()))),
            }
        }
        let fits = |key: &VerifyingKey| algorithms.iter().any(|algorithm| key.fits(*algorithm));
        if !set.keys.iter().any(fits) {
            let others = set
                .keys
                .iter()
                .map(|key| format!("{}: it is for other algorithms", shown(key.kid())));
            let causes: Vec<String> = set.left_out.iter().cloned().chain(others).collect();
            let causes = causes.join("; ");
            return Err(BadKeySet::NoneFits(if causes.is_empty() {
                causes
            } else {
                format!(" ({causes})")
            }));
        }
        Ok(set)
    }

    /// The keys to verify with. A `kid` chooses among the keys that fit the algorithm and does
    /// nothing else: several may have the same one. Where token or key has none, each key that
    /// comes into question is tried.
    #[must_use]
    pub fn choose(&self, algorithm: Algorithm, kid: Option<&str>) -> Candidates<'_> {
        let fitting = || self.keys.iter().filter(|key| key.fits(algorithm));
        let named: Vec<&VerifyingKey> = fitting()
            .filter(|key| kid.is_some() && key.kid() == kid)
            .take(TRIES_MAX)
            .collect();
        if !named.is_empty() {
            return Candidates {
                keys: named,
                named: true,
            };
        }
        let possible = fitting().filter(|key| kid.is_none() || key.kid().is_none());
        Candidates {
            keys: possible.take(TRIES_MAX).collect(),
            named: false,
        }
    }

    /// The names of its keys, for the log.
    #[must_use]
    pub fn names(&self) -> String {
        let names: Vec<String> = self.keys.iter().map(|key| shown(key.kid())).collect();
        names.join(", ")
    }

    /// The keys that cannot be used and why, for the log; `None` if there are none.
    #[must_use]
    pub fn left_out(&self) -> Option<String> {
        (!self.left_out.is_empty()).then(|| self.left_out.join("; "))
    }
}

/// A name as the log shows it: it comes from elsewhere.
fn shown(kid: Option<&str>) -> String {
    kid.unwrap_or("(no kid)")
        .chars()
        .take(100)
        .collect::<String>()
        .escape_debug()
        .to_string()
}
