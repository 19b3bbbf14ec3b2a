//! Who a token speaks for, and what it permits.
//!
//! Pure: tokens, keys and time are arguments. A [`Verifier`] is made from the configuration, never changes, and is replaced as
//! a whole with the settings; a [`Cache`] belongs to one shard.
//!
//! Invariants: *proven first*: no claim is read before the signature is verified. *Fail closed*: a claim of ours that is there and
//! is not what it should be refuses the token; one that is not there permits nothing. *Opaque*: neither [`Token`] nor
//! [`Refusal`] shows what the token holds.

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

/// Who a verified token speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user; a valid user id.
    pub user: String,
    /// What the connection keeps: not the name, which is in the table of users once.
    pub grant: Arc<Grant>,
}

/// What a verified token permits, and until when. Immutable; connections with the same token may share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// When it ends, Unix milliseconds, leeway included; [`Grant::FOR_EVER`] without `exp`.
    pub expires_at_ms: u64,
    /// The most connections that the user may have on this gateway, at least 1; lowers the configured limit only.
    pub connections: Option<u32>,
    /// What it permits besides the configuration, or in its place; most tokens say nothing.
    pub rights: Option<Box<Rights>>,
}

/// Channels and users that a token names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rights {
    /// `sub_channels`: channels beyond those that the configuration permits to everyone.
    pub subscribe: Patterns,
    /// `pub_channels`, likewise.
    pub publish: Patterns,
    /// `write_to`: users, in place of what the configuration says.
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

/// Why a token is refused. What a client hears is only that it is; this is for the metric and for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No token that we could read.
    Malformed,
    /// Another algorithm than the configured ones.
    Algorithm,
    /// No key that may have signed it, or none of several fetched ones that it does not choose from. New keys may change that.
    UnknownKey,
    /// Signed by somebody else, or changed.
    Signature,
    /// `exp` has passed, and all else is good: who comes with a new one is let in.
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

impl Refusal {
    /// The label in `shardgate_token_verifications_total`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Refusal::Malformed => "malformed",
            Refusal::Algorithm => "algorithm",
            Refusal::UnknownKey => "unknown_key",
            Refusal::Signature => "signature",
            Refusal::Expired => "expired",
            Refusal::NoExpiry => "no_expiry",
            Refusal::NotYetValid => "not_yet_valid",
            Refusal::Issuer => "issuer",
            Refusal::Audience => "audience",
            Refusal::Claims => "claims",
        }
    }
}

#[cfg(test)]
mod tests;
