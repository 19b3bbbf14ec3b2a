//! TLS below HTTP and WebSocket: the state of one connection, and the files that it is made of.
//!
//! rustls works on bytes in memory and knows no socket, so it fits between engine and session. A
//! [`Tls`] is owned by the one shard that its connection is on, and travels with the socket to the
//! home shard. [`Certificates`] is owned by the control thread. The `ServerConfig` that it makes is
//! shared by all shards, with the keys of session tickets.
//!
//! | file | duty |
//! | --- | --- |
//! | `connection` | [`Tls`]: records in, plain bytes out, and the other way round |
//! | `certificates` | [`Certificates`]: PEM files to a `ServerConfig`, and again when they change |

mod certificates;
mod connection;

pub use certificates::{Certificates, CertificatesError};
pub use connection::{Tls, TlsError};
pub use rustls::ServerConfig;

/// True if the first bytes of a connection are a TLS handshake record.
pub fn looks_like_tls(first: &[u8]) -> bool {
    matches!(first, [0x16, 0x03, ..])
}

/// True if the first bytes of a connection are an HTTP request: methods are capital letters, and no
/// TLS record begins with one.
pub fn looks_like_http(first: &[u8]) -> bool {
    first.first().is_some_and(u8::is_ascii_uppercase)
}
