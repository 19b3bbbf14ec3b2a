//! What a shard knows of the other gateways.

use crate::router::locations::Locations;

/// What a shard of a cluster knows of the other gateways.
#[derive(Debug, Default)]
pub(in crate::shard) struct Peers {
    /// Where users of this shard are besides.
    pub(in crate::shard) locations: Locations,
    /// A change of presence did not fit into the lane.
    pub(super) presence_lost: bool,
}
