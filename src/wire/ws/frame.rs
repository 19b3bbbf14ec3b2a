//! RFC 6455 frames as a server reads them: header, unmasking, fragments put together, UTF-8
//! checked.
//!
//! [`Decoder`] keeps nothing between whole messages (eight bytes, null): a connection that is idle
//! has no buffer. Bytes that arrive whole are unmasked in place and handed out from the receive
//! buffer; only what arrives in pieces is copied.
//!
//! Invariants: a payload is never handed out before it is whole, unmasked and, for text, valid
//! UTF-8; memory of one decoder stays under the message limit plus one header and one control
//! frame.

use super::close::{CloseReason, is_valid_peer_code};

/// The longest frame header of a client: 2 bytes, 8 of length, 4 of mask.
pub const HEADER_BYTES_MAX: usize = 14;
/// The longest payload of a control frame (RFC 6455, 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// What a frame carries (RFC 6455, 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// A further fragment.
    Continuation = 0,
    /// UTF-8 text.
    Text = 1,
    /// Bytes.
    Binary = 2,
    /// End of the connection.
    Close = 8,
    /// Are you there?
    Ping = 9,
    /// I am.
    Pong = 10,
}

impl Opcode {
    fn from_bits(bits: u8) -> Option<Opcode> {
        Some(match bits {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _ => return None,
        })
    }

    fn is_control(self) -> bool {
        self as u8 & 8 != 0
    }
}

/// Why a stream of frames cannot go on. The connection is closed with [`FrameError::close_reason`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// RFC 6455 was broken in the way that the text says.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// A text message or a close reason is not UTF-8.
    #[error("invalid UTF-8")]
    InvalidUtf8,
    /// A message is longer than the limit.
    #[error("message too big")]
    TooBig,
}

impl FrameError {
    /// The reason with which the connection is closed.
    pub fn close_reason(self) -> CloseReason {
        match self {
            FrameError::Protocol(_) => CloseReason::Protocol,
            FrameError::InvalidUtf8 => CloseReason::InvalidUtf8,
            FrameError::TooBig => CloseReason::TooBig,
        }
    }
}

/// The header of one client frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Last fragment of its message.
    pub fin: bool,
    /// What the frame carries.
    pub opcode: Opcode,
    /// Bytes of this header, mask included.
    pub header_bytes: usize,
    /// Bytes of payload that follow.
    pub payload_bytes: u64,
    /// The mask of the payload.
    pub mask: [u8; 4],
}

impl FrameHeader {
    /// Reads a header from the start of `bytes`; `None` while it is not whole.
    ///
    /// # Errors
    /// Everything that RFC 6455 forbids a client to send, told as early as the bytes allow.
    pub fn parse(bytes: &[u8]) -> Result<Option<FrameHeader>, FrameError> {
        let &[first, second, ref rest @ ..] = bytes else {
            return Ok(None);
        };
        if first & 0x70 != 0 {
            return Err(FrameError::Protocol("reserved bits without an extension"));
        }
        let opcode = Opcode::from_bits(first & 0x0f).ok_or(FrameError::Protocol("unknown opcode"))?;
        if second & 0x80 == 0 {
            return Err(FrameError::Protocol("client frame without a mask"));
        }
        let fin = first & 0x80 != 0;
        let short_len = second & 0x7f;
        if opcode.is_control() {
            if !fin {
                return Err(FrameError::Protocol("fragmented control frame"));
            }
            if usize::from(short_len) > CONTROL_BYTES_MAX {
                return Err(FrameError::Protocol("control frame over 125 bytes"));
            }
        }
        let (payload_bytes, len_bytes) = match short_len {
            126 => {
                let Some(len) = rest.first_chunk::<2>() else {
                    return Ok(None);
                };
                let len = u64::from(u16::from_be_bytes(*len));
                if len < 126 {
                    return Err(FrameError::Protocol("length not in its shortest form"));
                }
                (len, 2)
            }
            127 => {
                let Some(len) = rest.first_chunk::<8>() else {
                    return Ok(None);
                };
                let len = u64::from_be_bytes(*len);
                if len >> 63 != 0 {
                    return Err(FrameError::Protocol("length with its top bit set"));
                }
                if len <= u64::from(u16::MAX) {
                    return Err(FrameError::Protocol("length not in its shortest form"));
                }
                (len, 8)
            }
            len => (u64::from(len), 0),
        };
        let Some(&mask) = rest[len_bytes..].first_chunk::<4>() else {
            return Ok(None);
        };
        Ok(Some(FrameHeader {
            fin,
            opcode,
            header_bytes: 2 + len_bytes + 4,
            payload_bytes,
            mask,
        }))
    }
}

