//! The gateways of the cluster: who lives, who is gone, and how sure that is.
//!
//! Pure. A gateway gets a [`PeerId`] when it is first heard of, which names it for shards and is
//! never used again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::store::{Incarnation, LeaseState, Registered};
use crate::router::locations::PeerId;

/// The directory is not read more often than this, however many packets give a reason to.
const REST_MS: u64 = 20;
/// A gateway that nobody listens for is taken for dead after this time, although its lease still
/// lasts: it has had the time to subscribe again. Until then messages for it have `failed`,
/// afterwards their receivers are `offline`.
const DEAF_MS: u64 = 5_000;
/// After Redis came back, gateways that were there before may take this long to come back, too;
/// until then a user who is not found may be on one of them.
const RETURN_MS: u64 = 5_000;

/// Gateways that may be heard of without being in the directory: more than begin at once. Anybody
/// who can publish can make some up.
const HEARD_OF_MAX: usize = 1_024;

/// One other gateway.
#[derive(Debug)]
struct Gateway {
    id: Arc<str>,
    incarnation: Incarnation,
    /// As its lease says; `None` while it was heard of, but not seen in the directory yet.
    state: Option<LeaseState>,
    deaf_since_ms: Option<u64>,
    /// As its lease last said.
    renewals: u64,
    /// It reads packets with bodies, as its lease says.
    reads_bodies: bool,
    /// Seen without a lease by the last reading.
    lapsed: bool,
}

/// What a reading of the directory changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Gateways that are gone, and were there before.
    pub gone: Vec<PeerId>,
    /// The same ones.
    pub gone_incarnations: Vec<Incarnation>,
    /// A gateway's users count no more, or count for the first time: nothing learned before holds.
    pub changed: bool,
    /// Dead gateways whose presence is to be swept.
    pub to_sweep: Vec<Incarnation>,
}

/// All other gateways. Owned by the control thread.
#[derive(Debug, Default)]
pub struct Directory {
    gateways: BTreeMap<PeerId, Gateway>,
    index: BTreeMap<Incarnation, PeerId>,
    /// Gateways that no reading of the directory had yet.
    heard_of: usize,
    peers: u32,
    /// Ids of gateways that were there before Redis went away and have not been seen since, and
    /// until when they may come.
    missing: Vec<Arc<str>>,
    missing_until_ms: u64,
    /// Incarnations that had no lease when the directory was last read.
    lapsed: Vec<Incarnation>,
    /// When it is to be read, and not before that.
    due_ms: u64,
    rest_ms: u64,
    /// It is being read.
    asked: bool,
    was_read: bool,
}

impl Directory {
    /// Reads the directory as soon as may be.
    pub fn look_soon(&mut self) {
        self.due_ms = 0;
    }

    /// Reads the directory no later than at this time.
    pub fn look_by(&mut self, at_ms: u64) {
        self.due_ms = self.due_ms.min(at_ms);
    }

    /// The store can be asked again: what was asked before is not answered.
    pub fn restart(&mut self) {
        self.due_ms = 0;
        self.asked = false;
    }

    /// True if the directory is to be read now. It will be read again `every_ms` later.
    pub fn poll_read(&mut self, now_ms: u64, every_ms: u64) -> bool {
        if self.poll_timeout().is_none_or(|due_ms| now_ms < due_ms) {
            return false;
        }
        self.asked = true;
        self.rest_ms = now_ms + REST_MS;
        self.due_ms = now_ms + every_ms;
        true
    }

    /// When it is to be read without anything happening before.
    pub fn poll_timeout(&self) -> Option<u64> {
        (!self.asked).then_some(self.due_ms.max(self.rest_ms))
    }

    /// The directory could not be read.
    pub fn handle_unread(&mut self) {
        self.asked = false;
    }

    /// True once it is known who the others are.
    pub fn was_read(&self) -> bool {
        self.was_read
    }

