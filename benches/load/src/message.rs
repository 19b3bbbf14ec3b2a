//! Benchmark messages: one encoded frame whose numbers are patched, and the way back.
//!
//! Duty: the content of a message carries its sender, its index in the sender's sequence and its
//! due time. From those three the receiver knows losses, duplicates, order, misdelivery and
//! latency, without any table of messages in flight. Pure. All names of a run are equally long, so
//! one frame serves all connections of a thread and stays in its cache.
//!
//! Content: `SSSSSSSS` sequence, `UUUUUU` sender, `TTTTTTTTTTTTTT` intended time in nanoseconds of
//! the run's clock, all in hexadecimal, then letters up to the payload's size.

use crate::wire::{self, MASK};

const SEQUENCE_DIGITS: usize = 8;
const SENDER_DIGITS: usize = 6;
const TIME_DIGITS: usize = 14;
/// The shortest payload: the numbers alone.
pub(crate) const PAYLOAD_BYTES_MIN: usize = SEQUENCE_DIGITS + SENDER_DIGITS + TIME_DIGITS;
/// Users are numbered in so many bits.
pub(crate) const USERS_MAX: usize = 1 << (4 * SENDER_DIGITS);
/// Digits of a user's number in their name.
const NAME_DIGITS: usize = 8;
/// The prefix that tells channels from users.
const ROOM: &str = "room-";
const CONTENT_KEY: &[u8] = b"\"content\":\"";

/// The name of user `number`: all are equally long.
pub(crate) fn user_name(prefix: &str, number: u32) -> String {
    format!("{prefix}{number:0NAME_DIGITS$}")
}

/// The number in the name of a user with this prefix.
pub(crate) fn user_number(prefix: &str, name: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix).filter(|digits| digits.len() == NAME_DIGITS)?;
    digits.parse().ok()
}

/// The number in the name of a channel with this prefix.
pub(crate) fn channel_number(prefix: &str, name: &str) -> Option<u32> {
    user_number(ROOM, name.strip_prefix(prefix)?)
}

/// The name of channel `number`. The prefix is in it, so that generators beside each other do not
/// meet.
pub(crate) fn channel_name(prefix: &str, number: u32) -> String {
    user_name(&format!("{prefix}{ROOM}"), number)
}

/// The numbers of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) sequence: u32,
    pub(crate) sender: u32,
    /// Nanoseconds on the run's clock.
    pub(crate) intended_ns: u64,
}

/// An encoded, masked `message` or `publish` frame with gaps for the numbers. Owned by one
/// generator thread.
#[derive(Debug)]
pub(crate) struct Template {
    frame: Vec<u8>,
    /// Where the frame's payload begins: the mask's phase counts from there.
    payload_at: usize,
    to_at: usize,
    id_at: Option<usize>,
    content_at: usize,
    padding: Vec<u8>,
    /// Where the content was in the last message that arrived: servers are consistent.
    hint: usize,
}

