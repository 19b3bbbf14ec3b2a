//! What goes to other gateways: one open packet per gateway, packets that wait to be confirmed,
//! senders who want to hear.
//!
//! Pure; owned by the control thread. Everything for one gateway in one turn is one packet. While
//! `PACKETS_UNDER_WAY` packets have not been answered by Redis, what comes is gathered in the next
//! one: so packets grow with load, and a message costs fewer commands the more there are.
//!
//! A message is `routed` when the other gateway said that a connection took it; `offline` when it
//! said that nobody did; `failed` when it could not be sent, or when nothing was heard in time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use uuid::Uuid;

use super::packet::{Confirm, Origin, PacketBuilder};
use super::verdict::{TooMuchWaits, Verdict};
use crate::engine::SocketKey;
use crate::ids::ShardId;
use crate::lanes::AckTo;
use crate::router::locations::PeerId;
use crate::wire::message::AckStatus;

/// Packets to one gateway that Redis has not answered yet; two keep the pipe full.
const PACKETS_UNDER_WAY: u8 = 2;
/// A packet that has reached this size is closed. Redis' default limit for a subscriber that lags
/// is 8 MiB for a minute.
const PACKET_BYTES_MAX: usize = 256 * 1024;
/// Messages in one packet; places are 16 bits.
const PACKET_MESSAGES_MAX: u16 = 8_192;
/// What may wait for one gateway; what does not fit has failed.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A packet that is not confirmed after this time has failed. A round trip takes a millisecond; a
/// gateway that stalls for longer than this is no help to its users either.
const CONFIRM_MS: u64 = 3_000;

/// Names an entry of [`Acks`].
type AckKey = u32;

/// A sender who wants to hear, and the gateways that have not said anything yet.
#[derive(Debug)]
struct Ack {
    shard: ShardId,
    conn: SocketKey,
    client_id: Box<str>,
    message_id: Uuid,
    waiting: u16,
    failed: bool,
    said: bool,
}

/// What one gateway says of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Taken,
    Missed,
    Failed,
}

#[derive(Debug, Default)]
struct Acks {
    slots: Vec<Option<Ack>>,
    free: Vec<AckKey>,
}

impl Acks {
    fn add(&mut self, ack: Ack) -> AckKey {
        match self.free.pop() {
            Some(key) => {
                self.slots[key as usize] = Some(ack);
                key
            }
            None => {
                self.slots.push(Some(ack));
                (self.slots.len() - 1) as AckKey
            }
        }
    }

    fn settle(&mut self, key: AckKey, fate: Fate, verdicts: &mut Vec<Verdict>) {
        let Some(ack) = self.slots.get_mut(key as usize).and_then(Option::as_mut) else {
            return;
        };
        ack.waiting -= 1;
        ack.failed |= fate == Fate::Failed;
        let last = ack.waiting == 0;
        let status = match fate {
            Fate::Taken => Some(AckStatus::Routed),
            _ if !last => None,
            _ if ack.failed => Some(AckStatus::Failed),
            _ => Some(AckStatus::Offline),
        };
        if let Some(status) = status.filter(|_| !ack.said) {
            ack.said = true;
            verdicts.push(Verdict {
                shard: ack.shard,
                conn: ack.conn,
                client_id: std::mem::take(&mut ack.client_id),
                message_id: ack.message_id,
                status,
            });
        }
        if last {
            self.slots[key as usize] = None;
            self.free.push(key);
        }
    }

    fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

/// A packet that is not under way yet.
#[derive(Debug, Default)]
struct Open {
    builder: PacketBuilder,
    wanting: Vec<(u16, AckKey)>,
}

/// A packet that is.
#[derive(Debug)]
struct Sent {
    sequence: u32,
    sent_ms: u64,
    /// Places of messages whose senders want to hear, rising.
    wanting: Vec<(u16, AckKey)>,
}

/// One other gateway.
#[derive(Debug, Default)]
struct Destination {
    closed: VecDeque<Open>,
    open: Open,
    waiting_bytes: usize,
    under_way: u8,
    sequence: u32,
    unconfirmed: VecDeque<Sent>,
}

impl Destination {
    /// True if a packet may go now.
    fn may_send(&self) -> bool {
        self.under_way < PACKETS_UNDER_WAY && (!self.closed.is_empty() || !self.open.builder.is_empty())
    }

