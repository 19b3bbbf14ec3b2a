//! Signatures of tokens (RFC 7515, compact form): algorithms, keys, who signed this.
//!
//! Pure: no socket, file or clock; only [`SigningKey`], which no gateway in service uses, draws
//! random numbers. Knows nothing of claims or users, which are the `auth` room's.
//!
//! The crate `jsonwebtoken` on AWS-LC, which TLS uses too, makes and verifies signatures and reads
//! PEM. This room adds what it leaves open: bounds before any work, repeated names, `typ`, `crit`,
//! the curve of a key, and which key of a set. Its `decode` is not used: that reads the system's
//! clock and looks at neither `typ` nor `crit`. `docs/decisions/0003-jsonwebtoken.md` has all
//! reasons.
//!
//! | file | duty |
//! | --- | --- |
//! | `mod` | [`Algorithm`] |
//! | `key` | [`VerifyingKey`]: a secret or a public key, and what it can verify |
//! | `set` | [`KeySet`]: the keys that may have signed, from the configuration or a JWKS |
//! | `compact` | [`Signed`]: the parts of a token, taken apart and not believed yet |
//! | `members` | JSON objects without duplicate names |
//! | `sign` | [`SigningKey`], for trying things out |
//!
//! Invariants: *pinned*: a token's `alg` only names which of the configured algorithms it claims. A
//! key verifies by the algorithms of its own kind only, so a public key is never a secret.
//! *Opaque*: no `Debug` and no error shows a secret or a token.

mod compact;
mod key;
mod members;
mod set;
mod sign;

use std::fmt;

use jsonwebtoken::crypto::{CryptoProvider, aws_lc};

pub use compact::{Malformed, Signed};
pub use key::{BadKey, LeftOut, ShortSecret, VerifyingKey};
pub use members::{BadObject, Members};
pub use set::{BadKeySet, Candidates, KeySet, TRIES_MAX};
pub use sign::{CannotSign, SigningKey};

/// The longest token that is looked at, bytes. Longer than what identity providers issue, shorter
/// than what a proxy lets through in one header field.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Named here instead of being the process's default, so a program that embeds a gateway may use
/// another.
static PROVIDER: &CryptoProvider = &aws_lc::DEFAULT_PROVIDER;

/// An algorithm of RFC 7518 or RFC 8037. There is no `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "they are the names of the standard")]
pub enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

/// Which kind of key an algorithm takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// A shared secret.
    Hmac,
    /// An RSA key.
    Rsa,
    /// A key on the curve P-256.
    P256,
    /// A key on the curve P-384.
    P384,
    /// An Ed25519 key.
    Ed25519,
}

impl Algorithm {
    /// The cost of verifying, microseconds of an ordinary core: `cargo bench --bench rooms --
    /// token`. RSA keys of 2,048 bits take 24, and of 4,096 bits 3.5 times as long (`openssl speed
    /// rsa2048 rsa4096`).
    #[must_use]
    pub fn verify_us(self) -> u32 {
        match self.family() {
            Family::Hmac => 3,
            Family::Ed25519 => 45,
            Family::P256 => 65,
            Family::Rsa => 85,
            Family::P384 => 255,
        }
    }

    /// Every algorithm, by the name that tokens and the configuration use.
    pub const NAMES: [&'static str; 12] = [
        "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA",
    ];

    const ALL: [Algorithm; 12] = [
        Algorithm::Hs256,
        Algorithm::Hs384,
        Algorithm::Hs512,
        Algorithm::Rs256,
        Algorithm::Rs384,
        Algorithm::Rs512,
        Algorithm::Ps256,
        Algorithm::Ps384,
        Algorithm::Ps512,
        Algorithm::Es256,
        Algorithm::Es384,
        Algorithm::EdDsa,
    ];

    /// The algorithm of exactly this name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Algorithm> {
        let index = Self::NAMES.iter().position(|known| *known == name)?;
        Some(Self::ALL[index])
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// Which kind of key it takes.
    #[must_use]
    pub fn family(self) -> Family {
        match self {
            Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => Family::Hmac,
            Algorithm::Rs256 | Algorithm::Rs384 | Algorithm::Rs512 => Family::Rsa,
            Algorithm::Ps256 | Algorithm::Ps384 | Algorithm::Ps512 => Family::Rsa,
            Algorithm::Es256 => Family::P256,
            Algorithm::Es384 => Family::P384,
            Algorithm::EdDsa => Family::Ed25519,
        }
    }

    /// True if a verifier can also sign.
    #[must_use]
    pub fn is_symmetric(self) -> bool {
        self.family() == Family::Hmac
    }

    /// How long a secret must at least be, bytes: as long as the hash (RFC 7518, section 3.2).
    /// `None` where there is none.
    fn secret_bytes_min(self) -> Option<usize> {
        match self {
            Algorithm::Hs256 => Some(32),
            Algorithm::Hs384 => Some(48),
            Algorithm::Hs512 => Some(64),
            _ => None,
        }
    }

    /// The library's name of it.
    fn of_library(self) -> jsonwebtoken::Algorithm {
        use jsonwebtoken::Algorithm as Library;
        match self {
            Algorithm::Hs256 => Library::HS256,
            Algorithm::Hs384 => Library::HS384,
            Algorithm::Hs512 => Library::HS512,
            Algorithm::Rs256 => Library::RS256,
            Algorithm::Rs384 => Library::RS384,
            Algorithm::Rs512 => Library::RS512,
            Algorithm::Ps256 => Library::PS256,
            Algorithm::Ps384 => Library::PS384,
            Algorithm::Ps512 => Library::PS512,
            Algorithm::Es256 => Library::ES256,
            Algorithm::Es384 => Library::ES384,
            Algorithm::EdDsa => Library::EdDSA,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests;
