//! The client's side of RFC 6455, as far as a load generator needs it.
//!
//! Duty: bytes in, frames out, and the other way round. Pure: no sockets, no clock. It is strict
//! about what a server may not do (masked frames, reserved bits, fragmented control frames),
//! because a lenient generator hides bugs. It does not reassemble fragments: the gateway sends
//! every message as one frame.

/// The key that every connection sends. One key for all is fine for a generator: it proves that the
/// server computed the answer, and lets it be checked by comparing bytes.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The answer to [`KEY`], from the example of RFC 6455, section 1.3.
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// The mask of every frame. Fixed, since nothing between here and the server needs protection from
/// our bytes, and not zero, so that a server cannot skip the work.
pub(crate) const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
/// A response head longer than this is not one.
const HEAD_BYTES_MAX: usize = 16 * 1024;

pub(crate) const TEXT: u8 = 1;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PONG: u8 = 10;

/// Writes the upgrade request for `path_and_query`.
pub(crate) fn write_request(out: &mut Vec<u8>, host: &str, path_and_query: &str) {
    for part in ["GET ", path_and_query, " HTTP/1.1\r\nHost: ", host] {
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: ");
    out.extend_from_slice(KEY.as_bytes());
    out.extend_from_slice(b"\r\nSec-WebSocket-Version: 13\r\n\r\n");
}

/// The server's answer to the upgrade request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Response {
    /// The head is not complete.
    Incomplete,
    /// Upgraded; so many bytes belong to the head.
    Upgraded(usize),
    /// Any other status, and the seconds of `Retry-After`.
    Refused(u16, Option<u32>),
    /// Not a response to our request, and why.
    Invalid(&'static str),
}

/// Looks at the head of a response.
pub(crate) fn parse_response(input: &[u8]) -> Response {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let head_bytes = match response.parse(input) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) if input.len() < HEAD_BYTES_MAX => {
            return Response::Incomplete;
        }
        Ok(httparse::Status::Partial) => return Response::Invalid("response head too long"),
        Err(_) => return Response::Invalid("not an HTTP response"),
    };
    let status = response.code.unwrap_or(0);
    if status != 101 {
        let retry = response
            .headers
            .iter()
            .find(|h| h.name.eq_ignore_ascii_case("retry-after"));
        let seconds = retry.and_then(|h| std::str::from_utf8(h.value).ok()?.trim().parse().ok());
        return Response::Refused(status, seconds);
    }
    let accepted = response
        .headers
        .iter()
        .any(|h| h.name.eq_ignore_ascii_case("sec-websocket-accept") && h.value == ACCEPT.as_bytes());
    if accepted {
        Response::Upgraded(head_bytes)
    } else {
        Response::Invalid("wrong Sec-WebSocket-Accept")
    }
}

/// One frame of the server, whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) opcode: u8,
    pub(crate) payload: &'a [u8],
    /// Header and payload.
    pub(crate) bytes: usize,
}

/// The first frame of `input`, `None` if it is not there whole.
///
/// # Errors
/// The server's violation of the protocol, in words.
pub(crate) fn parse_frame(input: &[u8]) -> Result<Option<Frame<'_>>, &'static str> {
    let &[first, second, ref rest @ ..] = input else {
        return Ok(None);
    };
    if second & 0x80 != 0 {
        return Err("masked frame from the server");
    }
    if first & 0x70 != 0 {
        return Err("reserved bits set");
    }
    if first & 0x80 == 0 || first & 0x0f == 0 {
        return Err("fragmented message");
    }
    let (header_bytes, payload_bytes) = match (second, rest) {
        (126, &[a, b, ..]) => (4, usize::from(u16::from_be_bytes([a, b]))),
        (127, &[a, b, c, d, e, f, g, h, ..]) => {
            let length = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
            (10, usize::try_from(length).map_err(|_| "frame too long")?)
        }
        (126 | 127, _) => return Ok(None),
        (length, _) => (2, usize::from(length)),
    };
    let bytes = payload_bytes.checked_add(header_bytes).ok_or("frame too long")?;
    Ok(input.get(header_bytes..bytes).map(|payload| Frame {
        opcode: first & 0x0f,
        payload,
        bytes,
    }))
}

