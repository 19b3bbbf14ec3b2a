//! Publications between gateways: which partitions of channels are heard, and what is said in them.
//!
//! Pure; owned by the control thread. A partition is heard while a shard wants it, and some time
//! longer. Everything for one partition in one turn is one packet, and while `PACKETS_UNDER_WAY`
//! packets have not been answered by Redis, what comes is gathered in the next one, as for
//! messages: a publication costs fewer commands the more there are.
//!
//! A publication is `published` when Redis took its packet, and `failed` when it could not be
//! asked. Nobody confirms more: a gateway whose connection for subscriptions breaks misses what is
//! said meanwhile. Packets are numbered per partition, so it knows and counts that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::packet::{Origin, PacketBuilder};
use super::verdict::{TooMuchWaits, Verdict};
use crate::lanes::AckTo;
use crate::router::Partition;
use crate::router::locations::PeerId;
use crate::wire::message::AckStatus;

/// Packets of one partition that Redis has not answered yet; two keep the pipe full.
const PACKETS_UNDER_WAY: u8 = 2;
/// A packet that has reached this size is closed. Redis' default limit for a subscriber that lags
/// is 8 MiB for a minute.
const PACKET_BYTES_MAX: usize = 256 * 1024;
/// What may wait for Redis, of all partitions together; what does not fit has failed.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long a partition is heard that nobody wants: users who reload a page cost no command.
const LINGER_MS: u64 = 10_000;
/// Whoever subscribes waits no longer than this for Redis to confirm; the gateway's own subscribers
/// do without it.
const CONFIRM_MS: u64 = 2_000;

/// One partition as it is heard.
#[derive(Debug)]
struct Listened {
    wanted: bool,
    /// The subscription was asked for.
    begun: bool,
    heard: bool,
    /// Nobody waits for it: it is heard, or was not in time.
    told: bool,
    /// Since when it is wanted and not heard, or not wanted.
    since_ms: u64,
}

impl Listened {
    fn is_settled(&self) -> bool {
        self.wanted && self.heard
    }

    /// When something happens to it although nothing happens.
    fn due_ms(&self) -> Option<u64> {
        match (self.wanted, self.told) {
            (false, _) => Some(self.since_ms + LINGER_MS),
            (true, false) => Some(self.since_ms + CONFIRM_MS),
            (true, true) => None,
        }
    }
}

/// What is to be done about hearing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// Subscribe.
    Begin(Partition),
    /// Unsubscribe.
    End(Partition),
    /// Tell its home shard that it is heard, or not any more.
    Tell(Partition, bool),
    /// The same, though it is not heard: whoever waited has waited long enough.
    GiveUp(Partition),
}

/// Publications that are not under way yet.
#[derive(Debug, Default)]
struct Open {
    builder: PacketBuilder,
    acks: Vec<Verdict>,
}

/// The publications that go out in one partition.
#[derive(Debug, Default)]
struct Spoken {
    closed: VecDeque<Open>,
    open: Open,
    /// In the list of those with something to send.
    queued: bool,
    under_way: VecDeque<(u32, Vec<Verdict>)>,
    sequence: u32,
}

impl Spoken {
    fn may_send(&self) -> bool {
        self.under_way.len() < usize::from(PACKETS_UNDER_WAY)
            && (!self.closed.is_empty() || !self.open.builder.is_empty())
    }
}

/// A packet to be sent.
#[derive(Debug)]
pub struct Outgoing {
    /// Where.
    pub partition: Partition,
    /// Its number.
    pub sequence: u32,
    /// Publications in it.
    pub publications: u16,
    /// Its bytes, to be sealed.
    pub payload: Vec<u8>,
}

/// How a packet stands to those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The next one, behind so many that were not heard.
    After(u32),
    /// One that came before, or was overtaken: not to be carried out.
    Late,
}

