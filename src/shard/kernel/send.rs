//! What is queued for one connection: frames within its bounds, acks, and what the control thread
//! is told.
//!
//! Sending never ends a connection. One that cannot take more is marked, and ends when the event is
//! through.

use bytes::Bytes;
use uuid::Uuid;

use super::Kernel;
use crate::auth::Grant;
use crate::engine::{Payload, SocketKey};
use crate::lanes::{AckTo, AdminToControl, ShardReply};
use crate::metrics::{DropReason, SentKind};
use crate::session::{Stage, Tally};
use crate::tls::TlsError;
use crate::wire::framing::Encoded;
use crate::wire::message::{AckStatus, ErrorCode, ServerMessage, Welcome};
use crate::wire::ws::close::CloseReason;
use crate::wire::ws::frame::Opcode;
use crate::wire::ws::server_frame::Header;

/// Bytes that may wait for a client whose user is not known. It gets errors and pongs, no more.
const PRE_AUTH_OUTBOX_BYTES_MAX: usize = 16 * 1024;

impl Kernel {
    /// Frames the body of a message and queues it for one connection. Returns false for a consumer
    /// that cannot take it, which is marked to be closed with 3008, and for one that is marked
    /// already.
    pub(in crate::shard) fn append(&mut self, slot: u32, body: &[u8], kind: SentKind) -> bool {
        let header = self.conn(slot).framing.header(body.len());
        self.append_frame(slot, header, body, kind)
    }

    /// Queues a WebSocket frame that is no message: a ping, a pong, an echo. Returns as
    /// [`Kernel::append`].
    pub(in crate::shard) fn append_opcode(
        &mut self,
        slot: u32,
        opcode: Opcode,
        payload: &[u8],
        kind: SentKind,
    ) -> bool {
        self.append_frame(slot, Header::new(opcode, payload.len()), payload, kind)
    }

    fn append_frame(&mut self, slot: u32, header: Header, payload: &[u8], kind: SentKind) -> bool {
        let mut limit = self.settings.limits.outbox_bytes;
        let conn = self.conn(slot);
        if let Stage::Doomed(_) = conn.stage {
            return false;
        }
        let missed = u32::from(kind.is_missed());
        if conn.tally == Tally::PreAuth {
            limit = limit.min(PRE_AUTH_OUTBOX_BYTES_MAX);
        }
        if conn.has_no_room(header.as_slice().len() + payload.len(), limit) {
            self.overflow(slot, 1);
            return false;
        }
        conn.messages_out = conn.messages_out.saturating_add(1);
        conn.unheard = conn.unheard.saturating_add(missed);
        self.push(slot, header.as_slice(), payload, missed);
        self.metrics().sent(kind);
        true
    }

    /// As [`Kernel::append_unlimited`], for bytes that `write` writes.
    pub(in crate::shard) fn append_written(&mut self, slot: u32, write: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        write(&mut bytes);
        self.append_unlimited(slot, &bytes);
        self.scratch = bytes;
    }

    /// Queues a close frame that `write` writes. The peer has a moment to read it and to answer.
    pub(in crate::shard) fn send_close(&mut self, slot: u32, write: impl FnOnce(&mut Vec<u8>)) {
        self.append_written(slot, write);
        self.metrics().sent(SentKind::Close);
        self.await_close(slot);
    }

    /// Queues bytes that are bounded by something else, and that nobody misses.
    pub(in crate::shard) fn append_unlimited(&mut self, slot: u32, bytes: &[u8]) {
        self.push(slot, &[], bytes, 0);
    }

    fn push(&mut self, slot: u32, header: &[u8], payload: &[u8], frames: u32) {
        let conn = &mut self.connections[slot as usize];
        let spares = &mut self.spares;
        let outbox = conn.outbox.get_or_insert_with(|| spares.outbox());
        outbox.push_framed(header, payload, frames, spares);
        self.mark_dirty(slot);
    }

    /// As [`Kernel::append`], for a body that other connections get too.
    pub(in crate::shard) fn append_shared(&mut self, slot: u32, message: &Encoded, kind: SentKind) -> bool {
        let framing = self.conn(slot).framing;
        self.append_shared_frames(slot, message.framed(framing), 1, kind)
    }

    /// As [`Kernel::append_shared`], for several messages at once, framed already.
    pub(in crate::shard) fn append_shared_frames(
        &mut self,
        slot: u32,
        frame: &Bytes,
        frames: u32,
        kind: SentKind,
    ) -> bool {
        let limit = self.settings.limits.outbox_bytes;
        let conn = &mut self.connections[slot as usize];
        if let Stage::Doomed(_) = conn.stage {
            return false;
        }
        if conn.has_no_room(frame.len(), limit) {
            self.overflow(slot, frames);
            return false;
        }
        conn.messages_out = conn.messages_out.saturating_add(frames);
        conn.unheard = conn.unheard.saturating_add(frames);
        let spares = &mut self.spares;
        conn.outbox
            .get_or_insert_with(|| spares.outbox())
            .push_shared(frame, frames, spares);
        self.mark_dirty(slot);
        self.metrics().sent_many(kind, frames.into());
        true
    }

    /// The outbox is full: what waits is dropped, so that the close frame is the next thing the
    /// peer reads; and so are the frames that found no room.
    fn overflow(&mut self, slot: u32, frames: u32) {
        let waited = self.drop_waiting(slot);
        self.metrics()
            .dropped_many(DropReason::FrameSlowConsumer, u64::from(waited) + u64::from(frames));
        self.begin_close(slot, CloseReason::SlowConsumer);
    }

