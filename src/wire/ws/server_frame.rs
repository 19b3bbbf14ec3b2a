//! Frames as a server sends them: whole, and not masked.
//!
//! Pure. The bytes of a frame are the same for every receiver.

use super::close::CloseReason;
use super::frame::Opcode;

/// Bytes of the longest header.
const HEADER_BYTES_MAX: usize = 10;

/// The header of an unfragmented, unmasked frame.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    bytes: [u8; HEADER_BYTES_MAX],
    len: u8,
}

impl Header {
    /// The header of a frame with so many bytes of payload.
    pub fn new(opcode: Opcode, payload_bytes: usize) -> Self {
        let mut bytes = [0; HEADER_BYTES_MAX];
        bytes[0] = 0x80 | opcode as u8;
        let len = match payload_bytes {
            0..=125 => {
                bytes[1] = payload_bytes as u8;
                2
            }
            126..=0xffff => {
                bytes[1] = 126;
                bytes[2..4].copy_from_slice(&(payload_bytes as u16).to_be_bytes());
                4
            }
            _ => {
                bytes[1] = 127;
                bytes[2..].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
                10
            }
        };
        Header { bytes, len }
    }

    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Bytes of the header with which these bytes, a frame of a [`Header`], begin.
pub fn header_bytes(frame: &[u8]) -> usize {
    match frame.get(1) {
        Some(126) => 4,
        Some(127) => 10,
        Some(_) => 2,
        None => 0,
    }
}

/// Appends a frame with this payload.
pub fn frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    out.extend_from_slice(Header::new(opcode, payload.len()).as_slice());
    out.extend_from_slice(payload);
}

/// Appends a close frame.
pub fn close(out: &mut Vec<u8>, reason: CloseReason) {
    let text = reason.text();
    out.extend_from_slice(Header::new(Opcode::Close, 2 + text.len()).as_slice());
    out.extend_from_slice(&reason.code().to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Appends the answer to a peer's close frame: its own code, or nothing if it gave none.
pub fn close_reply(out: &mut Vec<u8>, code: Option<u16>) {
    match code {
        Some(code) => frame(out, Opcode::Close, &code.to_be_bytes()),
        None => frame(out, Opcode::Close, &[]),
    }
}

/// The payload, if these bytes are one whole text frame as [`Header`] begins it: shortest length,
/// no mask. Other gateways of an earlier version send such frames over Redis, where others may
/// write too.
pub fn text_payload(frame: &[u8]) -> Option<&[u8]> {
    let payload = frame.get(header_bytes(frame)..)?;
    let header = Header::new(Opcode::Text, payload.len());
    frame.starts_with(header.as_slice()).then_some(payload)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes one frame apart with the library that our clients would use.
    fn open(bytes: &[u8]) -> &[u8] {
        use async_tungstenite::tungstenite::protocol::frame::FrameHeader;
        let mut cursor = std::io::Cursor::new(bytes);
        let (header, len) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
        assert!(header.is_final && header.mask.is_none());
        let payload = &bytes[cursor.position() as usize..];
        assert_eq!(payload.len() as u64, len);
        payload
    }

    #[test]
    fn every_size_of_header() {
        for size in [0, 1, 20, 70, 100, 125, 126, 1000, 65_000, 65_535, 65_536, 100_000] {
            let payload = vec![b'x'; size];
            let mut out = Vec::new();
            frame(&mut out, Opcode::Text, &payload);
            assert_eq!(open(&out), payload);
            assert_eq!(text_payload(&out), Some(&payload[..]), "{size}");
            assert_eq!(header_bytes(&out), out.len() - size);
        }
    }

    #[test]
    fn close_frames() {
        let mut out = Vec::new();
        close(&mut out, CloseReason::SlowConsumer);
        assert_eq!(&out[..4], &[0x88, 15, 0x0b, 0xc0]);
        assert_eq!(&out[4..], b"slow consumer");
        out.clear();
        close_reply(&mut out, None);
        assert_eq!(out, [0x88, 0]);
    }

    #[test]
    fn other_bytes_are_no_text_frame() {
        let mut good = Vec::new();
        frame(&mut good, Opcode::Text, b"{\"type\":\"message\"}");
        for cut in 0..good.len() {
            assert_eq!(text_payload(&good[..cut]), None, "{cut}");
        }
        let (mut masked, mut closing, mut long) = (good.clone(), good.clone(), good.clone());
        masked[1] |= 0x80;
        closing[0] = 0x88;
        long.splice(1..2, [126, 0, good[1]]);
        let mut huge = vec![0x81, 127];
        huge.extend(u64::MAX.to_be_bytes());
        for bad in [good.repeat(2), masked, closing, long, huge, b"frame".to_vec()] {
            assert_eq!(text_payload(&bad), None, "{bad:?}");
        }
    }

    proptest! {
        /// No byte of the header may be another one.
        #[test]
        fn another_header_is_refused(at in 0usize..2, to in any::<u8>()) {
            let mut bytes = Vec::new();
            frame(&mut bytes, Opcode::Text, b"[1,2,3]");
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            prop_assert_eq!(text_payload(&bytes), None);
        }
    }
}
