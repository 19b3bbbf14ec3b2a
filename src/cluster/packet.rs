//! What gateways say to each other: packets of length-prefixed items. Content passes through untouched.
//!
//! Pure. Numbers are little-endian.
//!
//! ```text
//! packet:  version u8 (1, or 2: sealed) | sequence u32 | incarnation u64 | id length u8 | id | item...
//! item:    kind u8 | body
//!   1 message:     flags u8 (1: wants to be confirmed) | user length u8 | user | frame length u32 | frame
//!   2 confirm:     sequence u32 | flags u8 (1: packet refused as a whole) | missed u16 | places u16... | failed u16 | places u16...
//!   3 broadcast:   frame length u32 | frame
//!   4 close user:  close code u16 | user length u8 | user
//!   5 probe:       nonce u64
//!   6 look:        (nothing) the directory has changed
//!   7 challenge:   (nothing) somebody wants this id: renew the lease if you live
//!   8 publication: channel length u8 | channel | frame length u32 | frame
//!   9 end subscription: user length u8 | user | channel length u8 | channel
//! ```
//!
//! Who meets a kind that it does not know drops the rest of the packet. A kind that older gateways lack, which is 9, goes in a
//! packet of its own.
//!
//! A message's place is its number among the messages of its packet, from 0. Sequence numbers rise by one per packet from
//! one gateway to another, and from one gateway in one partition; packets to all have 0, or, where they are sealed, numbers
//! of their own. A sealed packet has a tag of 16 bytes behind its items, see [`super::seal`].
use super::store::Incarnation;
use crate::ids::{CHANNEL_BYTES_MAX, USER_ID_BYTES_MAX, is_valid_channel, is_valid_user_id};

/// Version of the framing. A packet of another version is not understood, and counted.
pub const VERSION: u8 = 1;

/// The same framing, with a tag behind it.
pub const SEALED: u8 = 2;

/// No packet is taken for the store's own.
const _: () = assert!(VERSION != super::store::PROBE && SEALED != super::store::PROBE);

const MESSAGE: u8 = 1;
const CONFIRM: u8 = 2;
const BROADCAST: u8 = 3;
const CLOSE_USER: u8 = 4;
const PROBE: u8 = 5;
const LOOK: u8 = 6;
const CHALLENGE: u8 = 7;
const PUBLICATION: u8 = 8;
const END_SUBSCRIPTION: u8 = 9;

/// Their lengths are one byte.
const _: () = assert!(USER_ID_BYTES_MAX < 256 && CHANNEL_BYTES_MAX < 256);

const WANTS_CONFIRM: u8 = 1;
const REFUSED: u8 = 1;

/// Who a packet is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The gateway's id.
    pub id: &'a str,
    /// Which life of it.
    pub incarnation: Incarnation,
}

/// A packet being built.
#[derive(Debug, Default)]
pub struct PacketBuilder {
    bytes: Vec<u8>,
    messages: u16,
}

impl PacketBuilder {
    fn begin(&mut self, origin: Origin<'_>) {
        if self.bytes.is_empty() {
            self.bytes.push(VERSION);
            // The sequence number is written when the packet is closed.
            self.bytes.extend_from_slice(&[0; 4]);
            self.bytes.extend_from_slice(&origin.incarnation.0.to_le_bytes());
            self.short_text(origin.id);
        }
    }

