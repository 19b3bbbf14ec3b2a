//! The address of a client, as far as it can be believed, and the limits of one address.
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
//! A proxy is believed as far as the chain reaches. If the connecting peer is a proxy, its PROXY
//! header names the address that connected to it. If that address is a proxy too, its
//! `X-Forwarded-For` names the next, and so on. The first address that is no proxy is the client,
//! and its own claims about itself do not count.

pub mod forwarded;
pub mod limits;
pub mod local;
pub mod networks;
pub mod proxy;
