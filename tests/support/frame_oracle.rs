//! Our frame reader beside tungstenite's, on the same bytes. Shared by
//! `tests/differential_frames.rs` and `fuzz/`.
//!
//! Where the two may differ, and why. Everything else is a mismatch:
//!
//! 1. *We report a fault earlier.* A header that cannot be valid is refused when its byte arrives,
//!    and a message over the limit when its length does. tungstenite waits for the whole frame. So
//!    a frame that tungstenite still waits for is completed with zeros before the two are compared.
//! 2. *One frame with several faults.* Each reader may name any of them. The faults are listed here
//!    by a third, slow reading.
//! 3. *A length not in its shortest form* is a protocol error for us, as RFC 6455, 5.2 wants ("the
//!    minimal number of bytes MUST be used"); tungstenite takes it.
//! 4. *Close code 1014* (bad gateway) is in IANA's registry, and we take it; tungstenite calls it a
//!    protocol violation.
//!
//! Tungstenite turns a close code that may not be sent into a close frame `1002 "Protocol
//! violation"`; that is a failure here.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use async_tungstenite::tungstenite::error::{CapacityError, Error};
use async_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use async_tungstenite::tungstenite::{Message as TheirMessage, Utf8Bytes};
use shardgate::wire::ws::close::CloseReason;
use shardgate::wire::ws::frame::{CONTROL_BYTES_MAX, Decoder, Message};

/// One whole message or control frame; a pong's payload does not matter to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
}

/// The close code with which a stream fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Protocol,
    InvalidUtf8,
    TooBig,
}

/// A reader's events of a stream, up to its failure or to a close frame.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transcript {
    pub said: Vec<Said>,
    pub fault: Option<Fault>,
}

/// How two readings agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    /// In everything.
    Same,
    /// Both fail, once the frame is whole (1).
    ToldEarlier,
    /// Both fail, each for another fault of the same frame (2).
    OtherFault,
    /// Only we fail: a length not in its shortest form (3).
    LongLength,
    /// Only tungstenite fails: close code 1014 (4).
    BadGateway,
}

/// Cuts `bytes` at `cuts`, which need not be sorted.
pub fn split<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut edges: Vec<usize> = cuts.iter().map(|cut| (*cut).min(bytes.len())).collect();
    edges.extend([0, bytes.len()]);
    edges.sort_unstable();
    edges.windows(2).map(|edge| &bytes[edge[0]..edge[1]]).collect()
}

/// Our reading. Each chunk is one receive.
pub fn ours(chunks: &[&[u8]], message_bytes_max: usize) -> Transcript {
    let mut transcript = Transcript::default();
    let mut decoder = Decoder::default();
    for chunk in chunks {
        let mut input = chunk.to_vec();
        let mut reader = decoder.read(&mut input, message_bytes_max);
        loop {
            let said = match reader.next() {
                Ok(None) => break,
                Ok(Some(Message::Text(text))) => Said::Text(text.to_owned()),
                Ok(Some(Message::Binary(bytes))) => Said::Binary(bytes.to_vec()),
                Ok(Some(Message::Ping(payload))) => Said::Ping(payload.to_vec()),
                Ok(Some(Message::Pong)) => Said::Pong,
                // tungstenite reports its fragments as a whole only.
                Ok(Some(Message::Fragment)) => continue,
                Ok(Some(Message::Close(code))) => {
                    transcript.said.push(Said::Close(code));
                    return transcript;
                }
                Err(error) => {
                    transcript.fault = Some(match error.close_reason() {
                        CloseReason::Protocol => Fault::Protocol,
                        CloseReason::InvalidUtf8 => Fault::InvalidUtf8,
                        CloseReason::TooBig => Fault::TooBig,
                        other => panic!("not a fault of a frame: {other:?}"),
                    });
                    return transcript;
                }
            };
            transcript.said.push(said);
        }
    }
    transcript
}

/// Gives what was put in, then would block; swallows what is written.
#[derive(Default)]
struct Wire(VecDeque<u8>);

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.0.read(buffer)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The limit of a single frame that goes with a limit of messages: control frames do not count as
/// messages.
fn frame_bytes_max(message_bytes_max: usize) -> usize {
    message_bytes_max.max(CONTROL_BYTES_MAX)
}