    /// Drops what waits and need not arrive. Returns how many frames that were; they are the
    /// caller's to count.
    pub(in crate::shard) fn drop_waiting(&mut self, slot: u32) -> u32 {
        let spares = &mut self.spares;
        let mut frames = 0;
        if let Some(outbox) = self.connections[slot as usize].outbox.as_mut() {
            frames = outbox.clear_waiting(spares);
            // An outbox exists only while it holds bytes.
            if outbox.is_empty()
                && let Some(outbox) = self.connections[slot as usize].outbox.take()
            {
                self.spares.recycle_outbox(outbox);
            }
        }
        let conn = self.conn(slot);
        conn.unheard = conn.unheard.saturating_sub(frames);
        frames
    }

    /// Counts frames that were queued for a connection that is lost.
    pub(in crate::shard) fn count_lost(&mut self, frames: u32) {
        if frames > 0 {
            self.metrics()
                .dropped_many(DropReason::FrameConnectionLost, frames.into());
        }
    }

    /// Encodes a message for one connection and queues it. Returns as [`Kernel::append`].
    pub(in crate::shard) fn send(&mut self, slot: u32, message: &ServerMessage<'_>) -> bool {
        let mut body = std::mem::take(&mut self.scratch);
        body.clear();
        self.conn(slot).codec.encode(&mut body, message);
        let queued = self.append(slot, &body, SentKind::of(message));
        self.scratch = body;
        queued
    }

    /// Queues an `error`.
    pub(in crate::shard) fn send_error(&mut self, slot: u32, id: Option<&str>, code: ErrorCode, message: &str) {
        self.send(slot, &ServerMessage::Error { id, code, message });
    }

    /// The receiver of the ack for what the connection on `slot` sent, if it gave an `id`.
    pub(in crate::shard) fn ack_to<'a>(
        &self,
        slot: u32,
        client_id: Option<&'a str>,
        message_id: Uuid,
    ) -> Option<AckTo<'a>> {
        client_id.map(|client_id| AckTo {
            shard: self.me,
            conn: self.key(slot),
            client_id,
            message_id,
        })
    }

    /// As [`Kernel::answer`], if the sender gave an `id` and the status is known by now.
    pub(in crate::shard) fn answer_if_known(&mut self, ack_to: Option<&AckTo<'_>>, status: Option<AckStatus>) {
        if let (Some(ack_to), Some(status)) = (ack_to, status) {
            self.answer(ack_to, status);
        }
    }

    /// Tells a sender what became of its message.
    pub(in crate::shard) fn answer(&mut self, ack_to: &AckTo<'_>, status: AckStatus) {
        if let Some(ticket) = ack_to.conn.system_ticket() {
            debug_assert_eq!(ack_to.shard, self.me, "the system sends where the receiver lives");
            return self.reply(ticket, ShardReply::Status(status));
        }
        if ack_to.shard != self.me {
            return self.lanes.ack(ack_to, status);
        }
        // The sender may be gone.
        if self.is_open(ack_to.conn) {
            self.metrics().acked(status);
            let ack = ServerMessage::Ack {
                id: ack_to.client_id,
                message_id: ack_to.message_id,
                status,
            };
            self.send(ack_to.conn.slot, &ack);
        } else {
            self.metrics().dropped(DropReason::ReplyGone);
        }
    }

    pub(in crate::shard) fn send_welcome(&mut self, slot: u32) {
        let Some(user) = self.conn(slot).user else {
            return;
        };
        let id = self.conn(slot).id;
        let expires_at_ms = self.conn(slot).grant.as_ref().map(|grant| grant.expires_at_ms);
        let ends = expires_at_ms.filter(|at| *at != Grant::FOR_EVER);
        let codec = self.conn(slot).codec;
        let mut body = std::mem::take(&mut self.scratch);
        body.clear();
        let welcome = ServerMessage::Welcome(Welcome {
            conn: id,
            user: self.users.name(user),
            gateway: &self.shared.gateway_id,
            heartbeat_ms: self.settings.heartbeat.interval.as_millis() as u64,
            expires_at_ms: ends,
        });
        codec.encode(&mut body, &welcome);
        self.append(slot, &body, SentKind::Welcome);
        self.scratch = body;
    }

    /// Says what came of a query.
    pub(in crate::shard) fn reply(&mut self, ticket: u32, reply: ShardReply) {
        self.lanes.push_control(AdminToControl::Reply(ticket, reply));
    }

    /// The next bytes to send on a connection that speaks TLS; `None` if there are none.
    ///
    /// # Errors
    /// Nothing more can be sent on it.
    pub(in crate::shard) fn sealed_payload(&mut self, key: SocketKey) -> Result<Option<Payload>, TlsError> {
        let conn = &mut self.connections[key.slot as usize];
        let Some(tls) = conn.tls.as_mut() else {
            return Ok(None);
        };
        if tls.wants_payload()
            && let Some(outbox) = conn.outbox.as_mut()
            && let Some(payload) = outbox.take(&mut self.spares)
        {
            tls.begin(payload);
        }
        if !tls.has_to_send() {
            return Ok(None);
        }
        tls.seal(self.spares.buffer()).map(|wire| Some(Payload::Own(wire)))
    }
}
