//! Names of things: shards, connections, users, messages.
//!
//! Pure. [`IdSource`] is owned by one shard; it is seeded from outside, so that a simulation can
//! repeat itself.

use std::fmt;

use uuid::Uuid;

/// A shard's index in its gateway, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

impl ShardId {
    /// As an index into per-shard tables.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one socket of one shard's engine. The generation differs each time a slot is used again.
/// So a late completion or a late lane item never reaches the slot's next tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketKey {
    /// Index into the engine's slab, and into the shard's parallel table of connections.
    pub slot: u32,
    /// Use count of the slot; 24 bits are significant.
    pub generation: u32,
}

/// No engine has that many sockets.
const SYSTEM_SLOT: u32 = u32::MAX;

impl SocketKey {
    /// Stands for the sender's connection where there is none: an administrator's request, by its
    /// ticket.
    pub fn of_system(ticket: u32) -> Self {
        SocketKey {
            slot: SYSTEM_SLOT,
            generation: ticket,
        }
    }

    /// The ticket, if this is no connection.
    pub fn system_ticket(self) -> Option<u32> {
        (self.slot == SYSTEM_SLOT).then_some(self.generation)
    }
}

/// The longest user id, bytes.
pub const USER_ID_BYTES_MAX: usize = 128;

/// The longest name of a channel, bytes.
pub const CHANNEL_BYTES_MAX: usize = 255;

/// True for 1 to 128 bytes of UTF-8 without control characters.
pub fn is_valid_user_id(user: &str) -> bool {
    is_valid_name(user, USER_ID_BYTES_MAX)
}

/// True for a valid user id that looks like what it is. It has no outer spaces, which are
/// invisible. It has no format characters, by which two ids can look the same, or one like another
/// read backwards.
pub fn is_plain_user_id(user: &str) -> bool {
    let has_format = |user: &str| !user.is_ascii() && user.chars().any(is_format);
    is_valid_user_id(user) && user.trim().len() == user.len() && !has_format(user)
}

/// The format characters of Unicode 16 (general category Cf), as ranges.
const FORMAT: [(char, char); 21] = [
    ('\u{ad}', '\u{ad}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{890}', '\u{891}'),
    ('\u{8e2}', '\u{8e2}'),
    ('\u{180e}', '\u{180e}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{202a}', '\u{202e}'),
    ('\u{2060}', '\u{2064}'),
    ('\u{2066}', '\u{206f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{fff9}', '\u{fffb}'),
    ('\u{110bd}', '\u{110bd}'),
    ('\u{110cd}', '\u{110cd}'),
    ('\u{13430}', '\u{1343f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0001}', '\u{e0001}'),
    ('\u{e0020}', '\u{e007f}'),
];

fn is_format(c: char) -> bool {
    FORMAT.iter().any(|(first, last)| (*first..=*last).contains(&c))
}

/// True for 1 to 255 bytes of UTF-8 without control characters.
pub fn is_valid_channel(channel: &str) -> bool {
    is_valid_name(channel, CHANNEL_BYTES_MAX)
}

fn is_valid_name(name: &str, bytes_max: usize) -> bool {
    // Most names are plain ASCII, which is checked without decoding; 0x7f is a control character
    // too.
    let plain = |name: &str| name.bytes().fold(true, |plain, b| plain & (0x20..0x7f).contains(&b));
    (1..=bytes_max).contains(&name.len()) && (plain(name) || !name.chars().any(char::is_control))
}

/// Makes UUIDv7 ids. Ids of one source never go back, even when the wall clock does.
#[derive(Debug)]
pub struct IdSource {
    rng: fastrand::Rng,
    millis: u64,
    /// Counts ids within one millisecond. It begins at random in its lower half, so that it has
    /// room and cannot be guessed.
    counter: u32,
}

impl IdSource {
    /// A source whose random bits follow from `seed`.
    pub fn new(seed: u64) -> Self {
        IdSource {
            rng: fastrand::Rng::with_seed(seed),
            millis: 0,
            counter: 0,
        }
    }

    /// The next id; `now_ms` is Unix time in milliseconds.
    pub fn next(&mut self, now_ms: u64) -> Uuid {
        if now_ms > self.millis {
            self.millis = now_ms;
            self.counter = self.rng.u32(..) >> 1;
        } else if let Some(counter) = self.counter.checked_add(1) {
            self.counter = counter;
        } else {
            self.millis += 1;
            self.counter = 0;
        }
        // 74 bits are ours: 32 of counter, then chance. The uuid crate sets version and variant
        // over four bits of byte 0 and two of byte 2, so the counter is spread around them.
        let [a, b, c, d] = self.counter.to_be_bytes();
        let chance = self.rng.u64(..).to_be_bytes();
        let bytes = [
            a >> 4,
            a << 4 | b >> 4,
            (b & 0xf) << 2 | c >> 6,
            c << 2 | d >> 6,
            d << 2 | chance[0] & 3,
            chance[1],
            chance[2],
            chance[3],
            chance[4],
            chance[5],
        ];
        uuid::Builder::from_unix_timestamp_millis(self.millis, &bytes).into_uuid()
    }

    /// A random number for jitter, below `bound`; 0 for a bound of 0.
    pub fn jitter(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.rng.u64(..bound) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_version_7_distinct_and_rise() {
        let mut ids = IdSource::new(7);
        let mut last = Uuid::nil();
        // Miri is a thousand times slower.
        let steps = if cfg!(miri) { 3_000 } else { 100_000u64 };
        for step in 0..steps {
            // The clock jumps back every now and then.
            let now = 1_700_000_000_000 + step / 64 - if step % 1000 == 0 { 50 } else { 0 };
            let id = ids.next(now);
            assert_eq!(id.get_version_num(), 7);
            assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
            assert!(id > last, "{id} after {last}");
            last = id;
        }
    }

    #[test]
    fn ids_that_look_like_what_they_are() {
        for plain in ["alice", "al ice", "ä€😀", "*", "{user}", "عربي", "e\u{301}"] {
            assert!(is_plain_user_id(plain), "{plain:?}");
        }
        for other in [
            "",
            " ",
            " alice",
            "alice ",
            "alice\u{a0}",
            "\u{3000}alice",
            "alice\u{2028}",
            "al\u{200b}ice",
            "al\u{200d}ice",
            "\u{202e}ecila",
            "alice\u{2069}",
            "\u{feff}alice",
            "al\u{ad}ice",
            "alice\u{e0041}",
            "a\nb",
        ] {
            assert!(!is_plain_user_id(other), "{other:?}");
        }
    }

    proptest::proptest! {
        /// The table is that of Unicode, as another crate has it.
        #[test]
        fn format_characters(format in "\\p{Cf}", other in "\\P{Cf}") {
            proptest::prop_assert!(!is_plain_user_id(&format!("a{format}b")), "{format:?}");
            proptest::prop_assert!(!other.chars().any(is_format), "{other:?}");
        }
    }

    #[test]
    fn user_ids() {
        assert!(is_valid_user_id("alice"));
        assert!(is_valid_user_id("ä€😀 with spaces"));
        assert!(is_valid_user_id(&"x".repeat(128)));
        assert!(!is_valid_user_id(""));
        assert!(!is_valid_user_id(&"x".repeat(129)));
        assert!(!is_valid_user_id("a\nb"));
        assert!(!is_valid_user_id("a\u{85}b"));
        assert!(!is_valid_user_id("a\u{7f}b"));
    }
}
