//! A blocking WebSocket and HTTP client that sends the bytes it is given, right or wrong.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection};
use serde_json::Value;

use super::{ACCEPT, DEADLINE, KEY};

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// One frame of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).unwrap()
    }

    pub fn close_code(&self) -> Option<u16> {
        assert_eq!(self.opcode, CLOSE, "{self:?}");
        self.payload.first_chunk().map(|code| u16::from_be_bytes(*code))
    }
}

/// An HTTP response; the body is read by its `Content-Length`.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut values = self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} twice in {self:?}");
        value
    }

    /// The seconds of `Retry-After`.
    #[track_caller]
    pub fn retry_after(&self) -> u64 {
        let value = self
            .field("retry-after")
            .unwrap_or_else(|| panic!("no Retry-After: {self:?}"));
        value.parse().unwrap()
    }
}

/// Percent-encodes everything but letters and digits.
pub fn url_encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The request head of a handshake that is in order; `extra_fields` end in CRLF.
pub fn upgrade_head(path: &str, extra_fields: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{extra_fields}\r\n"
    )
}

/// The bytes of a masked frame; `first` is FIN, reserved bits and opcode.
pub fn frame_bytes(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..=125 => bytes.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend((len as u16).to_be_bytes());
        }
        len => {
            bytes.push(0x80 | 127);
            bytes.extend((len as u64).to_be_bytes());
        }
    }
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// The bytes of a masked text frame.
pub fn text_bytes(text: &str) -> Vec<u8> {
    frame_bytes(0x80 | TEXT, text.as_bytes())
}

pub struct Client {
    pub stream: TcpStream,
    pub tls: Option<Box<ClientConnection>>,
    /// The stream ended as it should: with `close_notify` where it is TLS.
    pub ended_well: bool,
    buffer: Vec<u8>,
    ended: bool,
}

impl Client {
    #[track_caller]
    pub fn connect(addr: SocketAddr) -> Client {
        let stream = TcpStream::connect_timeout(&addr, DEADLINE).unwrap();
        Client::new(stream)
    }

    /// A client with a receive buffer this small, so that it is a slow consumer soon.
    pub fn connect_with_receive_buffer(addr: SocketAddr, bytes: usize) -> Client {
        let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(bytes).unwrap();
        socket.connect_timeout(&addr.into(), DEADLINE).unwrap();
        Client::new(socket.into())
    }

    /// A client at this address of the loopback network.
    pub fn connect_from(source: [u8; 4], addr: SocketAddr) -> Client {
        let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
        socket.connect_timeout(&addr.into(), DEADLINE).unwrap();
        Client::new(socket.into())
    }

    fn new(stream: TcpStream) -> Client {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Client {
            stream,
            tls: None,
            ended_well: false,
            buffer: Vec::new(),
            ended: false,
        }
    }

    /// Speaks TLS from now on: after the handshake, or why it failed.
    pub fn try_over_tls(mut self, config: Arc<ClientConfig>) -> std::io::Result<Client> {
        let name = self.stream.peer_addr()?.ip().into();
        let mut tls = ClientConnection::new(config, name).unwrap();
        while tls.is_handshaking() || tls.wants_write() {
            tls.complete_io(&mut self.stream)?;
        }
        self.tls = Some(Box::new(tls));
        Ok(self)
    }

    #[track_caller]
    pub fn over_tls(self, config: Arc<ClientConfig>) -> Client {
        self.try_over_tls(config).unwrap()
    }

    fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.tls {
            None => self.stream.write_all(bytes),
            Some(tls) => {
                let mut stream = rustls::Stream::new(&mut **tls, &mut self.stream);
                stream.write_all(bytes)?;
                stream.flush()
            }
        }
    }

    fn try_read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        match &mut self.tls {
            None => self.stream.read(into),
            Some(tls) => rustls::Stream::new(&mut **tls, &mut self.stream).read(into),
        }
    }

    #[track_caller]
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap();
    }

    /// Sends what may arrive at a socket that the gateway has closed meanwhile.
    pub fn send_carelessly(&mut self, bytes: &[u8]) {
        let _ = self.try_send(bytes);
    }

    /// Sends byte after byte, each in a packet of its own as far as the kernel goes along.
    #[track_caller]
    pub fn send_in_pieces(&mut self, bytes: &[u8], cuts: &[usize]) {
        let mut start = 0;
        for &cut in cuts.iter().chain([&bytes.len()]) {
            self.send_raw(&bytes[start..cut]);
            start = cut;
            std::thread::yield_now();
        }
    }

    #[track_caller]
    pub fn send_upgrade(&mut self, path: &str, extra_fields: &str) {
        self.send_raw(upgrade_head(path, extra_fields).as_bytes());
    }

    #[track_caller]
    pub fn send_frame(&mut self, first: u8, payload: &[u8]) {
        self.send_raw(&frame_bytes(first, payload));
    }

    #[track_caller]
    pub fn send_text(&mut self, text: &str) {
        self.send_raw(&text_bytes(text));
    }

    #[track_caller]
    pub fn send_json(&mut self, value: &Value) {
        self.send_text(&value.to_string());
    }

    #[track_caller]
    pub fn send_close(&mut self, code: u16) {
        self.send_frame(0x80 | CLOSE, &code.to_be_bytes());
    }

    /// Says `close_notify`, and nothing after it.
    pub fn send_close_notify(&mut self) {
        let tls = self.tls.as_mut().unwrap();
        tls.send_close_notify();
        while tls.wants_write() {
            tls.write_tls(&mut self.stream).unwrap();
        }
    }

    /// Ends the sending side.
    pub fn half_close(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Lets the socket go with a reset instead of a FIN.
    pub fn reset(self) {
        let socket = socket2::SockRef::from(&self.stream);
        let _ = socket.set_linger(Some(Duration::ZERO));
    }

    /// More bytes into the buffer; false at the end of the stream, also when it ends in a reset.
    #[track_caller]
    fn fill(&mut self) -> bool {
        if self.ended {
            return false;
        }
        let mut chunk = [0; 65536];
        loop {
            match self.try_read(&mut chunk) {
                Ok(0) => {
                    (self.ended, self.ended_well) = (true, true);
                    return false;
                }
                Ok(len) => {
                    self.buffer.extend_from_slice(&chunk[..len]);
                    return true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof
                    ) =>
                {
                    self.ended = true;
                    return false;
                }
                Err(error) => panic!(
                    "nothing came in time ({error}); unread: {:?}",
                    String::from_utf8_lossy(&self.buffer)
                ),
            }
        }
    }

    /// A response head, without a body.
    #[track_caller]
    pub fn read_head(&mut self) -> Response {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(
                self.fill(),
                "ended within a response head: {:?}",
                String::from_utf8_lossy(&self.buffer)
            );
        };
        let head = String::from_utf8(self.buffer.drain(..end).collect()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status_line = lines.next().unwrap();
        assert!(status_line.starts_with("HTTP/1."), "{status_line}");
        let status = status_line.split(' ').nth(1).unwrap().parse().unwrap();
        let fields = lines
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap();
                (name.to_owned(), value.trim().to_owned())
            })
            .collect();
        Response {
            status,
            fields,
            body: String::new(),
        }
    }

    /// Waits for bytes or the end; true if it was the end.
    #[track_caller]
    pub fn is_at_end(&mut self) -> bool {
        self.buffer.is_empty() && !self.fill()
    }

    /// A response head and the body that its `Content-Length` announces.
    #[track_caller]
    pub fn read_response(&mut self) -> Response {
        let mut response = self.read_head();
        let len = response.field("content-length").map_or(0, |len| len.parse().unwrap());
        while self.buffer.len() < len {
            assert!(self.fill(), "ended within the body of {response:?}");
        }
        response.body = String::from_utf8(self.buffer.drain(..len).collect()).unwrap();
        response
    }

    /// The next frame; `None` at the end of the stream.
    #[track_caller]
    pub fn try_recv_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, len)) = parse_frame(&self.buffer) {
                self.buffer.drain(..len);
                return Some(frame);
            }
            if !self.fill() {
                assert!(self.buffer.is_empty(), "ended within a frame: {:x?}", self.buffer);
                return None;
            }
        }
    }

    /// The next frame, however long it takes. `None` at the end of the stream, also for an end
    /// within a frame, as when a gateway is killed.
    pub fn next_frame(&mut self) -> Option<Frame> {
        self.stream.set_read_timeout(None).unwrap();
        loop {
            if let Some((frame, len)) = parse_frame(&self.buffer) {
                self.buffer.drain(..len);
                return Some(frame);
            }
            if !self.fill() {
                return None;
            }
        }
    }

    #[track_caller]
    pub fn recv_frame(&mut self) -> Frame {
        self.try_recv_frame()
            .expect("the stream ended, and a frame was expected")
    }

    /// The next frame that is no ping; pings are answered, as every client does.
    #[track_caller]
    pub fn recv(&mut self) -> Frame {
        // Pings alone would keep this going for ever.
        let until = std::time::Instant::now() + DEADLINE;
        loop {
            assert!(std::time::Instant::now() < until, "nothing but pings came");
            let frame = self.recv_frame();
            if frame.opcode != PING {
                return frame;
            }
            self.send_carelessly(&frame_bytes(0x80 | PONG, &frame.payload));
        }
    }

    /// The next text frame, as it came.
    #[track_caller]
    pub fn recv_text(&mut self) -> String {
        let frame = self.recv();
        assert_eq!(
            frame.opcode,
            TEXT,
            "{:?} {:?}",
            frame.opcode,
            String::from_utf8_lossy(&frame.payload)
        );
        String::from_utf8(frame.payload).unwrap()
    }

    #[track_caller]
    pub fn recv_json(&mut self) -> Value {
        let text = self.recv_text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The next frame must be an `error` with this code.
    #[track_caller]
    pub fn expect_error(&mut self, code: &str) -> Value {
        let frame = self.recv_json();
        assert_eq!(
            (&frame["type"], &frame["code"]),
            (&"error".into(), &code.into()),
            "{frame}"
        );
        assert!(
            frame["message"].as_str().is_some_and(|text| !text.is_empty()),
            "{frame}"
        );
        frame
    }

    /// Sends a request that is always answered, and expects that answer next. All frames before it
    /// were then carried out without a reply.
    #[track_caller]
    pub fn expect_silence(&mut self) {
        self.send_text(r#"{"type":"heartbeat"}"#);
        let frame = self.recv_json();
        assert_eq!(frame["type"], "heartbeat", "{frame}");
    }

    /// The next frame must be a close with this code and a reason; it is answered, and the stream
    /// must end.
    #[track_caller]
    pub fn expect_close(&mut self, code: u16) -> String {
        let frame = self.recv();
        self.check_close(&frame, code)
    }

    /// Like [`Client::expect_close`], after any number of other frames; these are given back.
    #[track_caller]
    pub fn expect_close_after_frames(&mut self, code: u16) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let frame = self.recv();
            if frame.opcode == CLOSE {
                self.check_close(&frame, code);
                return frames;
            }
            frames.push(frame);
        }
    }

    #[track_caller]
    fn check_close(&mut self, frame: &Frame, code: u16) -> String {
        assert_eq!(
            frame.opcode,
            CLOSE,
            "instead of close {code}: {:?}",
            String::from_utf8_lossy(&frame.payload)
        );
        let reason = String::from_utf8(frame.payload[2..].to_vec()).unwrap();
        assert_eq!(frame.close_code(), Some(code), "{reason}");
        assert!(code < 1000 || !reason.is_empty(), "a close of ours says why");
        self.send_carelessly(&frame_bytes(0x80 | CLOSE, &code.to_be_bytes()));
        self.expect_end();
        reason
    }

    /// Nothing more comes, and the stream ends.
    #[track_caller]
    pub fn expect_end(&mut self) {
        while self.fill() {}
        assert!(
            self.buffer.is_empty(),
            "unexpected: {:?}",
            String::from_utf8_lossy(&self.buffer)
        );
    }

    /// Reads to the end of the stream.
    #[track_caller]
    pub fn read_to_end(&mut self) -> String {
        while self.fill() {}
        String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned()
    }

    /// Says goodbye and waits for the gateway's.
    #[track_caller]
    pub fn close(mut self) {
        self.send_close(1000);
        loop {
            let frame = self.recv();
            if frame.opcode == CLOSE {
                assert_eq!(frame.close_code(), Some(1000));
                self.expect_end();
                return;
            }
        }
    }

    /// Sends a message and expects its ack, with this status, as the next frame.
    #[track_caller]
    pub fn send_message_expecting(&mut self, to: &str, content: &str, status: &str) -> String {
        let to = serde_json::to_string(to).unwrap();
        self.send_text(&format!(
            r#"{{"type":"message","to":{to},"content":{content},"id":"x"}}"#
        ));
        let ack = self.recv_json();
        assert_eq!(ack["type"], "ack", "{ack}");
        assert_eq!(ack["status"], status, "{ack}");
        ack["messageId"].as_str().unwrap().to_owned()
    }
}