/// Appends one masked frame and returns where its payload begins.
pub(crate) fn write_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) -> usize {
    out.push(0x80 | opcode);
    let length = payload.len();
    if length < 126 {
        out.push(0x80 | length as u8);
    } else if let Ok(short) = u16::try_from(length) {
        out.push(0x80 | 126);
        out.extend_from_slice(&short.to_be_bytes());
    } else {
        out.push(0x80 | 127);
        out.extend_from_slice(&(length as u64).to_be_bytes());
    }
    out.extend_from_slice(&MASK);
    let start = out.len();
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    start
}

/// The code of a close frame's payload; 1005 stands for none, as in the RFC.
pub(crate) fn close_code(payload: &[u8]) -> u16 {
    match payload {
        &[high, low, ..] => u16::from_be_bytes([high, low]),
        _ => 1005,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_found_at_every_split_point() {
        let head = format!("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n");
        for end in 0..head.len() {
            assert_eq!(parse_response(&head.as_bytes()[..end]), Response::Incomplete, "{end}");
        }
        let more = format!("{head}\u{1}\u{2}");
        assert_eq!(parse_response(more.as_bytes()), Response::Upgraded(head.len()));
        assert_eq!(
            parse_response(b"HTTP/1.1 503 Busy\r\n\r\n"),
            Response::Refused(503, None)
        );
        let later = b"HTTP/1.1 503 Busy\r\nretry-after: 7\r\n\r\n";
        assert_eq!(parse_response(later), Response::Refused(503, Some(7)));
        assert!(matches!(
            parse_response(b"HTTP/1.1 101 X\r\n\r\n"),
            Response::Invalid(_)
        ));
        assert!(matches!(parse_response(b"SSH-2.0"), Response::Invalid(_)));
    }

    #[test]
    fn frames_of_every_length_form_at_every_split_point() {
        for length in [0, 1, 125, 126, 200, 65535, 65536] {
            let mut wire = vec![0x81];
            match length {
                0..126 => wire.push(length as u8),
                126..65536 => {
                    wire.push(126);
                    wire.extend_from_slice(&(length as u16).to_be_bytes());
                }
                _ => {
                    wire.push(127);
                    wire.extend_from_slice(&(length as u64).to_be_bytes());
                }
            }
            let header = wire.len();
            wire.extend(std::iter::repeat_n(b'x', length));
            for end in (0..wire.len()).filter(|end| *end < header + 2 || *end + 2 > wire.len()) {
                assert_eq!(parse_frame(&wire[..end]), Ok(None), "{length} cut at {end}");
            }
            let frame = parse_frame(&wire).unwrap().unwrap();
            assert_eq!(
                (frame.opcode, frame.payload.len(), frame.bytes),
                (TEXT, length, wire.len())
            );
        }
    }

    #[test]
    fn what_a_server_may_not_send_is_refused() {
        for bad in [[0x81, 0x80], [0xc1, 0], [0x01, 0], [0x80, 0]] {
            assert!(parse_frame(&bad).is_err(), "{bad:02x?}");
        }
        assert!(parse_frame(&[0x82, 127, 255, 255, 255, 255, 255, 255, 255, 255]).is_err());
    }

    #[test]
    fn a_written_frame_is_masked() {
        let mut out = vec![];
        let start = write_frame(&mut out, TEXT, b"hello");
        assert_eq!(&out[..6], [0x81, 0x85, MASK[0], MASK[1], MASK[2], MASK[3]]);
        let plain: Vec<u8> = out[start..]
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(b, m)| b ^ m)
            .collect();
        assert_eq!(plain, b"hello");
    }
}
