//! What gateways say to each other: packets of length-prefixed items. Content passes through
//! untouched.
//!
//! Pure. Numbers are little-endian.
//!
//! ```text
//! packet:  version u8 | sequence u32 | incarnation u64 | id length u8 | id | item...
//! item:    kind u8 | payload
//!   1 message:     flags u8 (1: wants to be confirmed) | user length u8 | user | body length u32 | body
//!   2 confirm:     sequence u32 | flags u8 (1: packet refused as a whole) | missed u16 | indexes u16... | failed u16 | indexes u16...
//!   3 broadcast:   body length u32 | body
//!   4 close user:  close code u16 | user length u8 | user
//!   5 probe:       nonce u64
//!   6 look:        (nothing) the directory has changed
//!   7 challenge:   (nothing) somebody wants this id: renew the lease if you live
//!   8 publication: channel length u8 | channel | body length u32 | body
//!   9 end subscription: user length u8 | user | channel length u8 | channel
//! ```
//!
//! | version | a body is | behind the items |
//! | --- | --- | --- |
//! | 1 | one WebSocket text frame | |
//! | 2 | one WebSocket text frame | a tag of 16 bytes, see [`super::seal`] |
//! | 3 | the body of the message, as its codec made it | |
//! | 4 | the body of the message, as its codec made it | a tag of 16 bytes |
//!
//! Gateways before version 3 read 1 and 2 only, and send those. A packet without a body is of
//! version 1, so every gateway reads it. A packet with a body is built as version 3;
//! [`for_older_gateways`] makes version 1 of it where a receiver's lease does not say that it reads
//! bodies.
//!
//! A gateway that meets a kind that it does not know drops the rest of the packet. A kind that
//! older gateways lack, which is 9, goes in a packet of its own.
//!
//! A message's index is its number among the messages of its packet, from 0. Sequence numbers rise
//! by one per packet from one gateway to another, and from one gateway in one partition; packets to
//! all have 0, or, where they are sealed, numbers of their own.
use super::store::Incarnation;
use crate::ids::{CHANNEL_BYTES_MAX, USER_ID_BYTES_MAX, is_valid_channel, is_valid_user_id};
use crate::wire::framing::Framing;
use crate::wire::ws::server_frame;

/// Version of packets whose bodies are WebSocket frames, and of those that have none.
pub const FRAMES: u8 = 1;

/// The same, with a tag behind it.
pub const SEALED_FRAMES: u8 = 2;

/// Version of packets with bodies as they are.
pub const BODIES: u8 = 3;

/// The same, with a tag behind it.
pub const SEALED_BODIES: u8 = 4;

/// No packet is taken for the store's own.
const _: () = assert!(super::store::PROBE < FRAMES);

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
    /// For gateways that do not read bodies.
    frames: bool,
}