/// Unmasks (or masks) `payload` in place, eight bytes at a time.
pub fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// One whole thing that a client said.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// A ping with its payload.
    Ping(&'a [u8]),
    /// A pong; its payload does not matter to us.
    Pong,
    /// The peer closes, with a code if it gave one.
    Close(Option<u16>),
    /// A fragment, not the last, of a message that is not whole yet.
    Fragment,
}

/// Puts one connection's frames together. Owned by the connection's shard; null while nothing is
/// half-way.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
}

#[derive(Debug, Default)]
struct Partial {
    /// The bytes of a frame that is not whole yet, header included.
    raw: Vec<u8>,
    /// The fragments so far of a message, unmasked.
    message: Vec<u8>,
    /// What the fragments are, while a fragmented message is open.
    kind: Option<Opcode>,
    /// How much of `message` is known to be UTF-8.
    utf8_checked: usize,
}

impl Decoder {
    /// Begins to read `input`, which continues what earlier inputs left.
    pub fn read<'a>(&'a mut self, input: &'a mut [u8], message_bytes_max: usize) -> Reader<'a> {
        Reader {
            decoder: self,
            input,
            position: 0,
            message_bytes_max,
            consumed: Consumed::Nothing,
        }
    }

    /// Bytes of heap that this decoder holds.
    pub fn heap_bytes(&self) -> usize {
        self.partial
            .as_ref()
            .map_or(0, |p| size_of::<Partial>() + p.raw.capacity() + p.message.capacity())
    }
}

/// What the message handed out last was borrowed from, to be let go with the next call.
enum Consumed {
    Nothing,
    /// The frame in `Partial::raw`.
    Raw,
    /// The message in `Partial::message`.
    Fragments,
}

/// Hands out the messages in one input, one by one, and tells of each fragment that is not the last
/// of its message. When it gives `None`, all input is taken.
pub struct Reader<'a> {
    decoder: &'a mut Decoder,
    input: &'a mut [u8],
    position: usize,
    message_bytes_max: usize,
    consumed: Consumed,
}