    fn short_text(&mut self, text: &str) {
        debug_assert!(text.len() <= 255, "ids are short");
        self.bytes.push(text.len() as u8);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn long(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(bytes);
    }

    fn places(&mut self, places: &[u16]) {
        self.bytes.extend_from_slice(&(places.len() as u16).to_le_bytes());
        for place in places {
            self.bytes.extend_from_slice(&place.to_le_bytes());
        }
    }

    /// True if nothing was said.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Messages or publications so far.
    pub fn messages(&self) -> u16 {
        self.messages
    }

    /// Adds a message and returns its place.
    pub fn message(&mut self, origin: Origin<'_>, to: &str, frame: &[u8], wants_confirm: bool) -> u16 {
        self.begin(origin);
        self.bytes.push(MESSAGE);
        self.bytes.push(if wants_confirm { WANTS_CONFIRM } else { 0 });
        self.short_text(to);
        self.long(frame);
        self.messages += 1;
        self.messages - 1
    }

    /// Adds a publication.
    pub fn publication(&mut self, origin: Origin<'_>, channel: &str, frame: &[u8]) {
        self.begin(origin);
        self.bytes.push(PUBLICATION);
        self.short_text(channel);
        self.long(frame);
        self.messages += 1;
    }

    /// Adds what became of a packet of the other gateway.
    pub fn confirm(&mut self, origin: Origin<'_>, confirm: &Confirm) {
        self.begin(origin);
        self.bytes.push(CONFIRM);
        self.bytes.extend_from_slice(&confirm.sequence.to_le_bytes());
        self.bytes.push(if confirm.refused { REFUSED } else { 0 });
        self.places(&confirm.missed);
        self.places(&confirm.failed);
    }

    /// Adds a frame for every connection.
    pub fn broadcast(&mut self, origin: Origin<'_>, frame: &[u8]) {
        self.begin(origin);
        self.bytes.push(BROADCAST);
        self.long(frame);
    }

    /// Adds the wish to close all connections of a user.
    pub fn close_user(&mut self, origin: Origin<'_>, user: &str, code: u16) {
        self.begin(origin);
        self.bytes.push(CLOSE_USER);
        self.bytes.extend_from_slice(&code.to_le_bytes());
        self.short_text(user);
    }

    /// Adds the wish to end the subscriptions of a user to a channel. Not to a packet that holds something else.
    pub fn end_subscription(&mut self, origin: Origin<'_>, user: &str, channel: &str) {
        debug_assert!(self.is_empty(), "older gateways drop what else is in the packet");
        self.begin(origin);
        self.bytes.push(END_SUBSCRIPTION);
        self.short_text(user);
        self.short_text(channel);
    }

    /// Adds a probe.
    pub fn probe(&mut self, origin: Origin<'_>, nonce: u64) {
        self.begin(origin);
        self.bytes.push(PROBE);
        self.bytes.extend_from_slice(&nonce.to_le_bytes());
    }

    /// Adds the news that the directory has changed.
    pub fn look(&mut self, origin: Origin<'_>) {
        self.begin(origin);
        self.bytes.push(LOOK);
    }

    /// Adds the question whether the holder of an id lives.
    pub fn challenge(&mut self, origin: Origin<'_>) {
        self.begin(origin);
        self.bytes.push(CHALLENGE);
    }

    /// The packet, to be sealed.
    pub fn close(self, sequence: u32) -> Vec<u8> {
        let mut bytes = self.bytes;
        if let Some(place) = bytes.get_mut(1..5) {
            place.copy_from_slice(&sequence.to_le_bytes());
        }
        bytes
    }
}

/// What became of the messages of a packet. Those that are not named were taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Confirm {
    /// The packet.
    pub sequence: u32,
    /// It was not looked at: it came behind a later one.
    pub refused: bool,
    /// Places of messages whose receiver was not there.
    pub missed: Vec<u16>,
    /// Places of messages that could not be carried out.
    pub failed: Vec<u16>,
}

/// One item of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "described at the top")]
pub enum PacketItem<'a> {
    Message {
        to: &'a str,
        frame: &'a [u8],
        wants_confirm: bool,
    },
    Confirm(Confirm),
    Broadcast {
        frame: &'a [u8],
    },
    CloseUser {
        user: &'a str,
        code: u16,
    },
    EndSubscription {
        user: &'a str,
        channel: &'a str,
    },
    Probe {
        nonce: u64,
    },
    Look,
    Challenge,
    Publication {
        channel: &'a str,
        frame: &'a [u8],
    },
}

/// Why a packet was not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Of another version of the gateway.
    #[error("version {0} of the framing, {VERSION} is understood")]
    Version(u8),
    /// Cut off, or not of a gateway at all.
    #[error("malformed")]
    Malformed,
}

/// A packet being read.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// Who it is from.
    pub origin: Origin<'a>,
    /// Rises from packet to packet; 0 for packets to all.
    pub sequence: u32,
    rest: Reader<'a>,
}

#[derive(Debug, Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], PacketError> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(PacketError::Malformed)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PacketError> {
        self.take(N)?.try_into().map_err(|_| PacketError::Malformed)
    }

    fn byte(&mut self) -> Result<u8, PacketError> {
        Ok(self.array::<1>()?[0])
    }

    fn short_text(&mut self) -> Result<&'a str, PacketError> {
        let len = self.byte()?;
        std::str::from_utf8(self.take(len.into())?).map_err(|_| PacketError::Malformed)
    }

    fn user(&mut self) -> Result<&'a str, PacketError> {
        let user = self.short_text()?;
        if is_valid_user_id(user) {
            Ok(user)
        } else {
            Err(PacketError::Malformed)
        }
    }

    fn channel(&mut self) -> Result<&'a str, PacketError> {
        let channel = self.short_text()?;
        if is_valid_channel(channel) {
            Ok(channel)
        } else {
            Err(PacketError::Malformed)
        }
    }

    fn long(&mut self) -> Result<&'a [u8], PacketError> {
        let len = u32::from_le_bytes(self.array()?);
        self.take(len as usize)
    }

    fn places(&mut self) -> Result<Vec<u16>, PacketError> {
        let count = usize::from(u16::from_le_bytes(self.array()?));
        let bytes = self.take(2 * count)?;
        Ok(bytes
            .chunks_exact(2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]))
            .collect())
    }
}

impl<'a> Packet<'a> {
    /// Reads the head of a packet.
    ///
    /// # Errors
    /// It is not one of ours.
    pub fn read(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let mut rest = Reader(bytes);
        match rest.byte()? {
            VERSION | SEALED => {}
            other => return Err(PacketError::Version(other)),
        }
        let sequence = u32::from_le_bytes(rest.array()?);
        let incarnation = Incarnation(u64::from_le_bytes(rest.array()?));
        let id = rest.short_text()?;
        Ok(Packet {
            origin: Origin { id, incarnation },
            sequence,
            rest,
        })
    }