    /// The gateway of this name; a new one is entered as heard of. `None` if too many are, that
    /// nobody has seen in the directory.
    pub fn hear_of(&mut self, id: &str, incarnation: Incarnation) -> Option<PeerId> {
        if let Some(peer) = self.find(incarnation) {
            return Some(peer);
        }
        if self.heard_of >= HEARD_OF_MAX {
            return None;
        }
        Some(self.enter(id, incarnation))
    }

    fn enter(&mut self, id: &str, incarnation: Incarnation) -> PeerId {
        let peer = PeerId(self.peers);
        self.peers += 1;
        self.gateways.insert(
            peer,
            Gateway {
                id: id.into(),
                incarnation,
                state: None,
                deaf_since_ms: None,
                renewals: 0,
                reads_bodies: false,
                lapsed: false,
            },
        );
        self.index.insert(incarnation, peer);
        self.heard_of += 1;
        peer
    }

    /// The gateway of this incarnation, if it was heard of.
    pub fn find(&self, incarnation: Incarnation) -> Option<PeerId> {
        self.index.get(&incarnation).copied()
    }

    /// True if this gateway was heard of, or seen to be dead: no new reading tells more.
    pub fn is_known(&self, incarnation: Incarnation) -> bool {
        self.find(incarnation).is_some() || self.lapsed.contains(&incarnation)
    }

    /// The name of a gateway.
    pub fn name(&self, peer: PeerId) -> Option<(Arc<str>, Incarnation)> {
        let gateway = self.gateways.get(&peer)?;
        Some((Arc::clone(&gateway.id), gateway.incarnation))
    }

    /// The gateway, if its users count: it has a lease and does not drain.
    pub fn counts(&self, incarnation: Incarnation) -> Option<PeerId> {
        let peer = self.find(incarnation)?;
        let state = self.gateways.get(&peer)?.state;
        matches!(state, Some(LeaseState::Syncing | LeaseState::Synced)).then_some(peer)
    }

    /// Gateways that something is known of.
    pub fn known(&self) -> usize {
        self.gateways.len()
    }

    /// Gateways with a lease.
    pub fn len(&self) -> usize {
        self.gateways.values().filter(|gateway| gateway.state.is_some()).count()
    }

    /// True if this gateway reads packets with bodies. One that was only heard of may be an older
    /// one.
    pub fn reads_bodies(&self, peer: PeerId) -> bool {
        self.gateways.get(&peer).is_some_and(|gateway| gateway.reads_bodies)
    }

    /// True if every other gateway reads packets with bodies, as far as is known.
    pub fn all_read_bodies(&self, now_ms: u64) -> bool {
        let all_are_here = self.missing.is_empty() || now_ms >= self.missing_until_ms;
        self.was_read && all_are_here && self.gateways.values().all(|gateway| gateway.reads_bodies)
    }

    /// True if there is no other gateway.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Somebody took what was said to this gateway.
    pub fn heard(&mut self, peer: PeerId) {
        if let Some(gateway) = self.gateways.get_mut(&peer) {
            gateway.deaf_since_ms = None;
        }
    }

    /// Nobody took what was said to this gateway. Returns true if that has gone on for so long that
    /// it must be dead.
    pub fn deaf(&mut self, peer: PeerId, now_ms: u64) -> bool {
        let Some(gateway) = self.gateways.get_mut(&peer) else {
            return true;
        };
        let since = *gateway.deaf_since_ms.get_or_insert(now_ms);
        now_ms.saturating_sub(since) >= DEAF_MS
    }

    /// Redis came back, perhaps with nothing in it: who was there before is missing until seen
    /// again.
    pub fn redis_returned(&mut self, now_ms: u64) {
        // Twice in a row: who has not come back since the first time is missed still.
        if now_ms >= self.missing_until_ms {
            self.missing.clear();
        }
        let live = self
            .gateways
            .values()
            .filter(|gateway| matches!(gateway.state, Some(LeaseState::Syncing | LeaseState::Synced)));
        self.missing.extend(live.map(|gateway| Arc::clone(&gateway.id)));
        self.missing.sort_unstable();
        self.missing.dedup();
        self.missing_until_ms = now_ms + RETURN_MS;
        self.lapsed.clear();
    }

