//! The user of a token, and the permissions of that token.
//!
//! Pure: tokens, keys and time are arguments. A [`Verifier`] is made from the configuration, never
//! changes, and is replaced as a whole with the settings; a [`Cache`] belongs to one shard.
//!
//! Invariants: *proven first*: no claim is read before the signature is verified. *Fail closed*: a
//! malformed claim of ours refuses the token; an absent one permits nothing. *Opaque*: neither
//! [`Token`] nor [`TokenError`] shows the content of the token.

mod cache;
mod claims;
mod verifier;

use std::fmt;
use std::sync::Arc;

use crate::config::patterns::Patterns;
pub use cache::Cache;
pub use verifier::Verifier;

/// A token as it came; nothing is known about it. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// The user of a verified token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user; a valid user id.
    pub user: String,
    /// The part that the connection keeps. The name is not in it: the table of users has it once.
    pub grant: Arc<Grant>,
}

/// The permissions of a verified token, and their end. Immutable; connections with the same token
/// may share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// When it ends, Unix milliseconds, leeway included; [`Grant::FOR_EVER`] without `exp`.
    pub expires_at_ms: u64,
    /// The most connections that the user may have on this gateway, at least 1; lowers the
    /// configured limit only.
    pub connections: Option<u32>,
    /// Permissions besides those of the configuration, or instead of them. Most tokens have none.
    pub rights: Option<Box<Rights>>,
}

/// Channels and users that a token names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rights {
    /// `sub_channels`: channels beyond those that the configuration permits to everyone.
    pub subscribe: Patterns,
    /// `pub_channels`, likewise.
    pub publish: Patterns,
    /// `write_to`: users, instead of those of the configuration.
    pub write_to: Option<Patterns>,
    /// `see`, likewise.
    pub see: Option<Patterns>,
}

impl Grant {
    /// A time that does not come.
    pub const FOR_EVER: u64 = u64::MAX;

    /// True from the moment it ends.
    #[must_use]
    pub fn is_expired(&self, now_ms: u64) -> bool {
        now_ms >= self.expires_at_ms
    }
}

/// Why a token is refused. The client learns only that it was refused; the reason is for the metric
/// and for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// No token that we could read.
    Malformed,
    /// Another algorithm than the configured ones.
    Algorithm,
    /// No key that may have signed it, or none of several fetched ones that it does not choose
    /// from. New keys may change that.
    UnknownKey,
    /// Signed with another key, or changed.
    Signature,
    /// `exp` has passed, and all else is good. A client that comes with a new token is let in.
    Expired,
    /// `exp` is missing where it must not.
    NoExpiry,
    /// `nbf` is still to come.
    NotYetValid,
    /// Another `iss`, or none.
    Issuer,
    /// Another `aud`, or none.
    Audience,
    /// A claim that we read is not what it should be, or `sub` is no user id.
    Claims,
}

impl TokenError {
    /// The label in `shardgate_token_verifications_total`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            TokenError::Malformed => "malformed",
            TokenError::Algorithm => "algorithm",
            TokenError::UnknownKey => "unknown_key",
            TokenError::Signature => "signature",
            TokenError::Expired => "expired",
            TokenError::NoExpiry => "no_expiry",
            TokenError::NotYetValid => "not_yet_valid",
            TokenError::Issuer => "issuer",
            TokenError::Audience => "audience",
            TokenError::Claims => "claims",
        }
    }
}

#[cfg(test)]
mod tests;