impl PacketBuilder {
    fn begin(&mut self, origin: Origin<'_>) {
        if self.bytes.is_empty() {
            self.bytes.push(FRAMES);
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

    fn body(&mut self, body: &[u8]) {
        let header = Framing::WebSocketText.header(body.len());
        let header = if self.frames { header.as_slice() } else { &[] };
        if let (false, Some(version)) = (self.frames, self.bytes.first_mut()) {
            *version = BODIES;
        }
        let len = header.len() + body.len();
        self.bytes.extend_from_slice(&(len as u32).to_le_bytes());
        self.bytes.extend_from_slice(header);
        self.bytes.extend_from_slice(body);
    }

    fn indexes(&mut self, indexes: &[u16]) {
        self.bytes.extend_from_slice(&(indexes.len() as u16).to_le_bytes());
        for index in indexes {
            self.bytes.extend_from_slice(&index.to_le_bytes());
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

    /// Adds a message and returns its index.
    pub fn message(&mut self, origin: Origin<'_>, to: &str, body: &[u8], wants_confirm: bool) -> u16 {
        self.begin(origin);
        self.bytes.push(MESSAGE);
        self.bytes.push(if wants_confirm { WANTS_CONFIRM } else { 0 });
        self.short_text(to);
        self.body(body);
        self.messages += 1;
        self.messages - 1
    }

    /// Adds a publication.
    pub fn publication(&mut self, origin: Origin<'_>, channel: &str, body: &[u8]) {
        self.begin(origin);
        self.bytes.push(PUBLICATION);
        self.short_text(channel);
        self.body(body);
        self.messages += 1;
    }

    /// Adds what became of a packet of the other gateway.
    pub fn confirm(&mut self, origin: Origin<'_>, confirm: &Confirm) {
        self.begin(origin);
        self.bytes.push(CONFIRM);
        self.bytes.extend_from_slice(&confirm.sequence.to_le_bytes());
        self.bytes.push(if confirm.refused { REFUSED } else { 0 });
        self.indexes(&confirm.missed);
        self.indexes(&confirm.failed);
    }

    /// Adds a message for every connection.
    pub fn broadcast(&mut self, origin: Origin<'_>, body: &[u8]) {
        self.begin(origin);
        self.bytes.push(BROADCAST);
        self.body(body);
    }

    /// Adds the wish to close all connections of a user.
    pub fn close_user(&mut self, origin: Origin<'_>, user: &str, code: u16) {
        self.begin(origin);
        self.bytes.push(CLOSE_USER);
        self.bytes.extend_from_slice(&code.to_le_bytes());
        self.short_text(user);
    }

    /// Adds the wish to end the subscriptions of a user to a channel. Not to a packet that holds
    /// something else.
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

    fn item(&mut self, origin: Origin<'_>, item: &PacketItem<'_>) {
        match *item {
            PacketItem::Message {
                to,
                body,
                wants_confirm,
            } => {
                self.message(origin, to, body, wants_confirm);
            }
            PacketItem::Confirm(ref confirm) => self.confirm(origin, confirm),
            PacketItem::Broadcast { body } => self.broadcast(origin, body),
            PacketItem::CloseUser { user, code } => self.close_user(origin, user, code),
            PacketItem::EndSubscription { user, channel } => self.end_subscription(origin, user, channel),
            PacketItem::Probe { nonce } => self.probe(origin, nonce),
            PacketItem::Look => self.look(origin),
            PacketItem::Challenge => self.challenge(origin),
            PacketItem::Publication { channel, body } => self.publication(origin, channel, body),
        }
    }

    /// The packet, to be sealed.
    pub fn close(self, sequence: u32) -> Vec<u8> {
        let mut bytes = self.bytes;
        if let Some(number) = bytes.get_mut(1..5) {
            number.copy_from_slice(&sequence.to_le_bytes());
        }
        bytes
    }
}

/// The same packet as gateways read it that know frames only.
pub fn for_older_gateways(packet: Vec<u8>) -> Vec<u8> {
    let Ok(mut read) = Packet::read(&packet) else {
        return packet;
    };
    let mut older = PacketBuilder {
        frames: true,
        ..PacketBuilder::default()
    };
    while let Ok(Some(item)) = read.next_item() {
        older.item(read.origin, &item);
    }
    older.close(read.sequence)
}

/// What became of the messages of a packet. Those that are not named were taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Confirm {
    /// The packet.
    pub sequence: u32,
    /// It was not looked at: it came behind a later one.
    pub refused: bool,
    /// Indexes of messages whose receiver was not there.
    pub missed: Vec<u16>,
    /// Indexes of messages that could not be carried out.
    pub failed: Vec<u16>,
}

/// One item of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "described at the top")]
pub enum PacketItem<'a> {
    Message {
        to: &'a str,
        body: &'a [u8],
        wants_confirm: bool,
    },
    Confirm(Confirm),
    Broadcast {
        body: &'a [u8],
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
        body: &'a [u8],
    },
}

/// Why a packet was not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Of another version of the gateway.
    #[error("version {0} of packets, {FRAMES} to {SEALED_BODIES} are understood")]
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
    /// Its bodies are frames.
    frames: bool,
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

    /// `frames`: it is in a frame. One in bytes that are no frame is empty, and no body of a
    /// message is.
    fn body(&mut self, frames: bool) -> Result<&'a [u8], PacketError> {
        let len = u32::from_le_bytes(self.array()?);
        let bytes = self.take(len as usize)?;
        Ok(match frames {
            true => server_frame::text_payload(bytes).unwrap_or_default(),
            false => bytes,
        })
    }

    fn indexes(&mut self) -> Result<Vec<u16>, PacketError> {
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
        let frames = match rest.byte()? {
            FRAMES | SEALED_FRAMES => true,
            BODIES | SEALED_BODIES => false,
            other => return Err(PacketError::Version(other)),
        };
        let sequence = u32::from_le_bytes(rest.array()?);
        let incarnation = Incarnation(u64::from_le_bytes(rest.array()?));
        let id = rest.short_text()?;
        Ok(Packet {
            origin: Origin { id, incarnation },
            sequence,
            frames,
            rest,
        })
    }

