//! The bytes that wait to be sent on one connection.
//!
//! Pure; owned by one shard. A connection has an outbox only while bytes wait or are in flight; the
//! shard keeps a few spare ones. Small frames are copied together into one buffer, so that ten
//! replies to one socket are one send. Shared frames are held by reference while they are alone or
//! large.
//!
//! Invariants: a segment begins and ends at a frame's edge (a close frame may follow any segment);
//! `bytes` is the sum of the waiting segments and of those in flight.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::payload::Payload;

/// Frames up to this size are copied together rather than sent one by one: copying 1 KiB costs less
/// than a tenth of a send.
const COPY_BYTES_MAX: usize = 1024;
/// A buffer of copied frames is closed at this size; one send then fills a socket buffer well.
const SEGMENT_BYTES_MAX: usize = 64 * 1024;
/// Buffers kept for use again, and the largest that is worth keeping.
const SPARE_MAX: usize = 1024;
const SPARE_BUFFER_BYTES_MAX: usize = 4096;

/// Bytes of one or more frames.
#[derive(Debug)]
struct Segment {
    payload: Payload,
    /// Frames in it that count as lost if they are dropped.
    frames: u32,
}

/// The frames that wait for one connection.
#[derive(Debug, Default)]
pub struct Outbox {
    segments: VecDeque<Segment>,
    bytes: usize,
    in_flight_bytes: usize,
    in_flight_frames: u32,
    /// The first waiting bytes, which must be sent in any case.
    kept_bytes: usize,
    /// When bytes last moved, milliseconds of the gateway's clock.
    moved_ms: u64,
}

impl Outbox {
    /// Bytes that wait or are in flight.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// True while a send is under way.
    pub fn in_flight(&self) -> bool {
        self.in_flight_bytes > 0
    }

    /// Notes that bytes move: a send begins, or the kernel has taken all of one.
    pub fn note_moved(&mut self, now_ms: u64) {
        self.moved_ms = now_ms;
    }