impl Reader<'_> {
    /// The next whole message; `None` when the rest of the input has been put aside.
    ///
    /// # Errors
    /// After an error the stream has no meaning any more: close the connection.
    #[allow(
        clippy::should_implement_trait,
        reason = "a lending iterator: the message borrows from the reader"
    )]
    pub fn next(&mut self) -> Result<Option<Message<'_>>, FrameError> {
        self.let_go();
        // A frame that began in an earlier input is finished in `raw`; all others are read where
        // they lie.
        let (header, in_raw) = if self.decoder.partial.as_ref().is_some_and(|p| !p.raw.is_empty()) {
            match self.fill_raw()? {
                Some(header) => (header, true),
                None => return Ok(None),
            }
        } else {
            let rest = &self.input[self.position..];
            if rest.is_empty() {
                self.drop_empty_partial();
                return Ok(None);
            }
            match FrameHeader::parse(rest)? {
                Some(header) => {
                    let frame_bytes = self.check(&header)?;
                    if rest.len() < frame_bytes {
                        self.put_aside(frame_bytes);
                        return Ok(None);
                    }
                    (header, false)
                }
                None => {
                    self.put_aside(HEADER_BYTES_MAX);
                    return Ok(None);
                }
            }
        };
        // Lengths were checked against the limit, which is a usize.
        let frame_bytes = header.header_bytes + header.payload_bytes as usize;
        let start = self.position;
        if !in_raw {
            self.position += frame_bytes;
        }
        let kind = self.decoder.partial.as_ref().and_then(|p| p.kind);
        if header.opcode.is_control() || (header.fin && kind.is_none()) {
            if in_raw {
                self.consumed = Consumed::Raw;
            }
            let frame = match (in_raw, self.decoder.partial.as_mut()) {
                (true, Some(partial)) => &mut partial.raw[..],
                _ => &mut self.input[start..start + frame_bytes],
            };
            let payload = &mut frame[header.header_bytes..];
            unmask(payload, header.mask);
            return whole(header.opcode, payload).map(Some);
        }
        self.add_fragment(&header, start, in_raw)?;
        if header.fin {
            self.consumed = Consumed::Fragments;
            // The fragment was added to it just now.
            let Some(partial) = self.decoder.partial.as_ref() else {
                return Ok(None);
            };
            let message = &partial.message[..];
            return Ok(Some(if kind == Some(Opcode::Text) {
                Message::Text(std::str::from_utf8(message).map_err(|_| FrameError::InvalidUtf8)?)
            } else {
                Message::Binary(message)
            }));
        }
        Ok(Some(Message::Fragment))
    }

    /// From the next message on this is the limit.
    pub fn set_limit(&mut self, message_bytes_max: usize) {
        self.message_bytes_max = message_bytes_max;
    }

    /// The input behind the message handed out last.
    pub fn rest(&self) -> &[u8] {
        &self.input[self.position..]
    }

    /// Checks a header against the state of the stream; gives the bytes of the whole frame.
    fn check(&self, header: &FrameHeader) -> Result<usize, FrameError> {
        let partial = self.decoder.partial.as_deref();
        let open = partial.and_then(|p| p.kind);
        let before = match (header.opcode, open) {
            (Opcode::Continuation, None) => {
                return Err(FrameError::Protocol("continuation of nothing"));
            }
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(FrameError::Protocol("new message inside a fragmented one"));
            }
            (Opcode::Continuation, Some(_)) => partial.map_or(0, |p| p.message.len()),
            _ => 0,
        };
        let room = self.message_bytes_max.saturating_sub(before) as u64;
        if !header.opcode.is_control() && header.payload_bytes > room {
            return Err(FrameError::TooBig);
        }
        Ok(header.header_bytes + header.payload_bytes as usize)
    }

    /// Moves input into `raw` until the frame that lies there is whole.
    fn fill_raw(&mut self) -> Result<Option<FrameHeader>, FrameError> {
        loop {
            let Some(partial) = self.decoder.partial.as_deref() else {
                return Ok(None);
            };
            let parsed = FrameHeader::parse(&partial.raw)?;
            let wanted = match &parsed {
                Some(header) => self.check(header)?,
                // One more byte at a time: at most 14 times, and never past this frame's header.
                None => partial.raw.len() + 1,
            };
            let Some(partial) = self.decoder.partial.as_deref_mut() else {
                return Ok(None);
            };
            let missing = wanted - partial.raw.len();
            let rest = &self.input[self.position..];
            let taken = missing.min(rest.len());
            partial.raw.extend_from_slice(&rest[..taken]);
            self.position += taken;
            match parsed {
                Some(header) if taken == missing => return Ok(Some(header)),
                _ if taken < missing => return Ok(None),
                _ => {}
            }
        }
    }

    /// Keeps the rest of the input, the beginning of a frame of `frame_bytes`, for later.
    fn put_aside(&mut self, frame_bytes: usize) {
        let rest = &self.input[self.position..];
        let partial = self.decoder.partial.get_or_insert_default();
        // A peer that only announces a large frame gets no memory for it: double what really came,
        // up to the frame.
        partial.raw.reserve_exact(frame_bytes.min(2 * rest.len()));
        partial.raw.extend_from_slice(rest);
        self.position = self.input.len();
    }

    fn add_fragment(&mut self, header: &FrameHeader, start: usize, in_raw: bool) -> Result<(), FrameError> {
        let partial = self.decoder.partial.get_or_insert_default();
        if partial.kind.is_none() {
            partial.kind = Some(header.opcode);
        }
        let Partial {
            raw,
            message,
            kind,
            utf8_checked,
        } = &mut **partial;
        let frame_bytes = header.header_bytes + header.payload_bytes as usize;
        let frame = if in_raw {
            &mut raw[..]
        } else {
            &mut self.input[start..start + frame_bytes]
        };
        let payload = &mut frame[header.header_bytes..];
        unmask(payload, header.mask);
        message.extend_from_slice(payload);
        if in_raw {
            raw.clear();
        }
        if *kind == Some(Opcode::Text) {
            // Fail early: a code point may be cut by a fragment's end, but not be wrong.
            if let Err(error) = std::str::from_utf8(&message[*utf8_checked..]) {
                if error.error_len().is_some() || header.fin {
                    return Err(FrameError::InvalidUtf8);
                }
                *utf8_checked += error.valid_up_to();
            } else {
                *utf8_checked = message.len();
            }
        }
        Ok(())
    }

    /// Frees what the message handed out last was borrowed from.
    fn let_go(&mut self) {
        let Some(partial) = self.decoder.partial.as_deref_mut() else {
            return;
        };
        match std::mem::replace(&mut self.consumed, Consumed::Nothing) {
            Consumed::Nothing => {}
            Consumed::Raw => partial.raw.clear(),
            Consumed::Fragments => {
                partial.message = Vec::new();
                partial.kind = None;
                partial.utf8_checked = 0;
            }
        }
    }

    fn drop_empty_partial(&mut self) {
        if self
            .decoder
            .partial
            .as_ref()
            .is_some_and(|p| p.raw.is_empty() && p.kind.is_none())
        {
            self.decoder.partial = None;
        }
    }
}

