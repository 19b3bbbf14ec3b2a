//! Names to addresses, by the resolver of the host.

use std::net::{SocketAddr, ToSocketAddrs};

/// The first address of `host`, which may have a port.
///
/// # Errors
/// It is none, or has none.
pub(crate) fn resolve(host: &str, default_port: u16) -> Result<SocketAddr, String> {
    let with_port = if host.rsplit(']').next().is_some_and(|tail| tail.contains(':')) {
        host.to_owned()
    } else {
        format!("{host}:{default_port}")
    };
    with_port
        .to_socket_addrs()
        .map_err(|error| format!("cannot resolve {host}: {error}"))?
        .next()
        .ok_or_else(|| format!("{host} has no address"))
}
