//! Tags of packets: who may publish in Redis and does not have `cluster.key` cannot speak as a
//! gateway.
//!
//! Pure; owned by the control thread. A sealed packet says so in its version byte and ends with the
//! first 16 bytes of an HMAC-SHA256 over the channel and the packet. The channel is part of it, so
//! a packet that was heard in one place is no good in another; the key that is used follows from
//! `cluster.key` and `redis.prefix`, so neither is one of another cluster with the same key.
//!
//! What was heard can be said again in its place. Sequence numbers refuse that, see
//! [`super::inbound`].

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use bytes::Bytes;

use super::packet::{BODIES, FRAMES, SEALED_BODIES, SEALED_FRAMES};
use super::store::Channel;

/// Bytes of a tag.
const TAG_BYTES: usize = 16;
/// First part of what a key is derived from: the use, and its version.
const PURPOSE: &[u8] = b"shardgate packets 1\0";

/// Why a packet is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// It has no tag, and there is a key.
    #[error("it has no tag")]
    Unsealed,
    /// It has a tag, and there is no key.
    #[error("it has a tag, and there is no key to check it with")]
    NoKey,
    /// It has a tag of another key, or was changed, or was heard on another channel.
    #[error("its tag is wrong")]
    WrongTag,
}

/// The keys of a cluster: the first seals, each opens. None: packets have no tags.
#[derive(Default)]
pub struct Keyring(Vec<hmac::Key>);

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({})", self.0.len())
    }
}

fn feed_channel(context: &mut hmac::Context, channel: &Channel) {
    match channel {
        Channel::Gateway(id, incarnation) => {
            context.update(&[1]);
            context.update(&incarnation.0.to_le_bytes());
            // The packet behind it begins with a byte that no id ends with.
            context.update(id.as_bytes());
            context.update(&[0]);
        }
        Channel::All => context.update(&[2]),
        Channel::Partition(number) => {
            context.update(&[3]);
            context.update(&number.to_le_bytes());
        }
    }
}

fn tag(key: &hmac::Key, channel: &Channel, packet: &[u8]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    feed_channel(&mut context, channel);
    context.update(packet);
    context.sign()
}

impl Keyring {
    /// The keys that follow from these secrets for the cluster with this prefix.
    pub fn new<'a>(secrets: impl Iterator<Item = &'a str>, prefix: &str) -> Self {
        let derive = |secret: &str| {
            let secret = hmac::Key::new(HMAC_SHA256, secret.as_bytes());
            let mut context = hmac::Context::with_key(&secret);
            context.update(PURPOSE);
            context.update(prefix.as_bytes());
            hmac::Key::new(HMAC_SHA256, context.sign().as_ref())
        };
        Keyring(secrets.map(derive).collect())
    }

    /// True if packets have tags.
    pub fn seals(&self) -> bool {
        !self.0.is_empty()
    }

    /// A packet as it goes to a channel.
    pub fn seal(&self, channel: &Channel, mut packet: Vec<u8>) -> Bytes {
        if let (Some(key), Some(version)) = (self.0.first(), packet.first_mut()) {
            *version = if *version == BODIES {
                SEALED_BODIES
            } else {
                SEALED_FRAMES
            };
            let tag = tag(key, channel, &packet);
            packet.extend_from_slice(&tag.as_ref()[..TAG_BYTES]);
        }
        packet.into()
    }

    /// A packet as it came on a channel, without its tag.
    ///
    /// # Errors
    /// It is not believed.
    pub fn open<'a>(&self, channel: &Channel, payload: &'a [u8]) -> Result<&'a [u8], Untrusted> {
        match payload.first() {
            Some(&(SEALED_FRAMES | SEALED_BODIES)) if !self.seals() => Err(Untrusted::NoKey),
            Some(&(SEALED_FRAMES | SEALED_BODIES)) => {
                let end = payload.len().saturating_sub(TAG_BYTES).max(1);
                let (packet, shown) = payload.split_at(end);
                let fits = |key: &hmac::Key| {
                    let tag = tag(key, channel, packet);
                    verify_slices_are_equal(&tag.as_ref()[..TAG_BYTES], shown).is_ok()
                };
                if self.0.iter().any(fits) {
                    Ok(packet)
                } else {
                    Err(Untrusted::WrongTag)
                }
            }
            // What another version sends is named as that.
            Some(&(FRAMES | BODIES)) if self.seals() => Err(Untrusted::Unsealed),
            _ => Ok(payload),
        }
    }
}

/// How often the log says that packets are refused: anybody who can publish can cause it.
const UNTRUSTED_EVERY_MS: u64 = 60_000;

/// The keyring, and what it has refused. Owned by the control thread.
#[derive(Debug, Default)]
pub(super) struct Seals {
    keyring: Keyring,
    refused: u64,
    /// From when on the log may say so again.
    due_ms: u64,
}

impl Seals {
    pub(super) fn new(keyring: Keyring) -> Self {
        Seals {
            keyring,
            ..Seals::default()
        }
    }

    /// True if packets have tags.
    pub(super) fn seals(&self) -> bool {
        self.keyring.seals()
    }

    /// A packet as it goes to a channel.
    pub(super) fn seal(&self, channel: &Channel, packet: Vec<u8>) -> Bytes {
        self.keyring.seal(channel, packet)
    }