    /// True if a user who is found nowhere is nowhere.
    pub fn is_complete(&self, now_ms: u64) -> bool {
        let syncing = self
            .gateways
            .values()
            .any(|gateway| gateway.state == Some(LeaseState::Syncing));
        !syncing && (self.missing.is_empty() || now_ms >= self.missing_until_ms)
    }

    /// Takes in what the directory says. `me` is left out.
    pub fn read(&mut self, registered: &[Registered], me: Incarnation) -> Changes {
        self.asked = false;
        self.was_read = true;
        let mut changes = Changes::default();
        let mut seen = BTreeSet::new();
        let mut lapsed = Vec::new();
        for line in registered.iter().filter(|line| line.incarnation != me) {
            let lease = line.lease.filter(|lease| lease.incarnation == line.incarnation);
            let Some(lease) = lease else {
                // Twice without a lease: one reading may fall between the writing of lease and
                // directory.
                if self.lapsed.contains(&line.incarnation) {
                    changes.to_sweep.push(line.incarnation);
                }
                lapsed.push(line.incarnation);
                continue;
            };
            let known = self.find(line.incarnation);
            let peer = known.unwrap_or_else(|| self.enter(&line.id, line.incarnation));
            seen.insert(peer);
            self.missing.retain(|id| *id != line.id);
            if let Some(gateway) = self.gateways.get_mut(&peer) {
                gateway.lapsed = false;
                // Whoever renews lives, and hears again by now.
                if lease.renewals > gateway.renewals {
                    gateway.deaf_since_ms = None;
                }
                gateway.renewals = lease.renewals;
                gateway.reads_bodies = lease.reads_bodies;
                let counted = matches!(gateway.state, Some(LeaseState::Syncing | LeaseState::Synced));
                let counts = lease.state != LeaseState::Leaving;
                changes.changed |= counted != counts;
                gateway.state = Some(lease.state);
            }
        }
        self.lapsed = lapsed;
        let mut gone = Vec::new();
        let index = &mut self.index;
        self.gateways.retain(|peer, gateway| {
            let stays = seen.contains(peer) || (gateway.state.is_none() && !gateway.lapsed);
            // Heard of, but in no reading: the next one decides.
            gateway.lapsed = true;
            if !stays {
                gone.push(*peer);
                index.remove(&gateway.incarnation);
                changes.gone_incarnations.push(gateway.incarnation);
            }
            stays
        });
        self.heard_of = self.gateways.len() - self.len();
        changes.changed |= !gone.is_empty();
        changes.gone = gone;
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::Lease;
    use super::*;

    const ME: Incarnation = Incarnation(1);

    fn line(id: &str, incarnation: u64, state: Option<LeaseState>) -> Registered {
        Registered {
            id: id.into(),
            incarnation: Incarnation(incarnation),
            lease: state.map(|state| Lease {
                incarnation: Incarnation(incarnation),
                state,
                renewals: 0,
                partitions: 64,
                keyed: false,
                reads_bodies: true,
            }),
        }
    }

    #[test]
    fn gateways_come_drain_and_die() {
        let mut directory = Directory::default();
        let synced = Some(LeaseState::Synced);
        let changes = directory.read(&[line("me", 1, synced), line("b", 2, synced)], ME);
        assert!(changes.changed && changes.gone.is_empty());
        let b = directory.counts(Incarnation(2)).unwrap();
        assert_eq!(directory.counts(ME), None);
        assert_eq!(directory.len(), 1);

        let changes = directory.read(&[line("b", 2, Some(LeaseState::Leaving))], ME);
        assert!(changes.changed && changes.gone.is_empty());
        assert_eq!(directory.counts(Incarnation(2)), None);
        assert_eq!(directory.find(Incarnation(2)), Some(b));

        let changes = directory.read(&[line("b", 2, None)], ME);
        assert_eq!((changes.gone, changes.to_sweep), (vec![b], vec![]));
        let changes = directory.read(&[line("b", 2, None)], ME);
        assert_eq!(changes.to_sweep, [Incarnation(2)]);
        assert!(!changes.changed);
    }

    #[test]
    fn one_that_was_heard_of_before_it_was_seen_stays_for_one_reading() {
        let mut directory = Directory::default();
        let peer = directory.hear_of("b", Incarnation(2)).unwrap();
        assert!(directory.read(&[], ME).gone.is_empty());
        assert_eq!(directory.read(&[], ME).gone, [peer]);
        assert_ne!(directory.hear_of("b", Incarnation(2)), Some(peer));
    }

    #[test]
    fn who_is_only_heard_of_is_bounded_and_who_has_a_lease_is_not() {
        let mut directory = Directory::default();
        let heard = (2..20_000).filter(|n| directory.hear_of("x", Incarnation(*n)).is_some());
        assert_eq!(heard.count(), HEARD_OF_MAX);
        let real: Vec<_> = (0..2_000)
            .map(|n| line("r", 1_000_000 + n, Some(LeaseState::Synced)))
            .collect();
        directory.read(&real, ME);
        assert_eq!(directory.len(), 2_000);
        assert_eq!(directory.read(&real, ME).gone.len(), HEARD_OF_MAX);
        assert!(directory.hear_of("x", Incarnation(5)).is_some());
        assert_eq!(directory.index.len(), directory.gateways.len());
    }

    #[test]
    fn nobody_is_offline_while_somebody_may_come_back() {
        let mut directory = Directory::default();
        let synced = Some(LeaseState::Synced);
        directory.read(&[line("b", 2, synced), line("c", 3, synced)], ME);
        assert!(directory.is_complete(0));
        directory.redis_returned(1_000);
        directory.read(&[line("b", 4, Some(LeaseState::Syncing))], ME);
        assert!(!directory.is_complete(1_500));
        directory.read(&[line("b", 4, synced)], ME);
        assert!(!directory.is_complete(1_600));
        assert!(directory.is_complete(1_000 + RETURN_MS));
        directory.read(&[line("b", 4, synced), line("c", 5, synced)], ME);
        assert!(directory.is_complete(1_700));
    }

    /// A cluster is updated gateway by gateway: a packet has bodies when all its receivers read them.
    #[test]
    fn packets_have_bodies_once_every_receiver_reads_them() {
        let synced = Some(LeaseState::Synced);
        let mut older = line("c", 3, synced);
        older.lease.as_mut().unwrap().reads_bodies = false;
        let mut directory = Directory::default();
        assert!(!directory.all_read_bodies(0), "nothing was read yet");
        directory.read(&[line("me", 1, synced), line("b", 2, synced), older], ME);
        let [b, c] = [2, 3].map(|n| directory.find(Incarnation(n)).unwrap());
        assert!(directory.reads_bodies(b) && !directory.reads_bodies(c));
        assert!(!directory.all_read_bodies(0), "one is older");
        directory.read(&[line("b", 2, synced), line("c", 4, synced)], ME);
        directory.read(&[line("b", 2, synced), line("c", 4, synced)], ME);
        assert!(directory.all_read_bodies(0), "it was updated");
        let heard_of = directory.hear_of("d", Incarnation(5)).unwrap();
        assert!(!directory.reads_bodies(heard_of) && !directory.all_read_bodies(0));
        directory.redis_returned(1_000);
        directory.read(&[line("b", 2, synced)], ME);
        assert!(
            !directory.all_read_bodies(1_500),
            "one may come back, perhaps as it was before"
        );
    }

    #[test]
    fn the_deaf_are_dead_after_a_while() {
        let mut directory = Directory::default();
        let peer = directory.hear_of("b", Incarnation(2)).unwrap();
        assert!(!directory.deaf(peer, 100));
        assert!(!directory.deaf(peer, 100 + DEAF_MS - 1));
        assert!(directory.deaf(peer, 100 + DEAF_MS));
        directory.heard(peer);
        assert!(!directory.deaf(peer, 100 + DEAF_MS));
    }
}