/// A whole frame at the start of `bytes`, and how long it is. The server masks nothing, fragments
/// nothing and sets no reserved bit.
#[track_caller]
fn parse_frame(bytes: &[u8]) -> Option<(Frame, usize)> {
    let &[first, second, ref rest @ ..] = bytes else {
        return None;
    };
    assert_eq!(first & 0xf0, 0x80, "FIN and no reserved bit: {first:x}");
    assert_eq!(second & 0x80, 0, "a server must not mask");
    let (len, header) = match second {
        126 => (u64::from(u16::from_be_bytes(*rest.first_chunk()?)), 4),
        127 => (u64::from_be_bytes(*rest.first_chunk()?), 10),
        len => (u64::from(len), 2),
    };
    let len = header + len as usize;
    let payload = bytes.get(header..len)?.to_vec();
    let opcode = first & 0x0f;
    assert!([TEXT, BINARY, CLOSE, PING, PONG].contains(&opcode), "opcode {opcode}");
    Some((Frame { opcode, payload }, len))
}

/// A good answer to [`upgrade_head`].
#[track_caller]
pub fn assert_switched(response: &Response) {
    assert_eq!(response.status, 101, "{response:?}");
    assert!(response.field("upgrade").unwrap().eq_ignore_ascii_case("websocket"));
    assert!(response.field("connection").unwrap().eq_ignore_ascii_case("upgrade"));
    assert_eq!(response.field("sec-websocket-accept"), Some(ACCEPT));
}