    /// The next item.
    ///
    /// # Errors
    /// The rest of the packet makes no sense.
    pub fn next_item(&mut self) -> Result<Option<PacketItem<'a>>, PacketError> {
        let frames = self.frames;
        let rest = &mut self.rest;
        if rest.0.is_empty() {
            return Ok(None);
        }
        let item = match rest.byte()? {
            MESSAGE => PacketItem::Message {
                wants_confirm: rest.byte()? & WANTS_CONFIRM != 0,
                to: rest.user()?,
                body: rest.body(frames)?,
            },
            CONFIRM => PacketItem::Confirm(Confirm {
                sequence: u32::from_le_bytes(rest.array()?),
                refused: rest.byte()? & REFUSED != 0,
                missed: rest.indexes()?,
                failed: rest.indexes()?,
            }),
            BROADCAST => PacketItem::Broadcast {
                body: rest.body(frames)?,
            },
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
                body: rest.body(frames)?,
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
        assert_eq!(packet.message(ME, "bob", b"body", true), 0);
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
                    body: b"body",
                    wants_confirm: true
                },
                PacketItem::Message {
                    to: &long_name,
                    body: &[7; 70_000],
                    wants_confirm: false
                },
                PacketItem::Confirm(Confirm {
                    sequence: 9,
                    refused: true,
                    missed: vec![1, 65_535],
                    failed: vec![]
                }),
                PacketItem::Broadcast { body: b"all" },
                PacketItem::CloseUser {
                    user: "carol",
                    code: 3503
                },
                PacketItem::Probe { nonce: 42 },
                PacketItem::Look,
                PacketItem::Challenge,
                PacketItem::Publication {
                    channel: "room",
                    body: b"published"
                },
            ]
        );
    }

    /// What a gateway before version 3 wrote: kept as it was.
    const OLDER: &[u8] = include_bytes!("testdata/packet-1.bin");

    /// The same, as this version builds it.
    fn as_now() -> Vec<u8> {
        let origin = Origin { id: "gw-old", ..ME };
        let message = |content: &str| {
            format!(
                r#"{{"type":"message","id":"01920000-0000-7000-8000-000000000001","from":"alice","to":"bob","content":{content},"ts":1700000000000}}"#
            )
        };
        let long = format!("\"{}\"", "x".repeat(200));
        let mut packet = PacketBuilder::default();
        packet.message(origin, "bob", message("1").as_bytes(), true);
        packet.message(origin, "bob", message(&long).as_bytes(), false);
        packet.message(origin, "bob", b"{}", false);
        let confirm = Confirm {
            sequence: 9,
            refused: false,
            missed: vec![1],
            failed: vec![2, 3],
        };
        packet.confirm(origin, &confirm);
        packet.broadcast(
            origin,
            br#"{"type":"broadcast","id":"01920000-0000-7000-8000-000000000001","content":{"all":true},"ts":1700000000000}"#,
        );
        packet.close_user(origin, "carol", 3503);
        packet.look(origin);
        packet.publication(
            origin,
            "room",
            br#"{"type":"publication","channel":"room","id":"01920000-0000-7000-8000-000000000001","from":"alice","content":[1,2],"ts":1700000000000}"#,
        );
        packet.close(77)
    }

    fn items(bytes: &[u8]) -> Vec<PacketItem<'_>> {
        let mut packet = Packet::read(bytes).unwrap();
        assert_eq!((packet.origin.id, packet.sequence), ("gw-old", 77));
        std::iter::from_fn(|| packet.next_item().unwrap()).collect()
    }

    /// Never delete this: a cluster is upgraded gateway by gateway.
    #[test]
    fn older_gateways_are_understood_and_understand() {
        let now = as_now();
        assert_eq!((OLDER[0], now[0]), (FRAMES, BODIES));
        assert_eq!(items(OLDER), items(&now));
        assert_eq!(items(&now).len(), 8);
        assert_eq!(for_older_gateways(now), OLDER);
        assert_eq!(for_older_gateways(OLDER.to_vec()), OLDER);
    }

    /// A gateway that joins says "look" before the others know what it reads.
    #[test]
    fn packets_without_a_body_are_as_they_always_were() {
        let mut packet = PacketBuilder::default();
        packet.look(ME);
        packet.challenge(ME);
        packet.confirm(ME, &Confirm::default());
        packet.close_user(ME, "carol", 3503);
        assert_eq!(packet.close(1)[0], FRAMES);
    }

    #[test]
    fn bytes_that_are_no_frame_are_no_body() {
        for bad in [
            &b""[..],
            b"no frame",
            b"\x88\x00",
            b"\x81\x02{}\x81\x02{}",
            b"\x81\x7e\x00\x02{}",
        ] {
            let mut packet = PacketBuilder::default();
            packet.broadcast(ME, bad);
            let mut bytes = packet.close(0);
            bytes[0] = FRAMES;
            let mut packet = Packet::read(&bytes).unwrap();
            assert_eq!(
                packet.next_item(),
                Ok(Some(PacketItem::Broadcast { body: b"" })),
                "{bad:?}"
            );
            assert_eq!(packet.next_item(), Ok(None));
        }
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
        assert_eq!(Packet::read(&[5, 0, 0]).unwrap_err(), PacketError::Version(5));
        assert_eq!(Packet::read(&[]).unwrap_err(), PacketError::Malformed);
    }

    proptest! {
        /// Whatever comes, reading ends, and what is cut off is not taken for whole.
        #[test]
        fn survives_anything(mut bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..400) {
            if let Some(first) = bytes.first_mut() { *first = BODIES; }
            for bytes in [&bytes[..], &sample()[..cut.min(sample().len() - 1)]] {
                if let Ok(mut packet) = Packet::read(bytes) {
                    while let Ok(Some(_)) = packet.next_item() {}
                }
            }
        }
    }
}