    /// The packet that takes the next item; a full one is closed.
    fn room(&mut self) -> &mut Open {
        let open = &self.open.builder;
        if open.len() >= PACKET_BYTES_MAX || open.messages() >= PACKET_MESSAGES_MAX {
            self.closed.push_back(std::mem::take(&mut self.open));
        }
        &mut self.open
    }
}

fn destination(all: &mut BTreeMap<PeerId, Destination>, peer: PeerId, used: u32) -> &mut Destination {
    all.entry(peer).or_insert_with(|| Destination {
        sequence: used,
        ..Destination::default()
    })
}

/// A packet to be sent.
#[derive(Debug)]
pub struct Outgoing {
    /// Where to.
    pub peer: PeerId,
    /// Its number.
    pub sequence: u32,
    /// Messages in it.
    pub messages: u16,
    /// Its bytes, to be sealed.
    pub payload: Vec<u8>,
}

/// Everything on its way to other gateways.
#[derive(Debug, Default)]
pub struct Outbound {
    destinations: BTreeMap<PeerId, Destination>,
    /// Those that a packet may go to now.
    ready: BTreeSet<PeerId>,
    /// The highest number of a packet to a gateway that is gone. Should one come back whom we had
    /// taken for dead, it still knows the numbers of before, and takes none twice: all who are new
    /// begin here.
    used: u32,
    acks: Acks,
    verdicts: Vec<Verdict>,
}

impl Outbound {
    /// Adds a message for the gateways at `peers`, not empty. Returns how many of them could not
    /// take it, which counts as failed there.
    pub fn message(
        &mut self,
        origin: Origin<'_>,
        peers: &[PeerId],
        to: &str,
        body: &[u8],
        ack_to: Option<AckTo<'_>>,
    ) -> Result<(), TooMuchWaits> {
        let ack = ack_to.map(|ack_to| {
            self.acks.add(Ack {
                shard: ack_to.shard,
                conn: ack_to.conn,
                client_id: ack_to.client_id.into(),
                message_id: ack_to.message_id,
                waiting: peers.len() as u16,
                failed: false,
                said: false,
            })
        });
        let mut result = Ok(());
        for peer in peers {
            let destination = destination(&mut self.destinations, *peer, self.used);
            if destination.waiting_bytes >= WAITING_BYTES_MAX {
                result = Err(TooMuchWaits);
                if let Some(ack) = ack {
                    self.acks.settle(ack, Fate::Failed, &mut self.verdicts);
                }
                continue;
            }
            let open = destination.room();
            let before = open.builder.len();
            let place = open.builder.message(origin, to, body, ack.is_some());
            if let Some(ack) = ack {
                open.wanting.push((place, ack));
            }
            let grown = open.builder.len() - before;
            destination.waiting_bytes += grown;
            if destination.may_send() {
                self.ready.insert(*peer);
            }
        }
        result
    }

    /// A message that could not even be put into a packet.
    pub fn fail(&mut self, ack_to: Option<AckTo<'_>>) {
        self.verdicts
            .extend(ack_to.map(|ack_to| Verdict::new(ack_to, AckStatus::Failed)));
    }

    /// Adds what became of a packet of the gateway at `peer`.
    pub fn confirm(&mut self, origin: Origin<'_>, peer: PeerId, confirm: &Confirm) {
        let destination = destination(&mut self.destinations, peer, self.used);
        let open = destination.room();
        let before = open.builder.len();
        open.builder.confirm(origin, confirm);
        let grown = open.builder.len() - before;
        destination.waiting_bytes += grown;
        if destination.may_send() {
            self.ready.insert(peer);
        }
    }

