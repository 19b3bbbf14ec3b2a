//! What clients say, carried out.

use std::borrow::Cow;

use super::core::Core;
use crate::auth::Token;
use crate::metrics::{CloseCause, DropReason, SentKind};
use crate::session::rate::RateVerdict;
use crate::session::{BAD_FRAMES_MAX, Migrating, Stage};
use crate::wire::json::decode::{ClientFrame, FrameKind};
use crate::wire::message::{ErrorCode, ServerMessage};
use crate::wire::ws::close::CloseReason;
use crate::wire::ws::frame::{Message, Opcode};
use crate::wire::ws::server_frame;

/// The longest message of a client whose user is not known: a token of the largest size, and what
/// JSON puts around it. The same for a connection that has ended: only its close frame matters
/// then, and no permit counts its memory.
const PRE_AUTH_BYTES_MAX: usize = 16 * 1024;

/// How to go on after a frame.
enum Flow {
    /// With the next one.
    Next,
    /// Not at all: the rest of the input is not looked at.
    Stop,
    /// On another shard, which gets the rest of the input.
    Leave(Box<Migrating>),
    /// When this token was looked at, with the rest of the input.
    Verify(Token),
}

impl Core {
    /// Bytes of a connection that speaks WebSocket.
    pub(super) fn frame_bytes(&mut self, slot: u32, bytes: &mut [u8]) {
        let limit = self.message_bytes_max(slot);
        // Taken out, because messages borrow from it while they change the connection.
        let mut decoder = std::mem::take(&mut self.kernel.conn(slot).decoder);
        let mut reader = decoder.read(bytes, limit);
        let (mut migrating, mut shown) = (None, None);
        loop {
            match reader.next() {
                Ok(None) => break,
                Ok(Some(message)) => match self.handle_message(slot, message) {
                    Flow::Next => {
                        self.settle();
                        reader.set_limit(self.message_bytes_max(slot));
                    }
                    Flow::Stop => break,
                    Flow::Leave(home) => {
                        migrating = Some((home, reader.rest().to_vec()));
                        break;
                    }
                    Flow::Verify(token) => {
                        shown = Some((token, reader.rest().to_vec()));
                        break;
                    }
                },
                Err(error) => {
                    self.kernel.fail(slot, error.close_reason());
                    self.settle();
                    break;
                }
            }
        }
        if let Some((migrating, rest)) = migrating {
            let migrating = Box::new(Migrating { rest, ..*migrating });
            self.admission.begin_migrating(&mut self.kernel, slot, migrating);
        } else if let Some((token, rest)) = shown {
            self.admission
                .begin_verifying(&mut self.kernel, slot, token, None, rest);
        } else if !matches!(
            self.kernel.conn(slot).stage,
            Stage::Closed | Stage::Free | Stage::Lingering { .. }
        ) {
            self.kernel.conn(slot).decoder = decoder;
        }
    }

    /// The longest message that is taken from this connection now.
    fn message_bytes_max(&self, slot: u32) -> usize {
        let configured = self.kernel.settings.limits.message_bytes;
        match self.kernel.connections[slot as usize].stage {
            Stage::Authenticating | Stage::Closing { .. } => configured.min(PRE_AUTH_BYTES_MAX),
            _ => configured,
        }
    }

    fn handle_message(&mut self, slot: u32, message: Message<'_>) -> Flow {
        if let Stage::Closing { .. } = self.kernel.conn(slot).stage {
            // Our close frame is on its way: only the peer's matters.
            if let Message::Close(_) = message {
                self.kernel.close_when_flushed(slot);
                return Flow::Stop;
            }
            return Flow::Next;
        }
        if matches!(message, Message::Ping(_) | Message::Pong | Message::Fragment) && !self.passes(slot) {
            return Flow::Next;
        }
        match message {
            Message::Ping(payload) => {
                self.kernel.append_opcode(slot, Opcode::Pong, payload, SentKind::Pong);
            }
            Message::Pong => self.lifecycle.device_answered(&mut self.kernel, slot),
            Message::Fragment => {}
            Message::Close(code) => {
                self.end(slot, CloseCause::Peer(code));
                self.kernel.go(slot, Stage::Closing { peer_closed: true });
                self.kernel.send_close(slot, |out| server_frame::close_reply(out, code));
                return Flow::Stop;
            }
            Message::Text(text) => return self.handle_text(slot, text),
            Message::Binary(bytes) => {
                if matches!(self.kernel.conn(slot).stage, Stage::Echo) {
                    let verdict = self.count_frame(slot);
                    self.echo(slot, verdict, Opcode::Binary, bytes);
                } else {
                    self.kernel.begin_close(slot, CloseReason::Unsupported);
                }
            }
        }
        Flow::Next
    }