fn whole(opcode: Opcode, payload: &[u8]) -> Result<Message<'_>, FrameError> {
    Ok(match opcode {
        Opcode::Text => Message::Text(std::str::from_utf8(payload).map_err(|_| FrameError::InvalidUtf8)?),
        Opcode::Binary => Message::Binary(payload),
        Opcode::Ping => Message::Ping(payload),
        Opcode::Pong => Message::Pong,
        Opcode::Close => Message::Close(parse_close(payload)?),
        Opcode::Continuation => return Err(FrameError::Protocol("continuation of nothing")),
    })
}

fn parse_close(payload: &[u8]) -> Result<Option<u16>, FrameError> {
    match payload {
        [] => Ok(None),
        [_] => Err(FrameError::Protocol("close payload of one byte")),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !is_valid_peer_code(code) {
                return Err(FrameError::Protocol("close code that may not be sent"));
            }
            std::str::from_utf8(reason).map_err(|_| FrameError::InvalidUtf8)?;
            Ok(Some(code))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    const LIMIT: usize = 1000;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload.len() {
            len @ 0..=125 => bytes.push(0x80 | len as u8),
            len @ 126..=0xffff => {
                bytes.push(0x80 | 126);
                bytes.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                bytes.push(0x80 | 127);
                bytes.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(&MASK);
        let mut masked = payload.to_vec();
        unmask(&mut masked, MASK);
        bytes.extend_from_slice(&masked);
        bytes
    }

    fn said(decoder: &mut Decoder, input: &[u8], out: &mut Vec<String>) -> Result<(), FrameError> {
        let mut input = input.to_vec();
        let mut reader = decoder.read(&mut input, LIMIT);
        while let Some(message) = reader.next()? {
            if message != Message::Fragment {
                out.push(format!("{message:?}"));
            }
        }
        Ok(())
    }

    fn decode_split(bytes: &[u8], cuts: &[usize]) -> Result<Vec<String>, FrameError> {
        let mut decoder = Decoder::default();
        let mut out = Vec::new();
        let mut start = 0;
        for &cut in cuts.iter().chain([&bytes.len()]) {
            said(&mut decoder, &bytes[start..cut], &mut out)?;
            start = cut;
        }
        assert_eq!(decoder.heap_bytes(), 0, "an idle decoder holds nothing");
        Ok(out)
    }

    /// The examples of RFC 6455, 5.7 that a client may send.
    #[test]
    fn rfc_examples() {
        let masked_hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(decode_split(&masked_hello, &[]).unwrap(), ["Text(\"Hello\")"]);
        let masked_pong = [0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(decode_split(&masked_pong, &[]).unwrap(), ["Pong"]);
        let unmasked = [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f];
        assert_eq!(
            decode_split(&unmasked, &[]),
            Err(FrameError::Protocol("client frame without a mask"))
        );
    }

    fn conversation() -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(frame(0x81, b"hi"));
        bytes.extend(frame(0x01, "frag \u{e4}".as_bytes()));
        bytes.extend(frame(0x89, b"are you there"));
        bytes.extend(frame(0x00, &"\u{20ac}".as_bytes()[..1]));
        bytes.extend(frame(0x8a, b""));
        bytes.extend(frame(0x80, &"\u{20ac}".as_bytes()[1..]));
        bytes.extend(frame(0x82, &[7; 300]));
        bytes.extend(frame(0x88, &[0x03, 0xe8, b'o', b'k']));
        bytes
    }

    #[test]
    fn every_split_point_gives_the_same() {
        let bytes = conversation();
        let whole = decode_split(&bytes, &[]).unwrap();
        assert_eq!(whole.len(), 6);
        assert_eq!(whole[2], "Pong");
        assert_eq!(whole[3], "Text(\"frag ä€\")");
        // Miri is a thousand times slower.
        for cut in (0..=bytes.len()).step_by(if cfg!(miri) { 19 } else { 1 }) {
            assert_eq!(decode_split(&bytes, &[cut]).unwrap(), whole, "cut at {cut}");
        }
        let every: Vec<usize> = (1..bytes.len()).collect();
        assert_eq!(decode_split(&bytes, &every).unwrap(), whole);
    }

    #[test]
    fn what_a_client_may_not_send() {
        let cases: [(&[u8], FrameError); 9] = [
            (
                &[0xc1, 0x80],
                FrameError::Protocol("reserved bits without an extension"),
            ),
            (&[0x83, 0x80], FrameError::Protocol("unknown opcode")),
            (&[0x09, 0x80], FrameError::Protocol("fragmented control frame")),
            (&[0x89, 0xfe], FrameError::Protocol("control frame over 125 bytes")),
            (
                &[0x80, 0x80, 0, 0, 0, 0],
                FrameError::Protocol("continuation of nothing"),
            ),
            (
                &[0x81, 0xfe, 0, 125],
                FrameError::Protocol("length not in its shortest form"),
            ),
            (
                &[0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
                FrameError::Protocol("length not in its shortest form"),
            ),
            (
                &[0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0],
                FrameError::Protocol("length with its top bit set"),
            ),
            (&[0x81, 0xfe, 0x03, 0xe9, 0, 0, 0, 0], FrameError::TooBig),
        ];
        for (bytes, error) in cases {
            assert_eq!(decode_split(bytes, &[]), Err(error), "{bytes:x?}");
        }
    }

    /// Each frame is told of once, whatever it is a part of: so each can be counted.
    #[test]
    fn fragments_are_told_of() {
        let mut bytes = [frame(0x01, b""), frame(0x00, b"").repeat(3), frame(0x80, b"end")].concat();
        let mut decoder = Decoder::default();
        let mut reader = decoder.read(&mut bytes, LIMIT);
        for _ in 0..4 {
            assert_eq!(reader.next(), Ok(Some(Message::Fragment)));
        }
        assert_eq!(reader.next(), Ok(Some(Message::Text("end"))));
        assert_eq!(reader.next(), Ok(None));
    }

    /// Who is let in by the first message may send a longer second one in the same packet.
    #[test]
    fn the_limit_may_change_between_messages() {
        let mut bytes = [frame(0x81, b"short"), frame(0x81, &[b'x'; 50])].concat();
        let mut decoder = Decoder::default();
        let mut reader = decoder.read(&mut bytes, 10);
        assert_eq!(reader.next(), Ok(Some(Message::Text("short"))));
        reader.set_limit(50);
        assert!(matches!(reader.next(), Ok(Some(Message::Text(text))) if text.len() == 50));
    }

    #[test]
    fn limit_counts_all_fragments() {
        let mut bytes = frame(0x02, &[0; 600]);
        bytes.extend(frame(0x80, &[0; 400]));
        assert!(decode_split(&bytes, &[]).is_ok());
        let mut bytes = frame(0x02, &[0; 600]);
        bytes.extend(frame(0x80, &[0; 401]));
        assert_eq!(decode_split(&bytes, &[]), Err(FrameError::TooBig));
    }

    #[test]
    fn invalid_utf8_is_told_at_the_fragment_that_has_it() {
        let mut decoder = Decoder::default();
        let mut out = Vec::new();
        let error = said(&mut decoder, &frame(0x01, b"\xce\xba\xed\xa0\x80"), &mut out);
        assert_eq!(error, Err(FrameError::InvalidUtf8));
    }

    #[test]
    fn close_payloads() {
        assert_eq!(decode_split(&frame(0x88, b""), &[]).unwrap(), ["Close(None)"]);
        assert_eq!(
            decode_split(&frame(0x88, &[0x0f, 0xa0]), &[]).unwrap(),
            ["Close(Some(4000))"]
        );
        assert!(decode_split(&frame(0x88, &[3]), &[]).is_err());
        assert!(decode_split(&frame(0x88, &[0x03, 0xed]), &[]).is_err());
        assert_eq!(
            decode_split(&frame(0x88, &[0x03, 0xe8, 0xff]), &[]),
            Err(FrameError::InvalidUtf8)
        );
    }

    #[test]
    fn an_announced_length_gets_no_memory() {
        let mut decoder = Decoder::default();
        let mut input = frame(0x82, &[0; 1000])[..20].to_vec();
        assert!(decoder.read(&mut input, LIMIT).next().unwrap().is_none());
        assert!(decoder.heap_bytes() < 200, "{}", decoder.heap_bytes());
    }

    proptest! {
        #[test]
        fn any_split_of_any_frames(
            payloads in prop::collection::vec((0u8..3, "[a-zä€😀]{0,60}"), 1..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut bytes = Vec::new();
            for (kind, text) in &payloads {
                let first = match kind { 0 => 0x81, 1 => 0x82, _ => 0x89 };
                bytes.extend(frame(first, &text.as_bytes()[..text.len().min(if first == 0x89 { 125 } else { 999 })]));
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|i| i.index(bytes.len())).collect();
            cuts.sort_unstable();
            prop_assert_eq!(decode_split(&bytes, &cuts), decode_split(&bytes, &[]));
        }

        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::default();
            let mut out = Vec::new();
            let _ = said(&mut decoder, &bytes, &mut out);
        }

        #[test]
        fn unmask_is_its_own_inverse(mut bytes in prop::collection::vec(any::<u8>(), 0..70), mask: [u8; 4]) {
            let before = bytes.clone();
            let expected: Vec<u8> = bytes.iter().enumerate().map(|(i, b)| b ^ mask[i % 4]).collect();
            unmask(&mut bytes, mask);
            prop_assert_eq!(&bytes, &expected);
            unmask(&mut bytes, mask);
            prop_assert_eq!(bytes, before);
        }
    }
}