    /// The next packet that may go.
    pub fn poll_packet(&mut self, now_ms: u64) -> Option<Outgoing> {
        let peer = *self.ready.first()?;
        let destination = self.destinations.get_mut(&peer)?;
        let open = destination
            .closed
            .pop_front()
            .unwrap_or_else(|| std::mem::take(&mut destination.open));
        destination.waiting_bytes -= open.builder.len();
        destination.under_way += 1;
        // 0 is for packets without a number.
        destination.sequence = destination.sequence.wrapping_add(1).max(1);
        let sequence = destination.sequence;
        if !destination.may_send() {
            self.ready.remove(&peer);
        }
        if !open.wanting.is_empty() {
            destination.unconfirmed.push_back(Sent {
                sequence,
                sent_ms: now_ms,
                wanting: open.wanting,
            });
        }
        Some(Outgoing {
            peer,
            sequence,
            messages: open.builder.messages(),
            payload: open.builder.close(sequence),
        })
    }

    /// Redis took a packet, or did not: then nobody will confirm it. `offline`: the gateway is
    /// dead, so are its connections.
    pub fn handle_published(&mut self, peer: PeerId, sequence: u32, result: Result<(), Lost>) {
        let Some(destination) = self.destinations.get_mut(&peer) else {
            return;
        };
        destination.under_way = destination.under_way.saturating_sub(1);
        if destination.may_send() {
            self.ready.insert(peer);
        }
        if let Err(lost) = result {
            let fate = match lost {
                Lost::Dead => Fate::Missed,
                Lost::Unknown => Fate::Failed,
            };
            self.settle_packet(peer, sequence, |_| fate);
        }
    }

    /// The other gateway said what became of a packet.
    pub fn handle_confirm(&mut self, peer: PeerId, confirm: &Confirm) {
        let sorted = |places: &[u16]| {
            let mut places = places.to_vec();
            places.sort_unstable();
            places
        };
        let (missed, failed) = (sorted(&confirm.missed), sorted(&confirm.failed));
        self.settle_packet(peer, confirm.sequence, |place| {
            if confirm.refused || failed.binary_search(&place).is_ok() {
                Fate::Failed
            } else if missed.binary_search(&place).is_ok() {
                Fate::Missed
            } else {
                Fate::Taken
            }
        });
    }

    fn settle_packet(&mut self, peer: PeerId, sequence: u32, fate: impl Fn(u16) -> Fate) {
        let Some(destination) = self.destinations.get_mut(&peer) else {
            return;
        };
        let unconfirmed = &mut destination.unconfirmed;
        // Nearly always the first.
        let Some(at) = unconfirmed.iter().position(|sent| sent.sequence == sequence) else {
            return;
        };
        if let Some(sent) = unconfirmed.remove(at) {
            for (place, ack) in sent.wanting {
                self.acks.settle(ack, fate(place), &mut self.verdicts);
            }
        }
    }

    /// Gives up what was not confirmed in time. Returns the number of packets.
    pub fn handle_timeouts(&mut self, now_ms: u64) -> u64 {
        let mut count = 0;
        for destination in self.destinations.values_mut() {
            let late = |sent: &Sent| now_ms.saturating_sub(sent.sent_ms) >= CONFIRM_MS;
            while destination.unconfirmed.front().is_some_and(late)
                && let Some(sent) = destination.unconfirmed.pop_front()
            {
                count += 1;
                for (_, ack) in sent.wanting {
                    self.acks.settle(ack, Fate::Failed, &mut self.verdicts);
                }
            }
        }
        count
    }

    /// When [`Outbound::handle_timeouts`] is due.
    pub fn poll_timeout(&self) -> Option<u64> {
        let fronts = self.destinations.values().filter_map(|d| d.unconfirmed.front());
        fronts.map(|sent| sent.sent_ms + CONFIRM_MS).min()
    }

