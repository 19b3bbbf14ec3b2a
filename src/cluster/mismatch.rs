//! Other gateways that are configured in a way that does not fit this one's.
//!
//! Pure; owned by the control thread.

use std::sync::Arc;

use super::store::Registered;

/// Gateways that do not fit. Owned by the control thread.
#[derive(Debug)]
pub(super) struct Mismatch {
    /// Into how many partitions this gateway divides channels.
    partitions: u16,
    /// This gateway has a `cluster.key`.
    keyed: bool,
    /// One that divides channels into another number of partitions.
    odd_partitions: Option<(Arc<str>, u16)>,
    /// One that has a key where this one has none, or none where this one has one.
    odd_key: Option<Arc<str>>,
}

impl Mismatch {
    pub(super) fn new(partitions: u16) -> Self {
        Mismatch {
            partitions,
            keyed: false,
            odd_partitions: None,
            odd_key: None,
        }
    }

    /// This gateway has a `cluster.key`, or has none.
    pub(super) fn set_keyed(&mut self, keyed: bool) {
        self.keyed = keyed;
    }

    /// Another gateway that divides channels into another number of partitions, and that number.
    pub(super) fn odd_partitions(&self) -> Option<&(Arc<str>, u16)> {
        self.odd_partitions.as_ref()
    }

    /// Looks at a reading of the directory. `serves`: this gateway has its shards.
    pub(super) fn look(&mut self, registered: &[Registered], serves: bool) {
        self.look_at_partitions(registered, serves);
        self.look_at_keys(registered);
    }

    /// All gateways must agree on the number of partitions. At the start this one gives way; later,
    /// when two have begun at the same instant, nothing is left but to say so.
    fn look_at_partitions(&mut self, registered: &[Registered], serves: bool) {
        let ours = self.partitions;
        let odd = registered.iter().find_map(|line| {
            let lease = line.lease.filter(|lease| lease.incarnation == line.incarnation)?;
            (lease.partitions != 0 && lease.partitions != ours).then(|| (Arc::clone(&line.id), lease.partitions))
        });
        if let Some((id, theirs)) = odd.as_ref().filter(|_| self.odd_partitions != odd && serves) {
            log::error!(
                "gateway {id} has channels.partitions = {theirs}, this one {ours}: they do not hear each other's publications; give all the same number"
            );
        }
        self.odd_partitions = odd;
    }

    /// Gateways that have a key and gateways that have none refuse each other's packets.
    fn look_at_keys(&mut self, registered: &[Registered]) {
        let odd = registered.iter().find_map(|line| {
            let lease = line.lease.filter(|lease| lease.incarnation == line.incarnation)?;
            (lease.keyed != self.keyed).then(|| Arc::clone(&line.id))
        });
        if let Some(id) = odd.as_ref().filter(|_| self.odd_key != odd) {
            let (one, other) = if self.keyed {
                ("no", "has one")
            } else {
                ("a", "has none")
            };
            log::error!(
                "gateway {id} has {one} cluster.key and this one {other}: they refuse each other's packets, and messages between \
                 them fail; give all gateways the same key"
            );
        }
        self.odd_key = odd;
    }
}
