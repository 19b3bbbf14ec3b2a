//! Where clients are, as far as that can be believed, and how much one address may ask for.
//!
//! Pure. `core::net` has addresses only, no sockets.
//!
//! | file | duty |
//! | --- | --- |
//! | [`networks`] | lists of addresses and networks, as `proxies` has them |
//! | [`proxy`] | the PROXY protocol's header, version 2 |
//! | [`forwarded`] | `X-Forwarded-For` |
//! | [`local`] | names of this machine |
//! | [`limits`] | open handshakes and connects of each address |
//!
//! A proxy is believed as far as the chain reaches: whoever connects, if it is a proxy, says by the PROXY header who connected to
//! it; that one, if it is a proxy too, says by `X-Forwarded-For` who connected to it, and so on. The first that is no proxy is the
//! client, and nothing that it says about itself counts.

pub mod forwarded;
pub mod limits;
pub mod local;
pub mod networks;
pub mod proxy;