    /// How long the send in flight has not moved, milliseconds.
    pub fn stuck_for_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.moved_ms)
    }

    /// True when nothing waits and nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Frames that wait or are in flight, of those that were pushed as such.
    pub fn frames(&self) -> u32 {
        let waiting = self.segments.iter().map(|segment| segment.frames);
        waiting.fold(self.in_flight_frames, u32::saturating_add)
    }

    /// Appends bytes for this connection alone; they hold `frames` frames that count.
    pub fn push(&mut self, bytes: &[u8], frames: u32, spares: &mut Spares) {
        self.push_framed(&[], bytes, frames, spares);
    }

    /// As [`Outbox::push`], for a frame in two pieces.
    pub fn push_framed(&mut self, header: &[u8], payload: &[u8], frames: u32, spares: &mut Spares) {
        let len = header.len() + payload.len();
        self.bytes += len;
        match self.segments.back_mut() {
            Some(Segment {
                payload: Payload::Own(last),
                frames: before,
            }) if last.len() + len <= SEGMENT_BYTES_MAX => {
                last.extend_from_slice(header);
                last.extend_from_slice(payload);
                *before += frames;
            }
            _ => {
                let mut buffer = spares.buffer();
                buffer.reserve(len);
                buffer.extend_from_slice(header);
                buffer.extend_from_slice(payload);
                let payload = Payload::Own(buffer);
                self.segments.push_back(Segment { payload, frames });
            }
        }
    }

    /// Appends `frames` frames that other connections get too.
    pub fn push_shared(&mut self, bytes: &Bytes, frames: u32, spares: &mut Spares) {
        if bytes.len() <= COPY_BYTES_MAX && !self.segments.is_empty() {
            self.push(bytes, frames, spares);
        } else {
            self.bytes += bytes.len();
            let payload = Payload::Shared(bytes.clone());
            self.segments.push_back(Segment { payload, frames });
        }
    }

    /// The next bytes to send, if any and if nothing is in flight. They count as in flight from now
    /// on.
    pub fn take(&mut self, spares: &mut Spares) -> Option<Payload> {
        if self.in_flight() {
            return None;
        }
        let Segment {
            payload: mut first,
            mut frames,
        } = self.segments.pop_front()?;
        // A small shared frame and the small ones behind it go together.
        while let Some(next) = self.segments.front() {
            let next_len = next.payload.as_slice().len();
            if next_len > COPY_BYTES_MAX || first.as_slice().len() + next_len > SEGMENT_BYTES_MAX {
                break;
            }
            let buffer = match first {
                Payload::Own(ref mut buffer) => buffer,
                Payload::Shared(ref shared) if shared.len() <= COPY_BYTES_MAX => {
                    let mut buffer = spares.buffer();
                    buffer.extend_from_slice(shared);
                    first = Payload::Own(buffer);
                    continue;
                }
                Payload::Shared(_) => break,
            };
            buffer.extend_from_slice(next.payload.as_slice());
            if let Some(taken) = self.segments.pop_front() {
                frames += taken.frames;
                spares.recycle(taken.payload);
            }
        }
        self.in_flight_frames = frames;
        self.in_flight_bytes = first.as_slice().len();
        self.kept_bytes = self.kept_bytes.saturating_sub(self.in_flight_bytes);
        Some(first)
    }

    /// The send in flight is over.
    pub fn sent(&mut self, payload: Payload, spares: &mut Spares) {
        self.bytes -= self.in_flight_bytes;
        self.in_flight_bytes = 0;
        self.in_flight_frames = 0;
        spares.recycle(payload);
    }

    /// Bytes that wait now will not be dropped by [`Outbox::clear_waiting`]: without its `101` a
    /// client understands nothing.
    pub fn keep_waiting(&mut self) {
        self.kept_bytes = self.bytes - self.in_flight_bytes;
    }

    /// Drops everything that is not in flight or kept. Returns the frames that were in it; nothing
    /// that is kept is one.
    pub fn clear_waiting(&mut self, spares: &mut Spares) -> u32 {
        let mut dropped = 0u32;
        let mut kept = self.kept_bytes;
        // Without a new deque: its memory serves the next frames.
        for _ in 0..self.segments.len() {
            let Some(mut segment) = self.segments.pop_front() else {
                break;
            };
            dropped = dropped.saturating_add(std::mem::take(&mut segment.frames));
            let len = segment.payload.as_slice().len().min(kept);
            kept -= len;
            if len == 0 {
                spares.recycle(segment.payload);
                continue;
            }
            match &mut segment.payload {
                Payload::Own(buffer) => buffer.truncate(len),
                Payload::Shared(bytes) => bytes.truncate(len),
            }
            self.segments.push_back(segment);
        }
        self.bytes = self.in_flight_bytes + self.kept_bytes;
        dropped
    }
}

/// Outboxes and buffers for use again. One per shard.
#[derive(Debug, Default)]
pub struct Spares {
    buffers: Vec<Vec<u8>>,
    #[allow(
        clippy::vec_box,
        reason = "connections hold boxes: the spare ones are kept as they are"
    )]
    outboxes: Vec<Box<Outbox>>,
}

impl Spares {
    /// An empty outbox.
    pub fn outbox(&mut self) -> Box<Outbox> {
        self.outboxes.pop().unwrap_or_default()
    }

    /// Takes an outbox back.
    pub fn recycle_outbox(&mut self, mut outbox: Box<Outbox>) {
        outbox.kept_bytes = 0;
        outbox.clear_waiting(self);
        outbox.bytes = 0;
        outbox.in_flight_bytes = 0;
        outbox.moved_ms = 0;
        outbox.in_flight_frames = 0;
        if self.outboxes.len() < SPARE_MAX {
            self.outboxes.push(outbox);
        }
    }

    /// An empty buffer.
    pub fn buffer(&mut self) -> Vec<u8> {
        self.buffers.pop().unwrap_or_default()
    }

