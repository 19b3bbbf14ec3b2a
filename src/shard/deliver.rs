//! Delivery: from a user id to outboxes here, to a lane, or to nobody; and what other shards ask of this one.

use bytes::Bytes;

use super::core::Core;
use crate::engine::SocketKey;
use crate::ids::ShardId;
use crate::lanes::{AckTo, Batch, LaneFull, MessageItem, OutgoingMessage, PresenceQuery, ToShard};
use crate::metrics::{DropReason, SentKind};
use crate::router::UserHash;
use crate::wire::json::decode::ErrorCode;
use crate::wire::json::encode::{self, AckStatus};

/// Frames up to this size are copied into every device's outbox; larger ones are shared.
const SHARE_BYTES_MIN: usize = 1024;
pub(super) const OVERLOADED: &str = "overloaded: try again";
const REDIS_AWAY: &str = "Redis is away: try again";
const TOO_MUCH_ASKED: &str = "too many users are being asked for: try again";
/// Presence questions of one shard that may wait for other shards.
const QUESTIONS_MAX: usize = 4096;

/// Presence questions that wait for answers of other shards.
///
/// A ticket is a place and how often it was used, so that an answer to a question that was given up never counts for
/// the next one in its place.
#[derive(Debug, Default)]
pub(super) struct Questions {
    places: Vec<Place>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Place {
    uses: u32,
    question: Option<Question>,
}

#[derive(Debug)]
struct Question {
    asker: SocketKey,
    /// The asking user.
    asker_hash: UserHash,
    client_id: Option<Box<str>>,
    users: Vec<Box<str>>,
    online: u128,
    /// Places of users of whom nobody else needs to be asked.
    known: u128,
    /// Shards that have not answered yet.
    waiting: u16,
}

/// Bits of a ticket that are the place: enough for [`QUESTIONS_MAX`].
const PLACE_BITS: u32 = QUESTIONS_MAX.ilog2();

impl Questions {
    /// Questions that wait.
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    fn is_full(&self) -> bool {
        self.len() >= QUESTIONS_MAX
    }

    /// Not to be called when full.
    fn add(&mut self, question: Question) -> u32 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            (self.places.len() - 1) as u32
        });
        let Place { uses, question: free } = &mut self.places[place as usize];
        *free = Some(question);
        *uses << PLACE_BITS | place
    }

    fn place(&mut self, ticket: u32) -> Option<(u32, &mut Place)> {
        let at = ticket & ((1 << PLACE_BITS) - 1);
        let place = self.places.get_mut(at as usize)?;
        (place.uses << PLACE_BITS | at == ticket).then_some((at, place))
    }

    fn get(&mut self, ticket: u32) -> Option<&mut Question> {
        self.place(ticket)?.1.question.as_mut()
    }

    /// Takes a question out; answers that are under way find nothing.
    fn take(&mut self, ticket: u32) -> Option<Question> {
        let (at, place) = self.place(ticket)?;
        let question = place.question.take()?;
        place.uses = place.uses.wrapping_add(1);
        self.free.push(at);
        Some(question)
    }

    /// Notes one answer. True if it was the last that was waited for.
    fn answer(&mut self, ticket: u32, online: u128, known: u128) -> bool {
        let Some(question) = self.place(ticket).and_then(|(_, place)| place.question.as_mut()) else {
            return false;
        };
        question.online |= online;
        question.known |= known;
        question.waiting -= 1;
        question.waiting == 0
    }
}

impl Core {
    /// Queues a `message` frame for every connection of a user who lives here. Returns true if one took it.
    pub(super) fn deliver(&mut self, hash: UserHash, to: &str, frame: &[u8]) -> bool {
        let Some(user) = self.kernel.users.find(hash, to) else {
            return false;
        };
        let mut taken = false;
        if let &[slot] = self.kernel.users.devices(user) {
            taken = self.kernel.append(slot, frame, SentKind::Message);
        } else {
            let mut slots = std::mem::take(&mut self.kernel.scratch_slots);
            slots.clear();
            slots.extend_from_slice(self.kernel.users.devices(user));
            let shared = (frame.len() >= SHARE_BYTES_MIN).then(|| Bytes::copy_from_slice(frame));
            for &slot in &slots {
                taken |= match &shared {
                    Some(frame) => self.kernel.append_shared(slot, frame, SentKind::Message),
                    None => self.kernel.append(slot, frame, SentKind::Message),
                };
            }
            self.kernel.scratch_slots = slots;
        }
        taken
    }

    /// A message for a user of this shard: to the connections here, and to those on other gateways. Returns what became
    /// of it; `None` if that is not known yet, and the sender will be told.
    pub(super) fn dispatch(
        &mut self,
        hash: UserHash,
        to: &str,
        frame: &[u8],
        ack_to: Option<AckTo<'_>>,
    ) -> Option<AckStatus> {
        let here = self.deliver(hash, to, frame);
        let status = if self.kernel.peers.is_some() {
            self.send_elsewhere(hash, to, frame, here, ack_to)
        } else if here {
            Some(AckStatus::Delivered)
        } else {
            Some(AckStatus::Offline)
        };
        if status == Some(AckStatus::Offline) {
            self.kernel.metrics().dropped(DropReason::MessageOffline);
        }
        status
    }

