//! The server's acks of the messages of one connection.

use std::borrow::Cow;

use crate::conn::envelope;
use crate::message::parse_ack_id;
use crate::sequence::{Arrival, Sequence};
use crate::tally::Tally;

/// How a frame begins that is for [`Acks::handle`].
pub(crate) const ACK: &[u8] = br#"{"type":"ack","id":""#;
/// The common end of an ack. Other acks are read the slow way.
const COMMON: [(&[u8], &str); 3] = [
    (br#""status":"delivered"}"#, "delivered"),
    (br#""status":"routed"}"#, "routed"),
    (br#""status":"published"}"#, "published"),
];

/// The acks that one connection got.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    count: u32,
    seen: Sequence,
}

impl Acks {
    /// Counts one ack; true if it was waited for by a connection that sent so many messages with
    /// ids.
    pub(crate) fn handle(&mut self, text: &[u8], sent: u32, tally: &mut Tally) -> bool {
        let (number, status) = read(text);
        let known = number.filter(|number| *number < sent);
        match known.map(|number| self.seen.arrive(number)) {
            None | Some(Arrival::Duplicate) => {
                tally.acks_unexpected += 1;
                false
            }
            // The order of acks is not promised.
            Some(Arrival::InOrder | Arrival::Reordered) => {
                self.count += 1;
                match tally.acks.get_mut(&*status) {
                    Some(n) => *n += 1,
                    None => drop(tally.acks.insert(status.into_owned(), 1)),
                }
                true
            }
        }
    }

    /// Of so many messages, how many still have none.
    pub(crate) fn missing(&self, sent: u32) -> u64 {
        u64::from(sent - self.count)
    }
}

/// The number of the message, and what became of it.
fn read(text: &[u8]) -> (Option<u32>, Cow<'static, str>) {
    let fast = text.get(ACK.len()..ACK.len() + 8).and_then(parse_ack_id);
    let common = COMMON.iter().find(|(end, _)| text.ends_with(end));
    if let (Some(number), Some((_, status))) = (fast, common) {
        return (Some(number), Cow::Borrowed(status));
    }
    let envelope = envelope(text);
    let number = envelope.id.and_then(|id| parse_ack_id(id.as_bytes()));
    (number, envelope.status.unwrap_or_default().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_are_counted_once_by_what_they_say() {
        let (mut acks, mut tally) = (Acks::default(), Tally::default());
        let mut hear = |text: &str| acks.handle(text.as_bytes(), 3, &mut tally);
        assert!(hear(
            r#"{"type":"ack","id":"00000001","messageId":"m","status":"published"}"#
        ));
        // Another order of keys, and a status that is not common.
        assert!(hear(r#"{"status":"odd","type":"ack","id":"00000000"}"#));
        assert!(
            !hear(r#"{"type":"ack","id":"00000001","messageId":"m","status":"published"}"#),
            "twice"
        );
        assert!(
            !hear(r#"{"type":"ack","id":"00000003","messageId":"m","status":"routed"}"#),
            "never sent"
        );
        assert!(!hear(r#"{"type":"ack","id":"x"}"#));
        assert_eq!(acks.missing(3), 1);
        assert_eq!(tally.acks_unexpected, 3);
        assert_eq!(tally.acks, [("odd".to_owned(), 1), ("published".to_owned(), 1)].into());
    }
}
