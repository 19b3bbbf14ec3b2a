//! The admin API's configuration: where it listens, and its secret.

use super::listen::Listen;
use super::secret::Secret;

/// A shorter token is guessed sooner or later, as attempts are not counted.
pub(super) const TOKEN_BYTES_MIN: usize = 16;

/// True if a client can send it in a header field, and it cannot be guessed.
pub(super) fn is_good_token(token: &str) -> bool {
    token.len() >= TOKEN_BYTES_MIN && token.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The admin API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminConfig {
    /// Bearer token; `None`: there is no admin API.
    pub token: Option<Secret>,
    /// Where it is served; `None`: on the public listener.
    pub listen: Option<Listen>,
}