    /// A `message` frame of the user on `slot`.
    pub(super) fn route_message(&mut self, slot: u32, client_id: Option<&str>, to: &str, content: &str) {
        let Some(sender) = self.kernel.conn(slot).user else {
            return;
        };
        if !self.kernel.may_write_to(slot, to) {
            let message = "this user may not write to that one";
            return self
                .kernel
                .send_error(slot, client_id, ErrorCode::NotPermitted, message);
        }
        let message_id = self.kernel.ids.next(self.kernel.now.wall_ms);
        let mut frame = std::mem::take(&mut self.kernel.scratch);
        frame.clear();
        let message = encode::Message {
            id: message_id,
            from: self.kernel.users.name(sender),
            to,
            content,
            ts_ms: self.kernel.now.wall_ms,
        };
        encode::message(&mut frame, &message);
        let hash = self.kernel.homes.hash(to);
        let home = self.kernel.homes.home(hash);
        let ack_to = client_id.map(|client_id| AckTo {
            shard: self.kernel.me,
            conn: self.kernel.key(slot),
            client_id,
            message_id,
        });
        let status = if home == self.kernel.me {
            let status = self.dispatch(hash, to, &frame, ack_to);
            self.kernel.turn.local += u64::from(status == Some(AckStatus::Delivered));
            status
        } else {
            let outgoing = OutgoingMessage {
                hash,
                to,
                frame: &frame,
                ack_to,
                received_ns: self.kernel.now.mono_ns,
            };
            match self.kernel.lanes.try_message(home, &outgoing) {
                Ok(()) => None,
                Err(LaneFull) => {
                    self.kernel.metrics().dropped(DropReason::MessageLaneFull);
                    Some(AckStatus::Failed)
                }
            }
        };
        self.kernel.scratch = frame;
        if let (Some(status), Some(ack_to)) = (status, &ack_to) {
            self.kernel.answer(ack_to, status);
        }
    }

    /// A `presence` frame: asks every shard on which one of these users lives, and then the cluster for those of whom no shard
    /// knows where they are.
    pub(super) fn ask_presence(&mut self, slot: u32, client_id: Option<&str>, users: Vec<Box<str>>) {
        let Some(asking) = self.kernel.conn(slot).user else {
            return;
        };
        let asker_hash = self.kernel.homes.hash(self.kernel.users.name(asking));
        let (mut online, mut known) = (0u128, 0u128);
        let mut elsewhere: Vec<(ShardId, u8, UserHash)> = Vec::new();
        for (place, user) in users.iter().enumerate() {
            let hash = self.kernel.homes.hash(user);
            let home = self.kernel.homes.home(hash);
            if home == self.kernel.me {
                let found = self.is_known_online(hash, user);
                online |= u128::from(found == Some(true)) << place;
                known |= u128::from(found.is_some()) << place;
            } else {
                elsewhere.push((home, place as u8, hash));
            }
        }
        elsewhere.sort_unstable_by_key(|(home, place, _)| (*home, *place));
        let groups = elsewhere.chunk_by(|a, b| a.0 == b.0);
        let question = Question {
            asker: self.kernel.key(slot),
            asker_hash,
            client_id: client_id.map(Into::into),
            users,
            online,
            known,
            waiting: groups.clone().count() as u16,
        };
        if self.questions.is_full() {
            self.refuse_presence(&question, DropReason::PresenceLaneFull, OVERLOADED);
            return;
        }
        let ticket = self.questions.add(question);
        let Some(question) = self.questions.get(ticket) else {
            return;
        };
        if question.waiting == 0 {
            self.finish_presence(ticket);
            return;
        }
        let users = &question.users;
        let mut asked = Ok(());
        for group in groups {
            let group_users = group
                .iter()
                .map(|(_, place, hash)| (*place, *hash, &*users[usize::from(*place)]));
            let question = (ticket, asker_hash);
            asked = asked.and(self.kernel.lanes.try_presence_query(group[0].0, question, group_users));
        }
        if asked.is_err()
            && let Some(question) = self.questions.take(ticket)
        {
            self.refuse_presence(&question, DropReason::PresenceLaneFull, OVERLOADED);
        }
    }

    /// All shards have said what they know of a question: it is answered, or goes to the cluster for the rest.
    fn finish_presence(&mut self, ticket: u32) {
        let Some(question) = self.questions.get(ticket) else {
            return;
        };
        let (known, asker) = (question.known, question.asker_hash);
        let unknown = (0u8..)
            .zip(&question.users)
            .filter(|(place, _)| known >> place & 1 == 0);
        let refused = match &self.kernel.peers {
            Some(_) if unknown.clone().next().is_some() => {
                question.waiting = 1;
                let homes = &self.kernel.homes;
                let users = unknown.map(|(place, user)| (place, homes.hash(user), &**user));
                if !self.kernel.shared.cluster.is_up() {
                    Some((DropReason::PresenceRedisAway, REDIS_AWAY))
                } else if self.kernel.lanes.try_cluster_query((ticket, asker), users).is_err() {
                    Some((DropReason::PresenceLaneFull, OVERLOADED))
                } else {
                    return;
                }
            }
            _ => None,
        };
        let Some(question) = self.questions.take(ticket) else {
            return;
        };
        match refused {
            Some((why, message)) => self.refuse_presence(&question, why, message),
            None => self.answer_presence(&question),
        }
    }

