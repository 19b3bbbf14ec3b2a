//! From a token to an identity.

use std::sync::Arc;
use std::time::Duration;

use super::claims::Claims;
use super::{Identity, TokenError};
use crate::config::{AuthConfig, CredentialSource};
use crate::ids::is_plain_user_id;
use crate::jws::{Algorithm, BadKey, KeySet, Signed, VerifyingKey};

/// Decides on tokens. Immutable; shared by all shards as a part of their settings.
#[derive(Debug, Clone)]
pub struct Verifier {
    algorithms: Vec<Algorithm>,
    keys: Arc<KeySet>,
    /// New keys may be had by asking for them.
    keys_are_fetched: bool,
    issuer: Option<String>,
    audience: Vec<String>,
    leeway_ms: u64,
    require_exp: bool,
    any_user_id: bool,
}

impl Verifier {
    /// Makes the verifier of the configuration; `None` in development mode. With a JWKS URL it has
    /// the `fetched` keys.
    ///
    /// # Errors
    /// The configured key is none for the configured algorithms.
    pub fn new(config: &AuthConfig, fetched: Option<&Arc<KeySet>>) -> Result<Option<Verifier>, BadKey> {
        let keys = match &config.source {
            CredentialSource::Development => return Ok(None),
            CredentialSource::Key(key) => {
                Arc::new(KeySet::of(VerifyingKey::configured(key.expose(), &config.algorithms)?))
            }
            CredentialSource::Jwks(_) => fetched.cloned().unwrap_or_default(),
        };
        Ok(Some(Verifier {
            algorithms: config.algorithms.clone(),
            keys,
            keys_are_fetched: matches!(config.source, CredentialSource::Jwks(_)),
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            leeway_ms: millis(config.leeway),
            require_exp: config.require_exp,
            any_user_id: config.any_user_id,
        }))
    }

    /// True where a key that is unknown now may be known after a fetch.
    #[must_use]
    pub fn may_learn_keys(&self) -> bool {
        self.keys_are_fetched
    }

    /// The cost of verifying a signature, microseconds of an ordinary core.
    #[must_use]
    pub fn signature_us(&self) -> u32 {
        let costs = self.algorithms.iter().map(|algorithm| algorithm.verify_us());
        costs.max().unwrap_or_default()
    }

    /// The identity of this token; `now_ms` is Unix time in milliseconds.
    ///
    /// # Errors
    /// The token is not valid here and now.
    pub fn verify(&self, token: &str, now_ms: u64) -> Result<Identity, TokenError> {
        self.verify_counting(token, now_ms).0
    }

    /// As [`Verifier::verify`], and how many signatures were looked at: at most
    /// [`crate::jws::TRIES_MAX`].
    pub fn verify_counting(&self, token: &str, now_ms: u64) -> (Result<Identity, TokenError>, u32) {
        let mut signatures = 0;
        let payload = self.payload(token, &mut signatures);
        let identity = payload.and_then(|payload| {
            let claims = Claims::parse(&payload)?;
            if !self.any_user_id && !is_plain_user_id(&claims.user) {
                return Err(TokenError::Claims);
            }
            self.check(&claims, now_ms)?;
            Ok(Identity {
                user: claims.user.clone(),
                grant: Arc::new(claims.into_grant(self.leeway_ms)),
            })
        });
        (identity, signatures)
    }

    /// The claims of the token, if one of our keys signed it.
    fn payload(&self, token: &str, signatures: &mut u32) -> Result<Vec<u8>, TokenError> {
        let signed = Signed::parse(token).map_err(|_| TokenError::Malformed)?;
        let algorithm = signed
            .algorithm
            .filter(|claimed| self.algorithms.contains(claimed))
            .ok_or(TokenError::Algorithm)?;
        let candidates = self.keys.choose(algorithm, signed.kid.as_deref());
        for key in &candidates.keys {
            *signatures += 1;
            if let Some(payload) = signed.payload(key, algorithm) {
                return Ok(payload);
            }
        }
        // A key without a name cannot be told from another: it may be new.
        let may_be_new = self.keys_are_fetched && !candidates.named;
        Err(if candidates.keys.is_empty() || may_be_new {
            TokenError::UnknownKey
        } else {
            TokenError::Signature
        })
    }

    fn check(&self, claims: &Claims, now_ms: u64) -> Result<(), TokenError> {
        if self.issuer.is_some() && self.issuer != claims.issuer {
            return Err(TokenError::Issuer);
        }
        if !self.audience.is_empty() && !claims.audience.iter().any(|named| self.audience.contains(named)) {
            return Err(TokenError::Audience);
        }
        if claims
            .not_before_ms
            .is_some_and(|begins| now_ms.saturating_add(self.leeway_ms) < begins)
        {
            return Err(TokenError::NotYetValid);
        }
        // The last check: a client that gets this error comes again with a new token, which must
        // then be good.
        match claims.expires_ms {
            Some(expires) if now_ms >= expires.saturating_add(self.leeway_ms) => return Err(TokenError::Expired),
            None if self.require_exp => return Err(TokenError::NoExpiry),
            _ => {}
        }
        Ok(())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
