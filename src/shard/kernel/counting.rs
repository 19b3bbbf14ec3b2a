//! Which limit counts a socket, and where it comes from.

use core::net::SocketAddr;

use super::Kernel;
use super::tally::STALE_MAX;
use crate::engine::SocketKey;
use crate::session::Tally;

impl Kernel {
    /// Where a connection comes from: the client, as far as proxies that we believe name it. The
    /// port is 0 where only the address is known.
    pub(crate) fn remote_addr(&self, slot: u32) -> Option<SocketAddr> {
        self.addresses.get(slot)
    }

    /// The handshake is over: the user is known, or nobody is to be.
    pub(in crate::shard) fn settle_address(&mut self, slot: u32) {
        self.addresses.settle(slot);
    }

    /// The slot is free.
    pub(in crate::shard) fn forget_address(&mut self, slot: u32) {
        self.addresses.forget(slot);
    }

    /// From now on the socket is counted like this: the only function that writes a tally. The
    /// caller takes and gives back permits of the gateway, as a connection on its way between
    /// shards keeps its permit.
    pub(in crate::shard) fn count_as(&mut self, slot: u32, tally: Tally) {
        let key = self.key(slot);
        let before = std::mem::replace(&mut self.conn(slot).tally, tally);
        if !before.is_connection() && tally.is_connection() {
            self.conn(slot).id = self.ids.next(self.now.wall_ms);
        }
        let connections = &self.metrics().connections;
        let others = connections.get() - u64::from(before.is_connection());
        connections.set(others + u64::from(tally.is_connection()));
        self.pending.count -= usize::from(before.is_pending());
        self.pending.count += usize::from(tally.is_pending());
        let enters = matches!(
            (before, tally),
            (Tally::Nobody, Tally::Pending) | (Tally::Permit | Tally::PreAuth, Tally::Ended)
        );
        if enters {
            self.pending.push(key, tally);
            self.forget_stale();
        }
    }

    /// Keys of sockets that are counted otherwise by now cost memory: they are dropped before they
    /// are many.
    fn forget_stale(&mut self) {
        if self.pending.came.len() + self.pending.ended.len() <= 2 * self.pending.count + STALE_MAX {
            return;
        }
        let connections = &self.connections;
        let is_in = |key: SocketKey, ended: bool| {
            let conn = &connections[key.slot as usize];
            conn.generation == key.generation && conn.tally.is_pending() && (conn.tally == Tally::Ended) == ended
        };
        self.pending.came.retain(|(_, key)| is_in(*key, false));
        self.pending.ended.retain(|(_, key)| is_in(*key, true));
    }
}