    /// Whether a user who lives here is online, if that is known without asking anybody.
    fn is_known_online(&mut self, hash: UserHash, user: &str) -> Option<bool> {
        if self.kernel.users.find(hash, user).is_some() {
            return Some(true);
        }
        self.kernel.is_known_elsewhere(hash, user)
    }

    fn refuse_presence(&mut self, question: &Question, why: DropReason, message: &str) {
        self.kernel.metrics().dropped(why);
        if !self.kernel.is_open(question.asker) {
            return;
        }
        self.kernel.send_error(
            question.asker.slot,
            question.client_id.as_deref(),
            ErrorCode::Unavailable,
            message,
        );
    }

    fn answer_presence(&mut self, question: &Question) {
        if !self.kernel.is_open(question.asker) {
            self.kernel.metrics().dropped(DropReason::ReplyGone);
            return;
        }
        let users = question
            .users
            .iter()
            .enumerate()
            .map(|(place, user)| (&**user, question.online >> place & 1 == 1));
        self.kernel.send(question.asker.slot, SentKind::Presence, |_, out| {
            encode::presence(out, question.client_id.as_deref(), users);
        });
    }

    /// Another shard has answered for a connection of this one.
    pub(super) fn handle_reply_frame(&mut self, to: SocketKey, frame: &[u8]) {
        if self.kernel.is_open(to) {
            self.kernel.append(to.slot, frame, SentKind::Ack);
        } else {
            self.kernel.metrics().dropped(DropReason::ReplyGone);
        }
    }

    /// Another shard asks which users are online.
    pub(super) fn handle_presence_query(&mut self, batch: &Batch<ToShard>, query: &PresenceQuery) {
        let (mut online, mut known) = (0u128, 0u128);
        for (index, hash, user) in &query.users {
            let found = self.is_known_online(*hash, batch.text(*user));
            online |= u128::from(found == Some(true)) << index;
            known |= u128::from(found.is_some()) << index;
        }
        self.kernel
            .lanes
            .presence_answer(batch.from, query.ticket, online, known);
    }

    /// A shard, or the control thread, has answered a question.
    pub(super) fn handle_presence_answer(&mut self, ticket: u32, online: u128, known: u128) {
        if self.questions.answer(ticket, online, known) {
            self.finish_presence(ticket);
        }
    }

    /// The cluster cannot be asked.
    pub(super) fn handle_presence_unknown(&mut self, ticket: u32, overloaded: bool) {
        if let Some(question) = self.questions.take(ticket) {
            let (why, message) = match overloaded {
                true => (DropReason::PresenceLookupsFull, TOO_MUCH_ASKED),
                false => (DropReason::PresenceRedisAway, REDIS_AWAY),
            };
            self.refuse_presence(&question, why, message);
        }
    }

    /// A message for a user of this shard from another one.
    pub(super) fn handle_message_item(&mut self, batch: &Batch<ToShard>, message: &MessageItem) {
        let ack_to = message.ack_to.as_ref().map(|ack_to| batch.ack_to(batch.from, ack_to));
        let status = self.dispatch(message.hash, batch.text(message.to), batch.bytes(message.frame), ack_to);
        if status == Some(AckStatus::Delivered) {
            self.kernel.turn.from_lanes.push(message.received_ns);
        }
        if let (Some(status), Some(ack_to)) = (status, &ack_to) {
            self.kernel.answer(ack_to, status);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(waiting: u16) -> Question {
        Question {
            asker: SocketKey { slot: 0, generation: 0 },
            asker_hash: UserHash(0),
            client_id: None,
            users: Vec::new(),
            online: 0,
            known: 0,
            waiting,
        }
    }

    #[test]
    fn questions_that_were_given_up_leave_room() {
        let mut questions = Questions::default();
        for _ in 0..2 * QUESTIONS_MAX {
            assert!(!questions.is_full());
            let ticket = questions.add(question(1));
            assert!(questions.take(ticket).is_some());
        }
        assert_eq!(questions.len(), 0);
    }

    #[test]
    fn a_late_answer_is_nobodys() {
        let mut questions = Questions::default();
        let given_up = questions.add(question(2));
        assert!(questions.take(given_up).is_some());
        let next = questions.add(question(2));
        assert!(!questions.answer(given_up, 1, 1) && questions.take(given_up).is_none());
        assert!(!questions.answer(next, 2, 2));
        assert!(questions.answer(next, 4, 12));
        let answered = questions.take(next).unwrap();
        assert_eq!((answered.online, answered.known), (6, 14));
        assert!(!questions.answer(next, 8, 8));
    }
}