    /// A gateway is gone: what was not sent finds nobody, and what was may have arrived before.
    /// Returns the messages that were not sent.
    pub fn gone(&mut self, peer: PeerId) -> u64 {
        self.drop_destination(peer, Fate::Missed)
    }

    /// Redis is away: nothing that is under way will be confirmed. Returns the messages that were
    /// not even sent.
    pub fn redis_away(&mut self) -> u64 {
        let peers: Vec<PeerId> = self.destinations.keys().copied().collect();
        peers
            .into_iter()
            .map(|peer| {
                let sequence = self.destinations.get(&peer).map_or(0, |d| d.sequence);
                let unsent = self.drop_destination(peer, Fate::Failed);
                // The other side takes no number twice.
                let fresh = self.destinations.entry(peer).or_default();
                fresh.sequence = sequence;
                unsent
            })
            .sum()
    }

    fn drop_destination(&mut self, peer: PeerId, unsent_fate: Fate) -> u64 {
        self.ready.remove(&peer);
        let Some(destination) = self.destinations.remove(&peer) else {
            return 0;
        };
        if destination.sequence.wrapping_sub(self.used) < 1 << 31 {
            self.used = destination.sequence;
        }
        let unsent = destination.closed.into_iter().chain([destination.open]);
        let mut messages = 0;
        for (_, ack) in destination.unconfirmed.into_iter().flat_map(|sent| sent.wanting) {
            self.acks.settle(ack, Fate::Failed, &mut self.verdicts);
        }
        for open in unsent {
            messages += u64::from(open.builder.messages());
            for (_, ack) in open.wanting {
                self.acks.settle(ack, unsent_fate, &mut self.verdicts);
            }
        }
        messages
    }

    /// What senders are to hear.
    pub fn poll_verdicts(&mut self) -> std::vec::Drain<'_, Verdict> {
        self.verdicts.drain(..)
    }

    /// Gateways that something is remembered of.
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerId> {
        self.destinations.keys().copied()
    }

    /// Senders who have not heard yet.
    pub fn waiting(&self) -> usize {
        self.acks.len()
    }
}