impl Template {
    /// A frame to users, with `payload_bytes` of content; `with_id` asks the server for an `ack`.
    pub(crate) fn message(prefix: &str, payload_bytes: usize, with_id: bool) -> Self {
        let head = format!(r#"{{"type":"message","to":{}"#, quoted(&user_name(prefix, 0)));
        Self::new(head, payload_bytes, with_id)
    }

    /// The same to channels.
    pub(crate) fn publish(prefix: &str, payload_bytes: usize, with_id: bool) -> Self {
        let head = format!(r#"{{"type":"publish","channel":{}"#, quoted(&channel_name(prefix, 0)));
        Self::new(head, payload_bytes, with_id)
    }

    /// `head` ends with the name of whom it is for.
    fn new(head: String, payload_bytes: usize, with_id: bool) -> Self {
        let mut json = head.into_bytes();
        let to_at = json.len() - 1 - NAME_DIGITS;
        let id_at = with_id.then(|| {
            json.extend_from_slice(br#","id":""#);
            let at = json.len();
            json.extend_from_slice(&[b'0'; SEQUENCE_DIGITS]);
            json.push(b'"');
            at
        });
        json.push(b',');
        json.extend_from_slice(CONTENT_KEY);
        Self::with_content(json, to_at, id_at, payload_bytes, b"\"}")
    }

    /// A frame that is no JSON object of the contract. The first part ends with the receiver's
    /// name, the second one where the content begins, and the third one ends it.
    pub(crate) fn around([before, after, tail]: [&str; 3], payload_bytes: usize) -> Self {
        let text = [before, after].concat().into_bytes();
        Self::with_content(text, before.len() - NAME_DIGITS, None, payload_bytes, tail.as_bytes())
    }

    /// `text` ends where the content begins.
    fn with_content(mut text: Vec<u8>, to_at: usize, id_at: Option<usize>, payload_bytes: usize, tail: &[u8]) -> Self {
        let padding: Vec<u8> = (0..payload_bytes.saturating_sub(PAYLOAD_BYTES_MIN))
            .map(|i| b'a' + (i % 26) as u8)
            .collect();
        let content_at = text.len();
        text.extend_from_slice(&[b'0'; PAYLOAD_BYTES_MIN]);
        text.extend_from_slice(&padding);
        text.extend_from_slice(tail);
        let mut frame = vec![];
        let payload_at = wire::write_frame(&mut frame, wire::TEXT, &text);
        Self {
            frame,
            payload_at,
            to_at,
            id_at,
            content_at,
            padding,
            hint: 0,
        }
    }

    /// Appends the frame of one message to `out`; `id` comes back in its ack, if it has one.
    pub(crate) fn write(&mut self, out: &mut Vec<u8>, to: u32, id: u32, numbers: Numbers) {
        self.patch::<10>(self.to_at, NAME_DIGITS, u64::from(to));
        let sequence = u64::from(numbers.sequence);
        if let Some(at) = self.id_at {
            self.patch::<16>(at, SEQUENCE_DIGITS, u64::from(id));
        }
        self.patch::<16>(self.content_at, SEQUENCE_DIGITS, sequence);
        self.patch::<16>(
            self.content_at + SEQUENCE_DIGITS,
            SENDER_DIGITS,
            u64::from(numbers.sender),
        );
        self.patch::<16>(
            self.content_at + SEQUENCE_DIGITS + SENDER_DIGITS,
            TIME_DIGITS,
            numbers.intended_ns,
        );
        out.extend_from_slice(&self.frame);
    }

    /// Writes `value` in base `BASE`, masked, at `at` of the payload.
    fn patch<const BASE: u64>(&mut self, at: usize, digits: usize, mut value: u64) {
        let field = &mut self.frame[self.payload_at + at..][..digits];
        for (i, byte) in field.iter_mut().enumerate().rev() {
            *byte = b"0123456789abcdef"[(value % BASE) as usize] ^ MASK[(at + i) & 3];
            value /= BASE;
        }
    }

    /// Finds the content of a `message` frame and reads its numbers.
    ///
    /// # Errors
    /// The content is not one that this generator wrote.
    pub(crate) fn read(&mut self, text: &[u8]) -> Result<Numbers, &'static str> {
        // A quote inside a JSON string is escaped, so these bytes can only be the key itself.
        let is_here = |at: usize| text.get(at..).is_some_and(|rest| rest.starts_with(CONTENT_KEY));
        if !is_here(self.hint) {
            self.hint = (0..text.len()).find(|at| is_here(*at)).ok_or("no content")?;
        }
        let content = &text[self.hint + CONTENT_KEY.len()..];
        let (numbers, rest) = content.split_at_checked(PAYLOAD_BYTES_MIN).ok_or("content too short")?;
        if rest
            .strip_prefix(&*self.padding)
            .is_none_or(|rest| rest.first() != Some(&b'"'))
        {
            return Err("content differs from what was sent");
        }
        let (sequence, numbers) = numbers.split_at(SEQUENCE_DIGITS);
        let (sender, time) = numbers.split_at(SENDER_DIGITS);
        let read = |digits| parse_hex(digits).ok_or("content differs from what was sent");
        Ok(Numbers {
            sequence: read(sequence)? as u32,
            sender: read(sender)? as u32,
            intended_ns: read(time)?,
        })
    }
}

/// The sequence number in the `id` of an `ack`.
pub(crate) fn parse_ack_id(id: &[u8]) -> Option<u32> {
    (id.len() == SEQUENCE_DIGITS)
        .then(|| parse_hex(id))?
        .map(|sequence| sequence as u32)
}

fn parse_hex(digits: &[u8]) -> Option<u64> {
    let mut value = 0;
    for digit in digits {
        let nibble = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        value = value << 4 | u64::from(nibble);
    }
    Some(value)
}

/// `text` as a JSON string.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unmask(frame: &[u8], at: usize) -> String {
        let bytes = frame[at..]
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(b, m)| b ^ m)
            .collect();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (payload, with_id) in [(28, false), (64, true), (64, false), (200, true), (70_000, false)] {
            let mut template = Template::message("l-", payload, with_id);
            let numbers = Numbers {
                sequence: 0xdead_beef,
                sender: 0xabcdef,
                intended_ns: 0x12_3456_789a_bcde,
            };
            let mut out = vec![];
            template.write(&mut out, 12_345_678, numbers.sequence, numbers);
            let text = unmask(&out, template.payload_at);
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(json["type"], "message");
            assert_eq!(json["to"], user_name("l-", 12_345_678));
            assert_eq!(json["content"].as_str().unwrap().len(), payload);
            assert_eq!(json.get("id").and_then(|id| id.as_str()), with_id.then_some("deadbeef"));
            assert_eq!(template.read(text.as_bytes()), Ok(numbers));
            // Another key order and position.
            let moved = format!(r#"{{"type":"message","content":{},"ts":1}}"#, json["content"]);
            assert_eq!(template.read(moved.as_bytes()), Ok(numbers));
        }
    }

