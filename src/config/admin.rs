//! Who may administer the gateway, and where.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::Secret;

/// What a path of a Unix socket begins with.
const UNIX: &str = "unix:";
/// A token that is shorter is guessed sooner or later, as nobody counts the attempts.
pub(super) const TOKEN_BYTES_MIN: usize = 16;

/// True if a client can show it, in a header field, and nobody guesses it.
pub(super) fn is_good_token(token: &str) -> bool {
    token.len() >= TOKEN_BYTES_MIN && token.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The admin API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminConfig {
    /// Bearer token; `None`: there is no admin API.
    pub token: Option<Secret>,
    /// Where it is served; `None`: on the public listener.
    pub listen: Option<AdminListen>,
}

/// Where administrators are listened to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminListen {
    /// Here; port 0 lets the kernel choose.
    Tcp(SocketAddr),
    /// On a Unix socket at this path.
    Unix(PathBuf),
}

impl AdminListen {
    /// Reads `127.0.0.1:9090` or `unix:/run/shardgate.sock`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix(UNIX) {
            // A zero byte ends a path for the kernel.
            Some(path) if path.is_empty() || path.contains('\0') => None,
            Some(path) => Some(AdminListen::Unix(path.into())),
            None => text.parse().ok().map(AdminListen::Tcp),
        }
    }
}

impl fmt::Display for AdminListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AdminListen::Tcp(addr) => addr.fmt(f),
            AdminListen::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}
