//! Where a listener listens.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Prefix of a Unix socket's path.
const UNIX: &str = "unix:";
/// Longest name of a host (RFC 1035), bytes.
const NAME_BYTES_MAX: usize = 253;

/// Where a listener listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// Here; port 0 lets the kernel choose.
    Tcp(SocketAddr),
    /// Where this name points when the gateway starts.
    Name(String, u16),
    /// On a Unix socket at this path.
    Unix(PathBuf),
}

impl Listen {
    /// Reads `127.0.0.1:8080`, `localhost:8080` or `unix:/run/shardgate.sock`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix(UNIX) {
            // A zero byte ends a path for the kernel.
            let is_path = !path.is_empty() && !path.contains('\0');
            return is_path.then(|| Listen::Unix(path.into()));
        }
        if let Ok(address) = text.parse() {
            return Some(Listen::Tcp(address));
        }
        let (name, port) = text.rsplit_once(':')?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        // Without a letter it is a mistyped address.
        let is_name = name.chars().all(is_plain) && name.contains(|c: char| c.is_ascii_alphabetic());
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        (is_name && digits && name.len() <= NAME_BYTES_MAX)
            .then(|| port.parse().ok().map(|port| Listen::Name(name.to_owned(), port)))?
    }

    /// True if only this host can connect. Of names, only those that RFC 6761 reserves for that
    /// count; the address behind a name is checked when it is resolved.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Listen::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Listen::Name(name, _) => {
                let name = name.trim_end_matches('.').to_ascii_lowercase();
                name == "localhost" || name.ends_with(".localhost")
            }
            Listen::Unix(_) => true,
        }
    }

    /// True if two sockets with this text would have the same address.
    #[must_use]
    pub fn is_one_address(&self) -> bool {
        match self {
            Listen::Tcp(address) => address.port() != 0,
            Listen::Name(_, port) => *port != 0,
            Listen::Unix(_) => true,
        }
    }
}

impl From<SocketAddr> for Listen {
    fn from(address: SocketAddr) -> Self {
        Listen::Tcp(address)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => address.fmt(f),
            Listen::Name(name, port) => write!(f, "{name}:{port}"),
            Listen::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}
