//! The claims of a token whose signature is verified.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Grant, Rights, TokenError};
use crate::config::patterns::Patterns;
use crate::ids::is_valid_user_id;
use crate::jws::Members;

/// The most patterns of one claim. They are gone through for each `subscribe` and `publish` that
/// the configuration alone does not permit, and for each `message` and each name in `presence`.
const PATTERNS_MAX: usize = 64;

/// The claims that matter here.
pub(super) struct Claims {
    pub(super) user: String,
    pub(super) issuer: Option<String>,
    pub(super) audience: Vec<String>,
    /// Unix milliseconds.
    pub(super) expires_ms: Option<u64>,
    /// Unix milliseconds.
    pub(super) not_before_ms: Option<u64>,
    connections: Option<u32>,
    rights: Option<Box<Rights>>,
}

impl Claims {
    /// Reads the payload of a verified token.
    ///
    /// # Errors
    /// [`TokenError::Claims`]: it is no object, has a claim twice, or one that we read is of
    /// another type: a limit that cannot be read must not become no limit.
    pub(super) fn parse(payload: &[u8]) -> Result<Claims, TokenError> {
        let members = Members::parse(payload).map_err(|_| TokenError::Claims)?;
        let user = claim::<String>(&members, "sub")?.filter(|user| is_valid_user_id(user));
        let connections = claim::<u32>(&members, "connections")?;
        if connections == Some(0) {
            // In the configuration 0 means no limit; here it would permit nothing. The author of a
            // 0 meant one of the two, so it is refused.
            return Err(TokenError::Claims);
        }
        let rights = Rights {
            subscribe: patterns(&members, "sub_channels")?.unwrap_or_default(),
            publish: patterns(&members, "pub_channels")?.unwrap_or_default(),
            write_to: patterns(&members, "write_to")?,
            see: patterns(&members, "see")?,
        };
        Ok(Claims {
            user: user.ok_or(TokenError::Claims)?,
            issuer: claim(&members, "iss")?,
            audience: claim::<OneOrMore>(&members, "aud")?.map_or_else(Vec::new, OneOrMore::into_list),
            expires_ms: time(&members, "exp")?,
            not_before_ms: time(&members, "nbf")?,
            connections,
            rights: (rights != Rights::default()).then(|| Box::new(rights)),
        })
    }

    /// The part of it that a connection keeps.
    pub(super) fn into_grant(self, leeway_ms: u64) -> Grant {
        Grant {
            expires_at_ms: self
                .expires_ms
                .map_or(Grant::FOR_EVER, |expires| expires.saturating_add(leeway_ms)),
            connections: self.connections,
            rights: self.rights,
        }
    }
}

/// A claim that is there must be what it should be.
fn claim<T: DeserializeOwned>(members: &Members<'_>, name: &str) -> Result<Option<T>, TokenError> {
    members.get(name).map_err(|_| TokenError::Claims)
}

/// Seconds since 1970, perhaps with a fraction (RFC 7519, section 2), as milliseconds.
fn time(members: &Members<'_>, name: &str) -> Result<Option<u64>, TokenError> {
    let seconds = claim::<f64>(members, name)?;
    // Before 1970 is 1970, and what is too far to be counted is the end of time.
    Ok(seconds.map(|seconds| (seconds * 1000.0) as u64))
}

/// A text that is no pattern permits nothing. The other patterns of its list keep their meaning.
fn patterns(members: &Members<'_>, name: &str) -> Result<Option<Patterns>, TokenError> {
    let Some(texts) = claim::<Vec<String>>(members, name)? else {
        return Ok(None);
    };
    if texts.len() > PATTERNS_MAX {
        return Err(TokenError::Claims);
    }
    let is_pattern = |text: &String| Patterns::parse(std::slice::from_ref(text)).is_ok();
    let good: Vec<String> = texts.into_iter().filter(is_pattern).collect();
    Patterns::parse(&good).map(Some).map_err(|_| TokenError::Claims)
}

/// `aud` is a string or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn into_list(self) -> Vec<String> {
        match self {
            OneOrMore::One(one) => vec![one],
            OneOrMore::More(more) => more,
        }
    }
}
