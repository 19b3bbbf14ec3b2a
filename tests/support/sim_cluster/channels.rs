//! Channels between gateways: the clients' actions there, and the required outcome.
//!
//! A client with `subscribed` misses no later publication that is acked `published`, on whichever
//! gateway, as long as no trouble touches the two. It never misses a publication of its own
//! gateway.

use std::collections::BTreeSet;

use shardgate::cluster::store::Channel;
use shardgate::router::HomeMap;

use super::World;
use super::books::{ANSWER_MAX_NS, Books};
use super::link::MS;
use super::sim::channels::Missed;

/// A publication may be so long on its way to another gateway behind its ack.
const SPREAD_NS: u64 = 2_000 * MS;

impl World {
    /// A client asks to be in a channel, or not any more.
    pub fn ask_channel(&mut self, client: usize, channel: usize, subscribes: bool) {
        // All publications due by then have come.
        let done_ns = self.now_ns.saturating_sub(SPREAD_NS);
        let text = self.books.channels.ask(client, channel, subscribes, done_ns);
        self.frame(client, 0x81, text.as_bytes());
    }

    /// A client publishes.
    pub fn publish(&mut self, client: usize, channel: usize, wants_ack: bool) {
        let from = &self.books.users[self.books.clients[client].user];
        let text = self.books.channels.publish(client, from, channel, 0, wants_ack);
        self.frame(client, 0x81, text.as_bytes());
    }

    /// A client does something about channels.
    pub fn act_on_channel(&mut self, client: usize) {
        let channel = self.chance.below(self.setup.channels);
        match self.chance.below(20) {
            0..=7 => self.ask_channel(client, channel, true),
            8 => self.ask_channel(client, channel, false),
            9 => {
                for subscribes in [true, false, true, false] {
                    self.ask_channel(client, channel, subscribes);
                }
            }
            _ => {
                for _ in 0..1 + self.chance.below(3) {
                    let wants_ack = self.chance.percent(90);
                    self.publish(client, channel, wants_ack);
                }
            }
        }
    }

    /// Gateways subscribe to the partitions in which a client sits there, and to no others.
    pub fn check_partitions(&self) {
        let homes = HomeMap::new(1, [0; 16]);
        for (slot, place) in self.slots.iter().enumerate() {
            let gateway = place.gateway.as_ref().expect("it serves");
            let clients = &self.books.clients;
            let seated = self.books.channels.seated();
            let here = seated.filter(|(client, _)| clients[*client].is_live() && clients[*client].slot == slot);
            let wanted: BTreeSet<u16> = here
                .map(|(_, channel)| homes.partition(&self.books.channels.names[channel]).0)
                .collect();
            let heard: BTreeSet<u16> = gateway.link_ref().ear().map_or_else(BTreeSet::new, |ear| {
                let heard = self.redis.heard(ear).filter_map(|channel| match channel {
                    Channel::Partition(number) => Some(*number),
                    _ => None,
                });
                heard.collect()
            });
            let residues: Vec<_> = gateway.shards.iter().map(|shard| shard.real.core.residue()).collect();
            assert_eq!(
                heard,
                wanted,
                "partitions of {} {residues:?} at {}",
                gateway.id,
                self.now_ms()
            );
        }
    }
}

impl Books {
    /// Everything sent so far has had the time to come and to be answered.
    pub fn check_channels(&mut self) {
        let live: BTreeSet<usize> = (0..self.clients.len())
            .filter(|index| self.clients[*index].is_live())
            .collect();
        for (client, request) in self.channels.unanswered() {
            assert!(!live.contains(&client), "{client} has no answer to {request:?}");
        }
        for (asked_ns, at_ns) in std::mem::take(&mut self.channels.waits) {
            assert!(
                at_ns - asked_ns <= ANSWER_MAX_NS + self.frozen_ns(asked_ns, at_ns),
                "an answer took {} ms, at {} ms",
                (at_ns - asked_ns) / MS,
                at_ns / MS
            );
        }
        let mut came_from_elsewhere = 0;
        for (number, publication) in self.channels.unchecked() {
            let sent_ns = publication.sent_ns;
            let publisher = &self.clients[publication.publisher];
            let Some((status, at_ns)) = &publication.ack else {
                let gone = publisher
                    .ended_ns
                    .is_some_and(|at| at <= sent_ns + ANSWER_MAX_NS + self.frozen_ns(sent_ns, at));
                assert!(
                    gone || !publication.wants_ack,
                    "publication {number} has no ack: {publication:?} {publisher:?}"
                );
                continue;
            };
            let took_ns = at_ns - sent_ns;
            assert!(
                took_ns <= ANSWER_MAX_NS + self.frozen_ns(sent_ns, *at_ns),
                "the ack of publication {number} took {} ms: {publication:?}",
                took_ns / MS
            );
            match status.as_str() {
                "published" => {}
                "failed" => assert!(
                    !self.all_sound(sent_ns, *at_ns),
                    "publication {number} failed without cause: {publication:?} {publisher:?}"
                ),
                other => panic!("publication {number} is {other}"),
            }
            let come_ns = at_ns + SPREAD_NS;
            let there: BTreeSet<usize> = (0..self.clients.len())
                .filter(|index| self.clients[*index].ended_ns.is_none_or(|end| end > come_ns))
                .collect();
            let must_come = |client: usize| {
                let slots = [self.clients[client].slot, publisher.slot];
                status == "published" && self.are_sound(slots, sent_ns, come_ns)
            };
            let sitters = self.channels.sitters(publication, &there);
            let elsewhere =
                sitters.filter(|(client, _)| self.clients[*client].slot != publisher.slot && must_come(*client));
            came_from_elsewhere += elsewhere.count() as u64;
            for missed in self.channels.missed(number, &there) {
                let client = &self.clients[missed.client];
                assert!(!must_come(missed.client), "published, yet {missed:?} {client:?}");
                assert!(!self.is_neighbour(&missed), "lost on its own gateway: {missed:?}");
            }
        }
        self.tally.came_from_elsewhere += came_from_elsewhere;
        self.channels.checked();
    }

    /// The client that missed it sits on the publisher's gateway, and is there yet.
    fn is_neighbour(&self, missed: &Missed<'_>) -> bool {
        let [publisher, client] = [missed.publication.publisher, missed.client].map(|index| &self.clients[index]);
        (publisher.slot, publisher.life) == (client.slot, client.life)
            && client.is_live()
            && missed.sitting.until_ns == u64::MAX
    }
}