/// Tungstenite's reading, with all its limits set.
pub fn theirs(chunks: &[&[u8]], message_bytes_max: usize) -> Transcript {
    let config = WebSocketConfig::default()
        .read_buffer_size(256)
        .write_buffer_size(0)
        .max_write_buffer_size(1 << 20)
        .max_message_size(Some(message_bytes_max))
        .max_frame_size(Some(frame_bytes_max(message_bytes_max)));
    let mut context = WebSocketContext::new(Role::Server, Some(config));
    let mut wire = Wire::default();
    let mut transcript = Transcript::default();
    for chunk in chunks {
        wire.0.extend(*chunk);
        loop {
            let said = match context.read(&mut wire) {
                Ok(TheirMessage::Text(text)) => Said::Text(text.to_string()),
                Ok(TheirMessage::Binary(bytes)) => Said::Binary(bytes.to_vec()),
                Ok(TheirMessage::Ping(payload)) => Said::Ping(payload.to_vec()),
                Ok(TheirMessage::Pong(_)) => Said::Pong,
                Ok(TheirMessage::Close(frame)) => {
                    let violation = Utf8Bytes::from_static("Protocol violation");
                    match frame {
                        Some(frame) if u16::from(frame.code) == 1002 && frame.reason == violation => {
                            transcript.fault = Some(Fault::Protocol);
                        }
                        frame => transcript.said.push(Said::Close(frame.map(|frame| frame.code.into()))),
                    }
                    return transcript;
                }
                Ok(TheirMessage::Frame(frame)) => panic!("a raw frame out of read(): {frame}"),
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    transcript.fault = Some(match error {
                        Error::Protocol(_) => Fault::Protocol,
                        Error::Utf8(_) => Fault::InvalidUtf8,
                        Error::Capacity(CapacityError::MessageTooLong { .. }) => Fault::TooBig,
                        other => panic!("an unexpected error: {other}"),
                    });
                    return transcript;
                }
            };
            transcript.said.push(said);
        }
    }
    transcript
}

/// The fault of the first faulty frame of a stream.
#[derive(Debug, Default)]
struct Survey {
    faults: Vec<Fault>,
    long_length: bool,
    bad_gateway: bool,
    /// The end of the frame. For a frame over the limit it is the end of its header, since the rest
    /// is not waited for.
    end: usize,
}

/// The third reading: slow, whole frames only, and it lists all faults instead of stopping at one.
/// Bytes that are missing from the last frame count as zeros.
fn survey(bytes: &[u8], message_bytes_max: usize) -> Survey {
    let mut start = 0;
    let mut message: Option<(bool, Vec<u8>)> = None;
    while start < bytes.len() {
        let byte = |at: usize| bytes.get(start + at).copied().unwrap_or(0);
        let mut faults = Vec::new();
        let (fin, reserved, opcode) = (byte(0) & 0x80 != 0, byte(0) & 0x70, byte(0) & 0x0f);
        let (masked, short) = (byte(1) & 0x80 != 0, byte(1) & 0x7f);
        let length_bytes = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let length = (2..2 + length_bytes).fold(0u64, |length, at| length << 8 | u64::from(byte(at)));
        let length = if length_bytes == 0 { u64::from(short) } else { length };
        let long_length = (length_bytes == 2 && length < 126) || (length_bytes == 8 && length < 65_536);
        let header_bytes = 2 + length_bytes + if masked { 4 } else { 0 };
        let control = opcode & 8 != 0;
        if reserved != 0 || !matches!(opcode, 0..=2 | 8..=10) || !masked || long_length || length >> 63 != 0 {
            faults.push(Fault::Protocol);
        }
        if control && (!fin || length > CONTROL_BYTES_MAX as u64) {
            faults.push(Fault::Protocol);
        }
        if !control && (opcode == 0) != message.is_some() {
            faults.push(Fault::Protocol);
        }
        let before = message.as_ref().map_or(0, |(_, bytes)| bytes.len() as u64);
        if length > frame_bytes_max(message_bytes_max) as u64
            || (!control && before.saturating_add(length) > message_bytes_max as u64)
        {
            faults.push(Fault::TooBig);
        }
        let mut end = start + header_bytes;
        let mut bad_gateway = false;
        if length <= frame_bytes_max(message_bytes_max) as u64 {
            let length = length as usize;
            end += length;
            let payload: Vec<u8> = (0..length)
                .map(|at| byte(header_bytes + at) ^ if masked { byte(2 + length_bytes + at % 4) } else { 0 })
                .collect();
            match opcode {
                8 if length == 1 => faults.push(Fault::Protocol),
                8 if length > 1 => {
                    let code = u16::from_be_bytes([payload[0], payload[1]]);
                    bad_gateway = code == 1014;
                    // RFC 6455, 7.4, and IANA's registry.
                    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                        faults.push(Fault::Protocol);
                    }
                    if std::str::from_utf8(&payload[2..]).is_err() {
                        faults.push(Fault::InvalidUtf8);
                    }
                }
                _ => {}
            }
            if !control {
                let (text, mut so_far) = message.take().unwrap_or((opcode == 1, Vec::new()));
                so_far.extend_from_slice(&payload);
                if text && let Err(error) = std::str::from_utf8(&so_far) {
                    // A code point may be cut by a fragment's end, not by the message's.
                    if fin || error.error_len().is_some() {
                        faults.push(Fault::InvalidUtf8);
                    }
                }
                if !fin {
                    message = Some((text, so_far));
                }
            }
        }
        if !faults.is_empty() || bad_gateway {
            return Survey {
                faults,
                long_length,
                bad_gateway,
                end,
            };
        }
        start = end;
    }
    Survey::default()
}