    fn echo(&mut self, slot: u32, verdict: RateVerdict, opcode: Opcode, payload: &[u8]) {
        match verdict {
            RateVerdict::Pass => {
                self.kernel.append_opcode(slot, opcode, payload, SentKind::Echo);
            }
            // There is no `error` frame here.
            RateVerdict::Refuse | RateVerdict::Close => self.kernel.begin_close(slot, CloseReason::TooManyRequests),
        }
    }

    /// Counts a message against the rate.
    fn count_frame(&mut self, slot: u32) -> RateVerdict {
        let conn = self.kernel.conn(slot);
        conn.messages_in = conn.messages_in.saturating_add(1);
        self.check_rate(slot)
    }

    /// Counts any one frame against the rate.
    fn check_rate(&mut self, slot: u32) -> RateVerdict {
        let now_us = self.kernel.now.mono_ns / 1000;
        let (rate, burst) = (
            self.kernel.settings.limits.messages_per_second,
            self.kernel.settings.limits.burst,
        );
        self.kernel.conn(slot).rate.check(now_us, rate, burst)
    }

    /// Counts a frame that is no message: a ping, a pong, a fragment. False if it is refused, which
    /// its sender then knows.
    fn passes(&mut self, slot: u32) -> bool {
        match self.check_rate(slot) {
            RateVerdict::Pass => return true,
            RateVerdict::Refuse if !matches!(self.kernel.conn(slot).stage, Stage::Echo) => {
                self.refuse_too_many(slot, None);
            }
            RateVerdict::Refuse | RateVerdict::Close => self.kernel.begin_close(slot, CloseReason::TooManyRequests),
        }
        false
    }

    /// What a frame that was counted costs besides, in frames.
    fn charge(&mut self, slot: u32, extra: u32) -> RateVerdict {
        if extra == 0 {
            return RateVerdict::Pass;
        }
        let now_us = self.kernel.now.mono_ns / 1000;
        let (rate, burst) = (
            self.kernel.settings.limits.messages_per_second,
            self.kernel.settings.limits.burst,
        );
        self.kernel.conn(slot).rate.charge(now_us, rate, burst, extra)
    }

    fn refuse_too_many(&mut self, slot: u32, id: Option<&str>) {
        self.kernel.metrics().dropped(DropReason::FrameRateLimited);
        self.kernel
            .send_error(slot, id, ErrorCode::RateLimited, "too many frames per second");
    }

    fn handle_text(&mut self, slot: u32, text: &str) -> Flow {
        self.kernel.turn.interactive = true;
        let verdict = self.count_frame(slot);
        if matches!(self.kernel.conn(slot).stage, Stage::Echo) {
            self.echo(slot, verdict, Opcode::Text, text.as_bytes());
            return Flow::Next;
        }
        let codec = self.kernel.conn(slot).codec;
        match verdict {
            RateVerdict::Pass => {}
            RateVerdict::Refuse => {
                // The id is worth reading: the client must know which of its frames was refused.
                let id = match codec.decode(text) {
                    Ok(frame) => frame.id().map(str::to_owned),
                    Err(refusal) => refusal.id.map(Into::into),
                };
                self.refuse_too_many(slot, id.as_deref());
                return Flow::Next;
            }
            RateVerdict::Close => {
                self.kernel.begin_close(slot, CloseReason::TooManyRequests);
                return Flow::Next;
            }
        }
        match codec.decode(text) {
            Ok(frame) => {
                self.kernel.metrics().received(frame.kind());
                match self.charge(slot, frame.extra_cost()) {
                    RateVerdict::Pass => return self.carry_out(slot, frame),
                    RateVerdict::Refuse => self.refuse_too_many(slot, frame.id()),
                    RateVerdict::Close => self.kernel.begin_close(slot, CloseReason::TooManyRequests),
                }
                Flow::Next
            }
            Err(refusal) => {
                self.kernel.metrics().received(FrameKind::Invalid);
                self.kernel
                    .send_error(slot, refusal.id.as_deref(), refusal.code, &refusal.message);
                if matches!(refusal.code, ErrorCode::BadRequest | ErrorCode::UnknownType) {
                    let conn = self.kernel.conn(slot);
                    conn.bad_frames += 1;
                    if conn.bad_frames >= BAD_FRAMES_MAX {
                        self.kernel.begin_close(slot, CloseReason::BadRequest);
                    }
                }
                Flow::Next
            }
        }
    }

