//! One connection between a client and the gateway, as two kernels would hold it; and the gateway's
//! frames on it.

use std::collections::VecDeque;

/// Bytes and ends under way in both directions.
#[derive(Debug)]
pub struct Wire {
    /// Sent by the client, not yet received by the gateway.
    pub to_gateway: VecDeque<u8>,
    pub client_fin: bool,
    pub reset: bool,
    /// Sent by the gateway, not yet read by the client.
    pub to_client: VecDeque<u8>,
    pub gateway_fin: bool,
    /// How much fits between them when the client does not read.
    pub window: usize,
    /// Everything that the gateway's core queued, as it left for the engine.
    pub said: Stream,
    /// When something last reached the core, milliseconds; hand-overs count.
    pub last_seen_ms: u64,
    /// When the core last sent a ping, or opened the connection, milliseconds.
    pub watched_from_ms: u64,
}

impl Wire {
    pub fn new(window: usize, now_ms: u64) -> Self {
        Wire {
            to_gateway: VecDeque::new(),
            client_fin: false,
            reset: false,
            to_client: VecDeque::new(),
            gateway_fin: false,
            window,
            said: Stream::default(),
            last_seen_ms: now_ms,
            watched_from_ms: now_ms,
        }
    }

    /// True once the gateway has sent the client its identity.
    pub fn said_welcome(&self) -> bool {
        self.said.welcomed
    }

    pub fn room(&self) -> usize {
        self.window.saturating_sub(self.to_client.len())
    }
}

/// A whole frame or answer of the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A response head: its status.
    Head(u16),
    Text(String),
    Binary(Vec<u8>),
    Ping,
    Pong(Vec<u8>),
    Close(Option<u16>),
}

/// Takes what the gateway sends apart, and is strict about it.
#[derive(Debug, Default, Clone)]
pub struct Stream {
    bytes: Vec<u8>,
    pub status: Option<u16>,
    pub welcomed: bool,
    pub closed: Option<Option<u16>>,
    /// Bytes of a response's body that are still to come.
    body: usize,
}

impl Stream {
    /// True between `101` and a close frame.
    pub fn is_websocket(&self) -> bool {
        self.status == Some(101) && self.closed.is_none()
    }

    /// The whole frames so far.
    ///
    /// # Panics
    /// The gateway sent a forbidden frame.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Said> {
        self.bytes.extend_from_slice(bytes);
        let mut said = Vec::new();
        if !self.skip_body() {
            return said;
        }
        while self.status != Some(101) {
            let Some(end) = self.bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
                return said;
            };
            let head = String::from_utf8(self.bytes.drain(..end + 4).collect()).expect("a head in ASCII");
            let status = head
                .strip_prefix("HTTP/1.1 ")
                .and_then(|rest| rest.get(..3))
                .and_then(|status| status.parse().ok())
                .expect("a status line");
            let field = |line: &str| line.strip_prefix("content-length: ")?.parse::<usize>().ok();
            let body = head.to_ascii_lowercase().lines().find_map(field);
            self.status = Some(status);
            said.push(Said::Head(status));
            if status != 101 {
                self.body = body.unwrap_or(usize::MAX);
            }
            if !self.skip_body() {
                return said;
            }
        }
        while let Some((frame, len)) = Self::frame(&self.bytes) {
            assert!(self.closed.is_none(), "a frame behind the close frame: {frame:?}");
            self.bytes.drain(..len);
            match &frame {
                Said::Close(code) => self.closed = Some(*code),
                Said::Text(text) => self.welcomed |= text.starts_with(r#"{"type":"welcome""#),
                _ => {}
            }
            said.push(frame);
        }
        said
    }

    /// Takes what is there of a body. Returns true if nothing is missing.
    fn skip_body(&mut self) -> bool {
        let len = self.body.min(self.bytes.len());
        self.bytes.drain(..len);
        self.body -= len;
        self.body == 0
    }

    fn frame(bytes: &[u8]) -> Option<(Said, usize)> {
        let (&first, rest) = bytes.split_first()?;
        let (&second, rest) = rest.split_first()?;
        assert!(first & 0x80 != 0, "the gateway does not fragment");
        assert!(first & 0x70 == 0 && second & 0x80 == 0, "reserved bits or a mask");
        let (len, header) = match second {
            126 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), 4),
            127 => (u64::from_be_bytes(*rest.first_chunk()?) as usize, 10),
            short => (usize::from(short), 2),
        };
        assert!(
            (header == 2) == (len < 126) && (header == 10) == (len > 0xffff),
            "a length not in its shortest form"
        );
        let payload = bytes.get(header..header + len)?.to_vec();
        let said = match first & 0x0f {
            1 => Said::Text(String::from_utf8(payload).expect("text is UTF-8")),
            2 => Said::Binary(payload),
            8 => Said::Close(payload.first_chunk().map(|code| u16::from_be_bytes(*code))),
            9 => Said::Ping,
            10 => Said::Pong(payload),
            other => panic!("opcode {other}"),
        };
        Some((said, header + len))
    }
}