/// Why a packet reached nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The gateway is dead.
    Dead,
    /// Redis could not be asked, or the gateway does not listen at the moment.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::super::packet::{Packet, PacketItem};
    use super::super::store::Incarnation;
    use super::*;

    const ME: Origin<'_> = Origin {
        id: "me",
        incarnation: Incarnation(1),
    };

    fn ack_to(client_id: &str) -> Option<AckTo<'_>> {
        Some(AckTo {
            shard: ShardId(0),
            conn: SocketKey { slot: 1, generation: 2 },
            client_id,
            message_id: Uuid::nil(),
        })
    }

    fn verdicts(outbound: &mut Outbound) -> Vec<(String, AckStatus)> {
        let verdicts = outbound.poll_verdicts();
        verdicts.map(|v| (v.client_id.into_string(), v.status)).collect()
    }

    #[test]
    fn packets_grow_while_redis_is_busy_and_keep_order() {
        let mut outbound = Outbound::default();
        let b = [PeerId(1)];
        let mut sent = Vec::new();
        for n in 0..10u8 {
            outbound.message(ME, &b, "bob", &[n], None).unwrap();
            sent.extend(outbound.poll_packet(0));
        }
        assert_eq!(sent.iter().map(|p| p.messages).collect::<Vec<_>>(), [1, 1]);
        outbound.handle_published(PeerId(1), 1, Ok(()));
        let packet = outbound.poll_packet(0).unwrap();
        assert_eq!((packet.messages, packet.sequence), (8, 3));
        assert!(outbound.poll_packet(0).is_none());
        let mut read = Packet::read(&packet.payload).unwrap();
        for n in 2..10u8 {
            let item = read.next_item().unwrap();
            assert!(matches!(item, Some(PacketItem::Message { body, .. }) if body == [n]));
        }
    }

    #[test]
    fn a_message_is_routed_when_any_gateway_took_it() {
        let mut outbound = Outbound::default();
        let (b, c) = (PeerId(1), PeerId(2));
        for id in ["1", "2", "3", "4"] {
            outbound.message(ME, &[b, c], "bob", b"x", ack_to(id)).unwrap();
        }
        while outbound.poll_packet(0).is_some() {}
        outbound.handle_published(b, 1, Ok(()));
        outbound.handle_published(c, 1, Ok(()));
        assert_eq!(verdicts(&mut outbound), []);
        let confirm = Confirm {
            sequence: 1,
            missed: vec![1, 2],
            failed: vec![3],
            ..Confirm::default()
        };
        outbound.handle_confirm(b, &confirm);
        assert_eq!(verdicts(&mut outbound), [("1".into(), AckStatus::Routed)]);
        let confirm = Confirm {
            sequence: 1,
            missed: vec![0, 2, 3],
            ..Confirm::default()
        };
        outbound.handle_confirm(c, &confirm);
        // Said twice: nobody hears it.
        outbound.handle_confirm(c, &confirm);
        assert_eq!(
            verdicts(&mut outbound),
            [
                ("2".into(), AckStatus::Routed),
                ("3".into(), AckStatus::Offline),
                ("4".into(), AckStatus::Failed)
            ]
        );
        assert_eq!(outbound.waiting(), 0);
    }

    #[test]
    fn who_hears_nothing_hears_that() {
        let mut outbound = Outbound::default();
        let b = PeerId(1);
        let send = |outbound: &mut Outbound, id: &str, now_ms| {
            outbound.message(ME, &[b], "bob", b"x", ack_to(id)).unwrap();
            outbound.poll_packet(now_ms).map(|p| p.sequence)
        };
        let first = send(&mut outbound, "dead", 0).unwrap();
        outbound.handle_published(b, first, Err(Lost::Dead));
        let second = send(&mut outbound, "unknown", 0).unwrap();
        outbound.handle_published(b, second, Err(Lost::Unknown));
        send(&mut outbound, "late", 10).unwrap();
        assert_eq!(outbound.poll_timeout(), Some(10 + CONFIRM_MS));
        assert_eq!(outbound.handle_timeouts(10 + CONFIRM_MS), 1);
        outbound.message(ME, &[b], "bob", b"x", ack_to("unsent")).unwrap();
        assert_eq!(outbound.redis_away(), 1);
        assert_eq!(
            verdicts(&mut outbound),
            [
                ("dead".into(), AckStatus::Offline),
                ("unknown".into(), AckStatus::Failed),
                ("late".into(), AckStatus::Failed),
                ("unsent".into(), AckStatus::Failed)
            ]
        );
        assert!(send(&mut outbound, "next", 20).unwrap() > second, "numbers rise");
        assert_eq!(outbound.gone(b), 0);
        // It may have arrived before.
        assert_eq!(verdicts(&mut outbound), [("next".into(), AckStatus::Failed)]);
        outbound.message(ME, &[b], "bob", b"x", ack_to("unsent")).unwrap();
        assert_eq!(outbound.gone(b), 1);
        assert_eq!(verdicts(&mut outbound), [("unsent".into(), AckStatus::Offline)]);
        assert_eq!(outbound.waiting(), 0);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut outbound = Outbound::default();
        let frame = vec![0; 1 << 20];
        let fits = (0..).take_while(|_| outbound.message(ME, &[PeerId(1)], "bob", &frame, None).is_ok());
        assert!((15..=17).contains(&fits.count()));
        assert_eq!(
            outbound.message(ME, &[PeerId(1)], "bob", &frame, ack_to("x")),
            Err(TooMuchWaits)
        );
        assert_eq!(verdicts(&mut outbound), [("x".into(), AckStatus::Failed)]);
    }
}
