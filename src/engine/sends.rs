//! Sends that the kernel has not finished. Owned by the engine; each entry owns its payload until
//! then.

use super::Payload;

/// At most this much is asked of the kernel at once: its lengths are 32 bits, results 31.
const LEN_MAX: usize = 1 << 30;

#[derive(Debug)]
struct Outgoing {
    payload: Option<Payload>,
    sent: usize,
}

/// Payloads by index.
///
/// Moving an entry (the table grows) does not move the bytes: both kinds of [`Payload`] keep them
/// on the heap. The ring relies on that, and on nobody touching a payload before [`Sends::finish`].
#[derive(Debug, Default)]
pub(super) struct Sends {
    entries: Vec<Outgoing>,
    free: Vec<u32>,
}

impl Sends {
    /// Takes a payload, `sent` bytes of which are out already.
    pub(super) fn begin(&mut self, payload: Payload, sent: usize) -> u32 {
        let outgoing = Outgoing {
            payload: Some(payload),
            sent,
        };
        match self.free.pop() {
            Some(index) => {
                self.entries[index as usize] = outgoing;
                index
            }
            None => {
                self.entries.push(outgoing);
                // At most one per socket, so the index fits as theirs does.
                self.entries.len() as u32 - 1
            }
        }
    }

    /// The bytes that are to be sent next.
    pub(super) fn rest(&self, index: u32) -> &[u8] {
        let outgoing = &self.entries[index as usize];
        let bytes = outgoing.payload.as_ref().map_or(&[][..], Payload::as_slice);
        let rest = &bytes[outgoing.sent.min(bytes.len())..];
        &rest[..rest.len().min(LEN_MAX)]
    }

    /// Notes that `len` more bytes are out. True when that was all.
    pub(super) fn advance(&mut self, index: u32, len: usize) -> bool {
        self.entries[index as usize].sent += len;
        self.rest(index).is_empty()
    }

    /// Gives the payload back and frees the index. The kernel must be done with it.
    pub(super) fn finish(&mut self, index: u32) -> Option<Payload> {
        self.free.push(index);
        self.entries[index as usize].payload.take()
    }
}