/// All partitions, as this gateway hears them and speaks in them.
#[derive(Debug, Default)]
pub struct Partitions {
    listened: BTreeMap<Partition, Listened>,
    /// Those of them that are not both wanted and heard: few, while all is well.
    unsettled: BTreeSet<Partition>,
    changes: VecDeque<Listen>,
    interactive: BTreeMap<Partition, Spoken>,
    ready: VecDeque<Partition>,
    waiting_bytes: usize,
    last: BTreeMap<(Partition, PeerId), u32>,
    verdicts: Vec<Verdict>,
}

impl Partitions {
    fn note(&mut self, partition: Partition) {
        match self.listened.get(&partition) {
            Some(listened) if !listened.is_settled() => self.unsettled.insert(partition),
            _ => self.unsettled.remove(&partition),
        };
    }

    /// A shard wants a partition, or does not want it any more.
    pub fn want(&mut self, partition: Partition, wanted: bool, now_ms: u64) {
        if !wanted {
            if let Some(listened) = self.listened.get_mut(&partition) {
                listened.wanted = false;
                listened.since_ms = now_ms;
            }
            return self.note(partition);
        }
        let listened = self.listened.entry(partition).or_insert(Listened {
            wanted: true,
            begun: false,
            heard: false,
            told: false,
            since_ms: now_ms,
        });
        listened.wanted = true;
        listened.told = listened.heard;
        listened.since_ms = now_ms;
        if !listened.begun {
            listened.begun = true;
            self.changes.push_back(Listen::Begin(partition));
        } else if listened.heard {
            self.changes.push_back(Listen::Tell(partition, true));
        }
        self.note(partition);
    }

    /// A partition is heard from now on.
    pub fn subscribed(&mut self, partition: Partition) {
        if let Some(listened) = self.listened.get_mut(&partition) {
            listened.heard = true;
            listened.told = true;
            if listened.wanted {
                self.changes.push_back(Listen::Tell(partition, true));
            }
            self.note(partition);
        }
    }

    /// A partition is not heard any more, though it should be.
    pub fn unsubscribed(&mut self, partition: Partition, now_ms: u64) {
        if let Some(listened) = self.listened.get_mut(&partition) {
            listened.heard = false;
            if listened.wanted {
                listened.told = false;
                listened.since_ms = now_ms;
                self.changes.push_back(Listen::Tell(partition, false));
            }
            self.note(partition);
        }
    }

    /// The next thing to do about hearing.
    pub fn poll_listen(&mut self) -> Option<Listen> {
        self.changes.pop_front()
    }

    /// True if a partition is to be heard.
    pub fn is_listened(&self, partition: Partition) -> bool {
        self.listened.contains_key(&partition)
    }

    fn unsettled(&self) -> impl Iterator<Item = &Listened> {
        self.unsettled
            .iter()
            .filter_map(|partition| self.listened.get(partition))
    }

    /// Partitions that are heard.
    pub fn heard(&self) -> usize {
        self.listened.len() - self.unsettled().filter(|listened| !listened.heard).count()
    }

    /// Partitions that should be heard, and are not after all the time that a subscriber waits.
    pub fn deaf(&self) -> usize {
        self.unsettled()
            .filter(|listened| listened.wanted && listened.told)
            .count()
    }

    /// Lets time pass.
    pub fn handle_timeouts(&mut self, now_ms: u64) {
        let mut ended = false;
        let (listened, changes) = (&mut self.listened, &mut self.changes);
        self.unsettled.retain(|partition| {
            let Some(state) = listened.get_mut(partition) else {
                return false;
            };
            if state.due_ms().is_none_or(|due| due > now_ms) {
                return true;
            }
            if state.wanted {
                state.told = true;
                changes.push_back(Listen::GiveUp(*partition));
                return true;
            }
            changes.push_back(Listen::End(*partition));
            listened.remove(partition);
            ended = true;
            false
        });
        if ended {
            // What is said where we do not listen is not for us, and not missed.
            let listened = &self.listened;
            self.last.retain(|(partition, _), _| listened.contains_key(partition));
        }
    }