    #[test]
    fn a_channel_is_published_to_by_its_name() {
        let mut template = Template::publish("l-", 64, true);
        let numbers = Numbers {
            sequence: 7,
            sender: 9,
            intended_ns: 5,
        };
        let mut out = vec![];
        template.write(&mut out, 3, numbers.sequence, numbers);
        let text = unmask(&out, template.payload_at);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&json["type"], &json["id"]), (&"publish".into(), &"00000007".into()));
        assert_eq!(json["channel"], "l-room-00000003");
        assert_eq!(channel_number("l-", "l-room-00000003"), Some(3));
        assert_eq!(user_number("l-", "l-room-00000003"), None);
        assert_eq!(user_number("l-", &user_name("l-", 45)), Some(45));
        let publication = format!(
            r#"{{"type":"publication","channel":{},"id":"m","from":"x","content":{},"ts":1}}"#,
            json["channel"], json["content"]
        );
        assert_eq!(template.read(publication.as_bytes()), Ok(numbers));
    }

    #[test]
    fn a_frame_of_another_protocol_is_patched_and_read() {
        let parts = ["PUB l-00000000", " 78\r\n{\"content\":\"", "\"}\r\n"];
        let mut template = Template::around(parts, 64);
        let numbers = Numbers {
            sequence: 7,
            sender: 9,
            intended_ns: 5,
        };
        let mut out = vec![];
        template.write(&mut out, 3, numbers.sequence, numbers);
        let text = unmask(&out, template.payload_at);
        let payload = text
            .strip_prefix("PUB l-00000003 78\r\n")
            .and_then(|rest| rest.strip_suffix("\r\n"));
        assert_eq!(payload.map(str::len), Some(78));
        assert_eq!(
            template.read(format!("MSG l-00000003 1 78\r\n{}\r\n", payload.unwrap()).as_bytes()),
            Ok(numbers)
        );
    }

    #[test]
    fn damage_is_seen() {
        let mut template = Template::message("l-", 64, false);
        let mut out = vec![];
        template.write(
            &mut out,
            1,
            1,
            Numbers {
                sequence: 1,
                sender: 0,
                intended_ns: 5,
            },
        );
        let text = unmask(&out, template.payload_at);
        for (from, to) in [
            ("jkl", "jkL"),
            ("jkl", "jk"),
            ("00000001", "0000000x"),
            ("content", "contant"),
        ] {
            assert!(
                template.read(text.replace(from, to).as_bytes()).is_err(),
                "{from} -> {to}"
            );
        }
        assert!(template.read(b"{\"content\":\"0").is_err());
    }
}