    /// The next item.
    ///
    /// # Errors
    /// The rest of the packet makes no sense.
    pub fn next_item(&mut self) -> Result<Option<PacketItem<'a>>, PacketError> {
        let rest = &mut self.rest;
        if rest.0.is_empty() {
            return Ok(None);
        }
        let item = match rest.byte()? {
            MESSAGE => PacketItem::Message {
                wants_confirm: rest.byte()? & WANTS_CONFIRM != 0,
                to: rest.user()?,
                frame: rest.long()?,
            },
            CONFIRM => PacketItem::Confirm(Confirm {
                sequence: u32::from_le_bytes(rest.array()?),
                refused: rest.byte()? & REFUSED != 0,
                missed: rest.places()?,
                failed: rest.places()?,
            }),
            BROADCAST => PacketItem::Broadcast { frame: rest.long()? },
            CLOSE_USER => PacketItem::CloseUser {
                code: u16::from_le_bytes(rest.array()?),
                user: rest.user()?,
            },
            END_SUBSCRIPTION => PacketItem::EndSubscription {
                user: rest.user()?,
                channel: rest.channel()?,
            },
            PROBE => PacketItem::Probe {
                nonce: u64::from_le_bytes(rest.array()?),
            },
            LOOK => PacketItem::Look,
            CHALLENGE => PacketItem::Challenge,
            PUBLICATION => PacketItem::Publication {
                channel: rest.channel()?,
                frame: rest.long()?,
            },
            _ => return Err(PacketError::Malformed),
        };
        Ok(Some(item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ME: Origin<'_> = Origin {
        id: "gw-1",
        incarnation: Incarnation(0x0123_4567_89ab_cdef),
    };

    fn sample() -> Vec<u8> {
        let mut packet = PacketBuilder::default();
        assert!(packet.is_empty());
        assert_eq!(packet.message(ME, "bob", b"frame", true), 0);
        assert_eq!(packet.message(ME, &"ä".repeat(64), &[7; 70_000], false), 1);
        let confirm = Confirm {
            sequence: 9,
            refused: true,
            missed: vec![1, 65_535],
            failed: vec![],
        };
        packet.confirm(ME, &confirm);
        packet.broadcast(ME, b"all");
        packet.close_user(ME, "carol", 3503);
        packet.probe(ME, 42);
        packet.look(ME);
        packet.challenge(ME);
        packet.publication(ME, "room", b"published");
        packet.close(77)
    }

    #[test]
    fn what_is_said_is_heard() {
        let bytes = sample();
        let mut packet = Packet::read(&bytes).unwrap();
        assert_eq!((packet.origin, packet.sequence), (ME, 77));
        let mut items = Vec::new();
        while let Some(item) = packet.next_item().unwrap() {
            items.push(item);
        }
        let long_name = "ä".repeat(64);
        assert_eq!(
            items,
            [
                PacketItem::Message {
                    to: "bob",
                    frame: b"frame",
                    wants_confirm: true
                },
                PacketItem::Message {
                    to: &long_name,
                    frame: &[7; 70_000],
                    wants_confirm: false
                },
                PacketItem::Confirm(Confirm {
                    sequence: 9,
                    refused: true,
                    missed: vec![1, 65_535],
                    failed: vec![]
                }),
                PacketItem::Broadcast { frame: b"all" },
                PacketItem::CloseUser {
                    user: "carol",
                    code: 3503
                },
                PacketItem::Probe { nonce: 42 },
                PacketItem::Look,
                PacketItem::Challenge,
                PacketItem::Publication {
                    channel: "room",
                    frame: b"published"
                },
            ]
        );
    }

    #[test]
    fn the_end_of_a_subscription() {
        let mut packet = PacketBuilder::default();
        packet.end_subscription(ME, "carol", "room");
        let bytes = packet.close(0);
        let head = 1 + 4 + 8 + 1 + ME.id.len();
        assert_eq!(&bytes[head..], b"\x09\x05carol\x04room");
        let mut packet = Packet::read(&bytes).unwrap();
        let expected = PacketItem::EndSubscription {
            user: "carol",
            channel: "room",
        };
        assert_eq!(packet.next_item().unwrap(), Some(expected));
        assert_eq!(packet.next_item().unwrap(), None);
    }

    #[test]
    fn other_versions_are_named() {
        assert_eq!(Packet::read(&[3, 0, 0]).unwrap_err(), PacketError::Version(3));
        assert_eq!(Packet::read(&[]).unwrap_err(), PacketError::Malformed);
    }

    proptest! {
        /// Whatever comes, reading ends, and what is cut off is not taken for whole.
        #[test]
        fn survives_anything(mut bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..400) {
            if let Some(first) = bytes.first_mut() { *first = VERSION; }
            for bytes in [&bytes[..], &sample()[..cut.min(sample().len() - 1)]] {
                if let Ok(mut packet) = Packet::read(bytes) {
                    while let Ok(Some(_)) = packet.next_item() {}
                }
            }
        }
    }
}