/// Reads `bytes`, cut at `cuts`, both ways.
///
/// # Errors
/// The two do not agree, and none of the reasons above allows it.
pub fn compare(bytes: &[u8], cuts: &[usize], message_bytes_max: usize) -> Result<Agreement, String> {
    let chunks = split(bytes, cuts);
    let our = ours(&chunks, message_bytes_max);
    let mut their = theirs(&chunks, message_bytes_max);
    if our == their {
        return Ok(Agreement::Same);
    }
    let survey = survey(bytes, message_bytes_max);
    let mut told_earlier = false;
    if our.fault.is_some() && their.fault.is_none() && survey.end > bytes.len() {
        let mut whole = bytes.to_vec();
        whole.resize(survey.end, 0);
        their = theirs(&split(&whole, cuts), message_bytes_max);
        told_earlier = true;
    }
    let mismatch = |why: &str| Err(format!("{why}\nours:   {our:?}\ntheirs: {their:?}\nsurvey: {survey:?}"));
    match (our.fault, their.fault) {
        // Tungstenite reads on, to whatever end.
        (Some(Fault::Protocol), _) if survey.long_length && their.said.starts_with(&our.said) => {
            Ok(Agreement::LongLength)
        }
        (Some(our_fault), Some(their_fault)) => {
            if our.said != their.said {
                return mismatch("both fail, but not at the same frame");
            }
            if !survey.faults.contains(&our_fault) || !survey.faults.contains(&their_fault) {
                return mismatch("a fault that the frame does not have");
            }
            Ok(if told_earlier {
                Agreement::ToldEarlier
            } else {
                Agreement::OtherFault
            })
        }
        // The peer's own words can be those that tungstenite uses for a violation.
        (None, Some(Fault::Protocol)) if our.said.last() == Some(&Said::Close(Some(1002))) => Ok(Agreement::Same),
        (None, Some(Fault::Protocol)) if survey.bad_gateway => {
            let (last, before) = our.said.split_last().ok_or("nothing said")?;
            if *last == Said::Close(Some(1014)) && before == their.said {
                Ok(Agreement::BadGateway)
            } else {
                mismatch("1014 was not what was said")
            }
        }
        _ => mismatch("they do not agree"),
    }
}

/// Builds client frames; `lengths` chooses how the length is written.
pub fn client_frame(first: u8, payload: &[u8], mask: Option<[u8; 4]>, length_bytes: Option<usize>) -> Vec<u8> {
    let mut frame = vec![first];
    let mask_bit = if mask.is_some() { 0x80 } else { 0 };
    let length_bytes = length_bytes.unwrap_or(match payload.len() {
        0..=125 => 0,
        126..=0xffff => 2,
        _ => 8,
    });
    match length_bytes {
        0 => frame.push(mask_bit | payload.len() as u8 & 0x7f),
        2 => {
            frame.push(mask_bit | 126);
            frame.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        }
        _ => {
            frame.push(mask_bit | 127);
            frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    if let Some(mask) = mask {
        frame.extend_from_slice(&mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    } else {
        frame.extend_from_slice(payload);
    }
    frame
}
