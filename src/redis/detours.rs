//! Keeps the order of operations on one slot while the slot changes its server. Pure.
//!
//! When a server redirects a slot, older operations on that slot may still be on their way to it,
//! and newer ones are being made. If each were repeated as it comes back, a newer one could reach
//! the new server first. An older number of connections would then overwrite it. So from the first
//! redirect on, all operations on that slot wait here until none of them is under way. Then they go
//! on in the order in which they were made.

use std::collections::{BTreeMap, VecDeque};

use super::gather::Item;
use super::topology::SLOTS;

/// Operations under way and waiting, by slot.
#[derive(Debug)]
pub(super) struct Detours {
    under_way: Vec<u32>,
    waiting: BTreeMap<u16, Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Came back, in order; older than all the rest.
    back: VecDeque<Item>,
    /// Were not sent yet.
    new: VecDeque<Item>,
}

impl Detours {
    pub(super) fn new() -> Detours {
        Detours {
            under_way: vec![0; usize::from(SLOTS)],
            waiting: BTreeMap::new(),
        }
    }

    /// Before an item is sent: gives it back to be sent now, or keeps it.
    pub(super) fn set_out(&mut self, item: Item) -> Option<Item> {
        if let Some(waiting) = self.waiting.get_mut(&item.slot) {
            waiting.new.push_back(item);
            return None;
        }
        self.under_way[usize::from(item.slot)] += 1;
        Some(item)
    }

    /// An item has to be sent again; it still counts as under way until [`Detours::arrived`].
    pub(super) fn turn_back(&mut self, item: Item) {
        self.waiting.entry(item.slot).or_default().back.push_back(item);
    }

    /// An item on this slot is through with its server, whatever came of it. Gives what is to be
    /// sent now.
    pub(super) fn arrived(&mut self, slot: u16) -> Vec<Item> {
        let under_way = &mut self.under_way[usize::from(slot)];
        *under_way = under_way.saturating_sub(1);
        if *under_way > 0 {
            return Vec::new();
        }
        let Some(waiting) = self.waiting.remove(&slot) else {
            return Vec::new();
        };
        waiting.back.into_iter().chain(waiting.new).collect()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;
    use tokio::time::Instant;

    use super::super::gather::items;
    use super::*;
    use crate::cluster::store::{Op, Request};

    #[test]
    fn what_turned_back_goes_before_what_is_newer_and_waits_for_what_is_under_way() {
        let (signals, _receiver) = unbounded_channel();
        let ops = (0..4)
            .map(|n| Op::Locate {
                user: n.to_string().into(),
            })
            .collect();
        let made = items(Request { ticket: 1, ops }, Instant::now(), &signals);
        let names = |items: &[Item]| items.iter().map(|item| format!("{:?}", item.step)).collect::<Vec<_>>();
        let expected = names(&made);
        let mut detours = Detours::new();
        let mut made = made.into_iter();
        let first = detours.set_out(made.next().unwrap()).unwrap();
        let second = detours.set_out(made.next().unwrap()).unwrap();
        detours.turn_back(first);
        assert!(detours.arrived(0).is_empty(), "the second is under way");
        assert!(detours.set_out(made.next().unwrap()).is_none());
        detours.turn_back(second);
        let sent = detours.arrived(0);
        assert_eq!(names(&sent), expected[..3]);
        assert!(
            detours.set_out(made.next().unwrap()).is_some(),
            "and then it is open again"
        );
    }
}