    /// As [`Keyring::open`]. The log tells of packets that are not believed, at once and then once
    /// in a while.
    pub(super) fn open<'a>(
        &mut self,
        channel: &Channel,
        payload: &'a [u8],
        now_ms: u64,
    ) -> Result<&'a [u8], Untrusted> {
        let result = self.keyring.open(channel, payload);
        if let Err(why) = &result {
            self.refused += 1;
            if now_ms >= self.due_ms {
                self.due_ms = now_ms + UNTRUSTED_EVERY_MS;
                log::warn!(
                    "a packet was refused, {why}: a gateway with another cluster.key or none, or somebody else who may \
                     publish in Redis; {} so far",
                    self.refused
                );
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::{Origin, Packet, PacketBuilder, PacketItem};
    use super::super::store::Incarnation;
    use super::*;

    const ME: Origin<'_> = Origin {
        id: "gw",
        incarnation: Incarnation(7),
    };

    fn keyring(secrets: &[&str]) -> Keyring {
        Keyring::new(secrets.iter().copied(), "p:")
    }

    fn packet() -> Vec<u8> {
        let mut packet = PacketBuilder::default();
        packet.probe(ME, 42);
        packet.close(3)
    }

    fn to_us() -> Channel {
        Channel::Gateway("gw".into(), Incarnation(7))
    }

    #[test]
    fn what_was_sealed_opens_unchanged_where_it_belongs_and_nowhere_else() {
        let keys = keyring(&["first secret of the cluster"]);
        let sealed = keys.seal(&to_us(), packet());
        let opened = keys.open(&to_us(), &sealed).unwrap();
        let mut read = Packet::read(opened).unwrap();
        assert_eq!((read.origin, read.sequence), (ME, 3));
        assert_eq!(read.next_item(), Ok(Some(PacketItem::Probe { nonce: 42 })));
        assert_eq!(read.next_item(), Ok(None));
        for other in [
            Channel::All,
            Channel::Partition(0),
            Channel::Gateway("gw".into(), Incarnation(8)),
        ] {
            assert_eq!(keys.open(&other, &sealed), Err(Untrusted::WrongTag));
        }
        for bit in 8..8 * sealed.len() {
            let mut changed = sealed.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(keys.open(&to_us(), &changed), Err(Untrusted::WrongTag), "{bit}");
        }
        for len in 1..sealed.len() {
            assert_eq!(keys.open(&to_us(), &sealed[..len]), Err(Untrusted::WrongTag), "{len}");
        }
    }

    /// Never delete this: a cluster is upgraded gateway by gateway.
    #[test]
    fn sealed_packets_of_older_gateways_open() {
        let older: &[u8] = include_bytes!("testdata/packet-2-sealed.bin");
        let plain: &[u8] = include_bytes!("testdata/packet-1.bin");
        let keys = keyring(&["the key of all gateways"]);
        let channel = Channel::Gateway("gw-new".into(), Incarnation(7));
        let opened = keys.open(&channel, older).unwrap();
        assert_eq!(opened[1..], plain[1..]);
        assert_eq!(&keys.seal(&channel, plain.to_vec())[..], older);
    }

    #[test]
    fn packets_with_bodies_are_sealed_as_well() {
        let (none, keys) = (Keyring::default(), keyring(&["first secret of the cluster"]));
        let mut packet = PacketBuilder::default();
        packet.broadcast(ME, b"{}");
        let packet = packet.close(3);
        let sealed = keys.seal(&Channel::All, packet.clone());
        assert_eq!((packet[0], sealed[0]), (BODIES, SEALED_BODIES));
        let mut read = Packet::read(keys.open(&Channel::All, &sealed).unwrap()).unwrap();
        assert_eq!(read.next_item(), Ok(Some(PacketItem::Broadcast { body: b"{}" })));
        assert_eq!(keys.open(&Channel::All, &packet), Err(Untrusted::Unsealed));
        assert_eq!(none.open(&Channel::All, &sealed), Err(Untrusted::NoKey));
        // Nobody makes the one version of the other.
        let mut relabelled = sealed.to_vec();
        relabelled[0] = SEALED_FRAMES;
        assert_eq!(keys.open(&Channel::All, &relabelled), Err(Untrusted::WrongTag));
    }

    #[test]
    fn one_key_is_replaced_by_another_while_all_understand_each_other() {
        let (old, new) = ("the old secret of them", "the new secret of them");
        let steps = [
            keyring(&[old]),
            keyring(&[old, new]),
            keyring(&[new, old]),
            keyring(&[new]),
        ];
        for pair in steps.windows(2) {
            for (from, to) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
                assert!(to.open(&Channel::All, &from.seal(&Channel::All, packet())).is_ok());
            }
        }
        let sealed = steps[3].seal(&Channel::All, packet());
        assert_eq!(steps[0].open(&Channel::All, &sealed), Err(Untrusted::WrongTag));
        // The prefix is part of the key.
        let elsewhere = Keyring::new([new].into_iter(), "q:");
        assert_eq!(elsewhere.open(&Channel::All, &sealed), Err(Untrusted::WrongTag));
    }

    #[test]
    fn without_a_key_packets_are_as_they_always_were() {
        let (none, keys) = (Keyring::default(), keyring(&["first secret of the cluster"]));
        assert_eq!(&none.seal(&Channel::All, packet())[..], &packet()[..]);
        assert_eq!(none.open(&Channel::All, &packet()).unwrap(), &packet()[..]);
        assert_eq!(keys.open(&Channel::All, &packet()), Err(Untrusted::Unsealed));
        let sealed = keys.seal(&Channel::All, packet());
        assert_eq!(none.open(&Channel::All, &sealed), Err(Untrusted::NoKey));
        assert_eq!(none.open(&Channel::All, &[]).unwrap(), b"");
        assert!(!format!("{keys:?}").contains("secret"));
    }
}