    /// When [`Partitions::handle_timeouts`] is due.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.unsettled().filter_map(Listened::due_ms).min()
    }

    /// Adds a publication for the other gateways.
    ///
    /// # Errors
    /// Too much waits for Redis: it has failed.
    pub fn publish(
        &mut self,
        origin: Origin<'_>,
        partition: Partition,
        (channel, body): (&str, &[u8]),
        ack_to: Option<AckTo<'_>>,
    ) -> Result<(), TooMuchWaits> {
        let ack = ack_to.map(|ack_to| Verdict::new(ack_to, AckStatus::Published));
        if self.waiting_bytes >= WAITING_BYTES_MAX {
            self.verdicts.extend(ack.map(Verdict::failed));
            return Err(TooMuchWaits);
        }
        let interactive = self.interactive.entry(partition).or_default();
        let open = &interactive.open.builder;
        if open.len() >= PACKET_BYTES_MAX || open.messages() == u16::MAX {
            interactive.closed.push_back(std::mem::take(&mut interactive.open));
        }
        let before = interactive.open.builder.len();
        interactive.open.builder.publication(origin, channel, body);
        self.waiting_bytes += interactive.open.builder.len() - before;
        interactive.open.acks.extend(ack);
        if !interactive.queued && interactive.may_send() {
            interactive.queued = true;
            self.ready.push_back(partition);
        }
        Ok(())
    }

    /// A publication that could not even be put into a packet.
    pub fn fail(&mut self, ack_to: Option<AckTo<'_>>) {
        self.verdicts
            .extend(ack_to.map(|ack_to| Verdict::new(ack_to, AckStatus::Failed)));
    }

    /// The next packet that may go; partitions take turns.
    pub fn poll_packet(&mut self) -> Option<Outgoing> {
        let partition = self.ready.pop_front()?;
        let interactive = self.interactive.get_mut(&partition)?;
        let open = interactive
            .closed
            .pop_front()
            .unwrap_or_else(|| std::mem::take(&mut interactive.open));
        self.waiting_bytes -= open.builder.len();
        // 0 is for packets without a number.
        interactive.sequence = interactive.sequence.wrapping_add(1).max(1);
        let sequence = interactive.sequence;
        interactive.under_way.push_back((sequence, open.acks));
        interactive.queued = interactive.may_send();
        if interactive.queued {
            self.ready.push_back(partition);
        }
        Some(Outgoing {
            partition,
            sequence,
            publications: open.builder.messages(),
            payload: open.builder.close(sequence),
        })
    }

    /// Redis took a packet, or did not.
    pub fn handle_published(&mut self, partition: Partition, sequence: u32, taken: bool) {
        let Some(interactive) = self.interactive.get_mut(&partition) else {
            return;
        };
        let Some(at) = interactive.under_way.iter().position(|(known, _)| *known == sequence) else {
            return;
        };
        if let Some((_, acks)) = interactive.under_way.remove(at) {
            let fate = |ack: Verdict| if taken { ack } else { ack.failed() };
            self.verdicts.extend(acks.into_iter().map(fate));
        }
        if !interactive.queued && interactive.may_send() {
            interactive.queued = true;
            self.ready.push_back(partition);
        }
    }

    /// Redis is away: nothing that waits or is under way will be heard of, and nobody shall wait to
    /// be subscribed. Returns the publications that were not even sent.
    pub fn redis_away(&mut self) -> u64 {
        let mut unsent = 0;
        for interactive in self.interactive.values_mut() {
            let waiting = interactive
                .closed
                .drain(..)
                .chain([std::mem::take(&mut interactive.open)]);
            for open in waiting {
                unsent += u64::from(open.builder.messages());
                self.verdicts.extend(open.acks.into_iter().map(Verdict::failed));
            }
            let under_way = interactive.under_way.drain(..).flat_map(|(_, acks)| acks);
            self.verdicts.extend(under_way.map(Verdict::failed));
            interactive.queued = false;
        }
        self.ready.clear();
        self.waiting_bytes = 0;
        for partition in &self.unsettled {
            if let Some(listened) = self.listened.get_mut(partition)
                && listened.wanted
            {
                listened.told = true;
                // Whoever waits is let go; whoever comes when Redis is back waits again.
                self.changes.push_back(Listen::Tell(*partition, true));
                self.changes.push_back(Listen::Tell(*partition, false));
            }
        }
        unsent
    }

    /// Redis is back: what should be heard and is not has its time from now on.
    pub fn redis_back(&mut self, now_ms: u64) {
        for partition in &self.unsettled {
            if let Some(listened) = self.listened.get_mut(partition)
                && listened.wanted
            {
                listened.told = false;
                listened.since_ms = now_ms;
            }
        }
    }

    /// A packet of another gateway came.
    pub fn arrive(&mut self, from: PeerId, partition: Partition, sequence: u32) -> Arrival {
        let last = self.last.entry((partition, from)).or_insert(sequence.wrapping_sub(1));
        // Half of the circle is ahead, half is behind.
        let ahead = sequence.wrapping_sub(*last);
        if !(1..1 << 31).contains(&ahead) {
            return Arrival::Late;
        }
        *last = sequence;
        Arrival::After(ahead - 1)
    }

    /// A gateway is gone.
    pub fn gone(&mut self, from: PeerId) {
        self.last.retain(|(_, known), _| *known != from);
    }

    /// What publishers are to hear.
    pub fn poll_verdicts(&mut self) -> std::vec::Drain<'_, Verdict> {
        self.verdicts.drain(..)
    }

    /// Publishers who have not heard yet.
    pub fn waiting(&self) -> usize {
        let of = |interactive: &Spoken| {
            let open = interactive
                .closed
                .iter()
                .chain([&interactive.open])
                .map(|open| open.acks.len());
            let under_way = interactive.under_way.iter().map(|(_, acks)| acks.len());
            open.chain(under_way).sum::<usize>()
        };
        self.interactive.values().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::{Packet, PacketItem};
    use super::super::store::Incarnation;
    use super::*;
    use crate::engine::SocketKey;
    use crate::ids::ShardId;
    use uuid::Uuid;

    const ME: Origin<'_> = Origin {
        id: "me",
        incarnation: Incarnation(1),
    };
    const P: Partition = Partition(7);

    fn ack_to(client_id: &str) -> Option<AckTo<'_>> {
        Some(AckTo {
            shard: ShardId(0),
            conn: SocketKey { slot: 0, generation: 0 },
            client_id,
            message_id: Uuid::nil(),
        })
    }

    fn verdicts(partitions: &mut Partitions) -> Vec<(String, AckStatus)> {
        let verdicts = partitions.poll_verdicts();
        verdicts
            .map(|verdict| (verdict.client_id.into(), verdict.status))
            .collect()
    }

    fn changes(partitions: &mut Partitions) -> Vec<Listen> {
        std::iter::from_fn(|| partitions.poll_listen()).collect()
    }

    #[test]
    fn packets_grow_while_two_are_under_way() {
        let mut partitions = Partitions::default();
        for n in 0..5 {
            let id = n.to_string();
            partitions.publish(ME, P, ("room", b"frame"), ack_to(&id)).unwrap();
            if n < 2 {
                let packet = partitions.poll_packet().unwrap();
                assert_eq!((packet.sequence, packet.publications), (n + 1, 1));
            } else {
                assert!(partitions.poll_packet().is_none());
            }
        }
        assert_eq!(verdicts(&mut partitions), []);
        partitions.handle_published(P, 1, true);
        partitions.handle_published(P, 2, false);
        assert_eq!(
            verdicts(&mut partitions),
            [("0".into(), AckStatus::Published), ("1".into(), AckStatus::Failed)]
        );
        let packet = partitions.poll_packet().unwrap();
        assert_eq!((packet.sequence, packet.publications), (3, 3));
        let mut read = Packet::read(&packet.payload).unwrap();
        let item = PacketItem::Publication {
            channel: "room",
            body: b"frame",
        };
        assert_eq!(read.next_item().unwrap(), Some(item));
        partitions.publish(ME, P, ("room", b"frame"), ack_to("unsent")).unwrap();
        assert_eq!((partitions.waiting(), partitions.redis_away()), (4, 1));
        assert!(
            verdicts(&mut partitions)
                .iter()
                .all(|(_, status)| *status == AckStatus::Failed)
        );
        partitions.handle_published(P, 3, true);
        assert_eq!((verdicts(&mut partitions), partitions.waiting()), (vec![], 0));
        partitions.publish(ME, P, ("room", b"frame"), None).unwrap();
        assert_eq!(partitions.poll_packet().unwrap().sequence, 4);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut partitions = Partitions::default();
        let frame = vec![0; WAITING_BYTES_MAX];
        partitions.publish(ME, P, ("room", &frame), None).unwrap();
        let full = partitions.publish(ME, Partition(8), ("room", b"frame"), ack_to("x"));
        assert_eq!(full, Err(TooMuchWaits));
        assert_eq!(verdicts(&mut partitions), [("x".into(), AckStatus::Failed)]);
        assert!(partitions.poll_packet().is_some());
        assert_eq!(partitions.publish(ME, Partition(8), ("room", b"frame"), None), Ok(()));
    }

    #[test]
    fn a_partition_is_heard_while_it_is_wanted_and_some_time_longer() {
        let mut partitions = Partitions::default();
        partitions.want(P, true, 0);
        assert_eq!(changes(&mut partitions), [Listen::Begin(P)]);
        partitions.subscribed(P);
        assert_eq!(changes(&mut partitions), [Listen::Tell(P, true)]);
        assert_eq!((partitions.heard(), partitions.poll_timeout()), (1, None));
        partitions.want(P, false, 100);
        partitions.want(P, true, 200);
        assert_eq!(changes(&mut partitions), [Listen::Tell(P, true)]);
        partitions.want(P, false, 300);
        partitions.handle_timeouts(300 + LINGER_MS - 1);
        assert!(partitions.is_listened(P) && changes(&mut partitions).is_empty());
        assert_eq!(partitions.poll_timeout(), Some(300 + LINGER_MS));
        partitions.handle_timeouts(300 + LINGER_MS);
        assert_eq!(changes(&mut partitions), [Listen::End(P)]);
        assert!(!partitions.is_listened(P));
        // What the store says of it comes too late.
        partitions.subscribed(P);
        partitions.unsubscribed(P, 0);
        assert_eq!(changes(&mut partitions), []);
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut partitions = Partitions::default();
        partitions.want(P, true, 0);
        partitions.handle_timeouts(CONFIRM_MS);
        assert_eq!(changes(&mut partitions), [Listen::Begin(P), Listen::GiveUp(P)]);
        assert_eq!((partitions.deaf(), partitions.poll_timeout()), (1, None));
        partitions.subscribed(P);
        assert_eq!(
            (changes(&mut partitions), partitions.deaf()),
            (vec![Listen::Tell(P, true)], 0)
        );
        partitions.unsubscribed(P, 5_000);
        assert_eq!(changes(&mut partitions), [Listen::Tell(P, false)]);
        partitions.redis_away();
        assert_eq!(
            changes(&mut partitions),
            [Listen::Tell(P, true), Listen::Tell(P, false)]
        );
        assert_eq!(partitions.poll_timeout(), None);
        partitions.redis_back(7_000);
        partitions.handle_timeouts(7_000 + CONFIRM_MS);
        assert_eq!(changes(&mut partitions), [Listen::GiveUp(P)]);
    }

    #[test]
    fn gaps_are_counted_and_what_comes_late_is_not_carried_out() {
        let mut partitions = Partitions::default();
        let (a, b) = (PeerId(1), PeerId(2));
        assert_eq!(partitions.arrive(a, P, 5), Arrival::After(0));
        assert_eq!(partitions.arrive(a, P, 8), Arrival::After(2));
        for late in [8, 6, 5] {
            assert_eq!(partitions.arrive(a, P, late), Arrival::Late);
        }
        assert_eq!(partitions.arrive(b, P, 1), Arrival::After(0));
        assert_eq!(partitions.arrive(a, Partition(8), 1), Arrival::After(0));
        partitions.gone(a);
        assert_eq!(partitions.arrive(a, P, u32::MAX), Arrival::After(0));
        assert_eq!(partitions.arrive(b, P, 2), Arrival::After(0));
    }
}