    fn carry_out(&mut self, slot: u32, frame: ClientFrame<'_>) -> Flow {
        let open = matches!(self.kernel.conn(slot).stage, Stage::Open);
        match frame {
            ClientFrame::Auth { id, token, .. } if self.kernel.settings.auth.is_some() => {
                return self.show_token(slot, id.as_deref(), token);
            }
            ClientFrame::Auth { user, .. } => {
                let home = self.admission.authenticate(&mut self.kernel, slot, user.as_deref());
                return home.map_or(Flow::Next, Flow::Leave);
            }
            ClientFrame::Heartbeat => {
                let ts_ms = self.kernel.now.wall_ms;
                self.kernel.send(slot, &ServerMessage::Heartbeat { ts_ms });
            }
            ClientFrame::Message { id, .. }
            | ClientFrame::Presence { id, .. }
            | ClientFrame::Subscribe { id, .. }
            | ClientFrame::Unsubscribe { id, .. }
            | ClientFrame::Publish { id, .. }
                if !open =>
            {
                self.kernel.send_error(
                    slot,
                    id.as_deref(),
                    ErrorCode::Unauthorized,
                    "say who you are first: auth",
                );
                return Flow::Next;
            }
            ClientFrame::Message { id, to, content } => {
                self.messages
                    .route_message(&mut self.kernel, slot, id.as_deref(), &to, content)
            }
            ClientFrame::Presence { id, users } => {
                let mut distinct: Vec<Box<str>> = Vec::with_capacity(users.len());
                for user in users {
                    // An object has each key once. Of whom this user may not know it hears nothing
                    // at all.
                    if self.kernel.may_see(slot, &user) && !distinct.iter().any(|known| **known == *user) {
                        distinct.push(user.into());
                    }
                }
                self.presence
                    .ask_presence(&mut self.kernel, slot, id.as_deref(), distinct);
            }
            ClientFrame::Subscribe { id, channel } => {
                self.channels.subscribe(&mut self.kernel, slot, id.as_deref(), &channel)
            }
            ClientFrame::Unsubscribe { id, channel } => {
                self.channels
                    .unsubscribe(&mut self.kernel, slot, id.as_deref(), &channel)
            }
            ClientFrame::Publish { id, channel, content } => {
                self.channels
                    .publish(&mut self.kernel, slot, id.as_deref(), &channel, content)
            }
        }
        self.kernel.conn(slot).bad_frames = 0;
        Flow::Next
    }

    /// `auth` with a token.
    fn show_token(&mut self, slot: u32, client_id: Option<&str>, token: Option<Cow<'_, str>>) -> Flow {
        let token = token.map(|token| Token(token.into_owned()));
        match (&self.kernel.conn(slot).stage, token) {
            (Stage::Authenticating, Some(token)) => return Flow::Verify(token),
            (Stage::Open, Some(token)) => {
                self.admission
                    .begin_refreshing(&mut self.kernel, slot, client_id, token);
            }
            _ => self.kernel.begin_close(slot, CloseReason::InvalidCredential),
        }
        Flow::Next
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests as testing;
    use super::*;

    /// A connection that was closed has given its permit back, and must not hold the memory of one.
    #[test]
    fn behind_our_close_frame_no_long_message_is_taken() {
        for query in ["", "?user=alice"] {
            let mut core = testing::core(|config| config.limits.message_bytes = 1 << 20);
            let key = testing::connect(&mut core, 0, query);
            testing::carry_out(&mut core);
            core.kernel.begin_close(0, CloseReason::NoCredential);
            core.settle();
            // A text of 512 KiB, of which half comes.
            let header = [0x81, 0xff, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0];
            core.handle_received(key, &mut [&header[..], &[b'x'; 256 * 1024]].concat());
            assert_eq!(core.kernel.conn(0).decoder.heap_bytes(), 0, "{query}");
            assert!(matches!(
                core.kernel.conn(0).stage,
                Stage::Lingering { finished: false }
            ));
            testing::carry_out(&mut core);
            assert!(matches!(core.kernel.conn(0).stage, Stage::Lingering { finished: true }));
            core.check_invariants();
        }
    }
}