    /// Takes the buffer of a payload back.
    pub fn recycle(&mut self, payload: Payload) {
        if let Payload::Own(mut buffer) = payload
            && buffer.capacity() <= SPARE_BUFFER_BYTES_MAX
            && self.buffers.len() < SPARE_MAX
        {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// All pushed frames come out, in order, whole, and are counted.
        #[test]
        fn nothing_lost_or_reordered(
            steps in prop::collection::vec((0u8..3, prop_oneof![1usize..200, 900usize..1200, 60_000usize..70_000]), 1..60)
        ) {
            let mut spares = Spares::default();
            let mut outbox = Outbox::default();
            let (mut pushed, mut sent, mut ends) = (Vec::new(), Vec::new(), Vec::new());
            let mut in_flight: Option<Payload> = None;
            for (step, (what, size)) in steps.into_iter().enumerate() {
                match what {
                    0 => { let frame = vec![step as u8; size]; outbox.push(&frame, 1, &mut spares); pushed.extend(frame); ends.push(pushed.len()); }
                    1 => { let frame = Bytes::from(vec![step as u8; size]); outbox.push_shared(&frame, 1, &mut spares); pushed.extend(frame); ends.push(pushed.len()); }
                    _ => match in_flight.take() {
                        Some(payload) => { sent.extend_from_slice(payload.as_slice()); outbox.sent(payload, &mut spares); }
                        None => in_flight = outbox.take(&mut spares),
                    },
                }
                prop_assert_eq!(outbox.bytes(), pushed.len() - sent.len());
                prop_assert_eq!(outbox.in_flight(), in_flight.is_some());
                let unsent = ends.iter().filter(|end| **end > sent.len()).count();
                prop_assert_eq!(outbox.frames() as usize, unsent);
            }
            while let Some(payload) = in_flight.take().or_else(|| outbox.take(&mut spares)) {
                sent.extend_from_slice(payload.as_slice());
                outbox.sent(payload, &mut spares);
            }
            prop_assert!(outbox.is_empty());
            prop_assert_eq!(sent, pushed);
        }
    }

    #[test]
    fn what_is_kept_survives_a_clearing_and_nothing_else_does() {
        let mut spares = Spares::default();
        for in_flight in [false, true] {
            let mut outbox = Outbox::default();
            if in_flight {
                outbox.push(b"before", 1, &mut spares);
                assert!(outbox.take(&mut spares).is_some());
            }
            outbox.push(b"101", 0, &mut spares);
            outbox.keep_waiting();
            outbox.push(b"frame", 1, &mut spares);
            outbox.push_shared(&Bytes::from(vec![0; 2000]), 3, &mut spares);
            assert_eq!(outbox.frames(), 4 + u32::from(in_flight));
            assert_eq!(outbox.clear_waiting(&mut spares), 4);
            outbox.push(b"close", 0, &mut spares);
            assert_eq!(outbox.bytes(), 8 + if in_flight { 6 } else { 0 });
            if in_flight {
                outbox.sent(Payload::Own(b"before".to_vec()), &mut spares);
            }
            let sent = outbox.take(&mut spares).unwrap();
            assert_eq!(sent.as_slice(), b"101close");
            outbox.sent(sent, &mut spares);
            outbox.push(b"frame", 1, &mut spares);
            assert_eq!(outbox.clear_waiting(&mut spares), 1);
            assert_eq!(outbox.frames(), 0);
            assert!(outbox.is_empty(), "kept only until it was sent");
        }
    }

    #[test]
    fn one_shared_frame_is_not_copied_and_ten_small_ones_are_one_send() {
        let mut spares = Spares::default();
        let mut outbox = Outbox::default();
        let frame = Bytes::from_static(b"shared");
        outbox.push_shared(&frame, 1, &mut spares);
        let payload = outbox.take(&mut spares).unwrap();
        assert!(matches!(&payload, Payload::Shared(bytes) if bytes.as_ptr() == frame.as_ptr()));
        for _ in 0..10 {
            outbox.push_shared(&frame, 1, &mut spares);
        }
        outbox.sent(payload, &mut spares);
        assert_eq!(outbox.take(&mut spares).unwrap().as_slice().len(), 60);
    }
}
