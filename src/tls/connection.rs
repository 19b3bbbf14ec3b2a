//! The TLS state of one connection.
//!
//! Owned by one shard; no system call, no clock of ours. rustls' *unbuffered* connection, because
//! the other one keeps a receive buffer of 4 KiB for as long as the connection lives. Here bytes
//! stay only while a record is half-way in or a payload half-way out: an idle connection has none.
//!
//! Records must leave in the order in which they were sealed, as they are numbered and keys may
//! change between two of them. So payloads wait as they are. They are sealed when they are sent,
//! behind the records that TLS itself sends by then.

use std::fmt;
use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus};
use rustls::{Error, ServerConfig};

use crate::payload::Payload;

/// Bytes of a payload that are sealed at once. One send then fills a socket buffer well. A consumer
/// that does not read holds no sealed copy of its whole outbox.
const SEAL_BYTES_MAX: usize = 64 * 1024;
/// Largest plain text of one record.
const RECORD_BYTES_MAX: usize = 16 * 1024;
/// Bytes by which one record is longer than its text, for the cipher suites of rustls; a guess is
/// enough.
const RECORD_OVERHEAD: usize = 32;
/// Received bytes that may wait for more. A record has at most 16 KiB and a little, a handshake
/// message of rustls 64 KiB. A message in tiny records brings their headers along.
const PARTIAL_BYTES_MAX: usize = 80 * 1024;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// rustls refused received bytes, or bytes that were to be sent.
    #[error(transparent)]
    Refused(#[from] Error),
    /// A handshake message in too many pieces.
    #[error("a handshake message of more than {PARTIAL_BYTES_MAX} bytes")]
    TooLong,
    /// The keys have sealed as much as is safe; only TLS 1.2 cannot get new ones.
    #[error("this connection's keys are used up")]
    KeysUsedUp,
}

/// One connection's TLS.
pub struct Tls {
    rustls: UnbufferedServerConnection,
    /// Received bytes that are no whole record or handshake message yet.
    partial: Vec<u8>,
    /// Sealed records of TLS itself: handshake, tickets, alerts.
    own: Vec<u8>,
    /// The payload that is being sent, plain, and how much of it is sealed.
    payload: Option<Payload>,
    sealed: usize,
    /// A send is under way.
    in_flight: bool,
    /// Something was received.
    begun: bool,
    /// The server has answered the first step of the handshake.
    answered: bool,
    /// The peer sent its `close_notify`.
    peer_closed: bool,
    /// Nothing is read or sealed any more: a fatal alert or our `close_notify` was sent.
    over: bool,
}

impl Tls {
    /// A connection that has received nothing yet.
    ///
    /// # Errors
    /// rustls does not take the configuration.
    pub fn new(server: &Arc<ServerConfig>) -> Result<Self, TlsError> {
        Ok(Tls {
            rustls: UnbufferedServerConnection::new(Arc::clone(server))?,
            partial: Vec::new(),
            own: Vec::new(),
            payload: None,
            sealed: 0,
            in_flight: false,
            begun: false,
            answered: false,
            peer_closed: false,
            over: false,
        })
    }

    /// True once something was received.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// True once the server has answered: in nearly every handshake its part is done then, which is
    /// most of the work.
    pub fn has_answered(&self) -> bool {
        self.answered
    }

    /// True until both sides have finished the handshake.
    pub fn is_handshaking(&self) -> bool {
        self.rustls.is_handshaking()
    }

    /// True once the peer sent its `close_notify`. An end without it may have been forged.
    pub fn peer_has_closed(&self) -> bool {
        self.peer_closed
    }

    /// True if nothing waits to be sent and nothing is in flight.
    pub fn is_flushed(&self) -> bool {
        self.own.is_empty() && self.payload.is_none() && !self.in_flight
    }

    /// Takes received bytes and appends their plain text to `plain`. Replies of TLS itself are sent
    /// with the next [`Tls::seal`].
    ///
    /// # Errors
    /// The peer breaks the protocol. `plain` has the text before that, and the alert with the cause
    /// is ready to be sent.
    pub fn read(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>) -> Result<(), TlsError> {
        if self.over {
            return Ok(());
        }
        self.begun = true;
        let read = if self.partial.is_empty() {
            // Nearly every record arrives whole and is read where it lies.
            let read = self.read_records(bytes, plain);
            if let Ok(used) = read {
                self.partial = bytes[used..].to_vec();
            }
            read
        } else {
            let mut whole = std::mem::take(&mut self.partial);
            whole.extend_from_slice(bytes);
            let read = self.read_records(&mut whole, plain);
            if let Ok(used) = read
                && used < whole.len()
            {
                whole.drain(..used);
                self.partial = whole;
            }
            read
        };
        let read = match read {
            Ok(_) if self.partial.len() > PARTIAL_BYTES_MAX => Err(TlsError::TooLong),
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        };
        if read.is_err() {
            self.collect_own();
            self.partial = Vec::new();
            self.over = true;
        }
        read
    }

    /// Reads the records at the front of `bytes`; returns how much need not be shown again.
    fn read_records(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>) -> Result<usize, Error> {
        let mut used = 0;
        loop {
            let UnbufferedStatus { mut discard, state } = self.rustls.process_tls_records(&mut bytes[used..]);
            let mut blocked = false;
            match state? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    self.answered = true;
                    append(&mut self.own, 0, |room| data.encode(room))?;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => self.peer_closed = true,
                // Whole records are never left, and there is no early data.
                _ => blocked = true,
            }
            used += discard;
            if blocked {
                return Ok(used);
            }
        }
    }

    /// Takes the handshake messages and alerts that rustls has ready.
    fn collect_own(&mut self) {
        // While it wants to write, it looks at nothing that was received.
        while self.rustls.wants_write() {
            let taken = match self.rustls.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => append(&mut self.own, 0, |room| data.encode(room)),
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while traffic.next_record().is_some() {}
                    Ok(())
                }
                _ => return,
            };
            if taken.is_err() {
                return;
            }
        }
    }

    /// Sends `close_notify` behind everything that was sealed. Returns whether there is anything to
    /// send because of it. To be called when everything is sent; it may be called again.
    pub fn close(&mut self) -> bool {
        if self.over || self.rustls.is_handshaking() {
            return false;
        }
        self.over = true;
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) = self.rustls.process_tls_records(&mut self.partial).state
        {
            // It fails only if the keys are used up, and then no alert can be sealed.
            let _ = append(&mut self.own, RECORD_OVERHEAD, |room| traffic.queue_close_notify(room));
        }
        !self.own.is_empty()
    }

    /// True if a payload may begin.
    pub fn wants_payload(&self) -> bool {
        self.payload.is_none() && !self.in_flight && !self.over
    }

    /// Begins a payload, which [`Tls::wants_payload`].
    pub fn begin(&mut self, payload: Payload) {
        debug_assert!(self.wants_payload(), "two payloads at once");
        self.payload = Some(payload);
        self.sealed = 0;
    }

    /// True if [`Tls::seal`] has something for the socket.
    pub fn has_to_send(&self) -> bool {
        !self.in_flight && (!self.own.is_empty() || (self.payload.is_some() && !self.over))
    }

    /// The next bytes for the socket: first records of TLS itself, then as much of the payload as
    /// goes into one send. `wire` is an empty buffer to seal into.
    ///
    /// # Errors
    /// Nothing can be sealed any more.
    pub fn seal(&mut self, wire: Vec<u8>) -> Result<Vec<u8>, TlsError> {
        debug_assert!(self.has_to_send(), "nothing to seal, or too early");
        let mut sealed = match self.own.is_empty() {
            true => wire,
            false => std::mem::take(&mut self.own),
        };
        if let Some(payload) = &self.payload
            && !self.over
        {
            let rest = &payload.as_slice()[self.sealed..];
            let piece = &rest[..rest.len().min(SEAL_BYTES_MAX)];
            // Room for the records of the piece, and for a change of keys before them.
            let room = piece.len() + (piece.len() / RECORD_BYTES_MAX + 2) * RECORD_OVERHEAD;
            // A record that is half-way in is passed again, as rustls remembers positions in it; it
            // finds nothing new there.
            match self.rustls.process_tls_records(&mut self.partial).state? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    append(&mut sealed, room, |room| traffic.encrypt(piece, room)).map_err(|_| TlsError::KeysUsedUp)?;
                }
                _ => return Err(Error::HandshakeNotComplete.into()),
            }
            self.sealed += piece.len();
        }
        self.in_flight = true;
        Ok(sealed)
    }

    /// The send under way is over. Gives the payload back once nothing more of it will be sent.
    pub fn sent(&mut self) -> Option<Payload> {
        self.in_flight = false;
        let (over, sealed) = (self.over, self.sealed);
        self.payload
            .take_if(|payload| over || payload.as_slice().len() == sealed)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// The error of rustls when it is given too little room.
trait Short: Sized {
    fn required_size(&self) -> Option<usize>;
}

impl Short for EncodeError {
    fn required_size(&self) -> Option<usize> {
        match self {
            EncodeError::InsufficientSize(InsufficientSizeError { required_size }) => Some(*required_size),
            EncodeError::AlreadyEncoded => None,
        }
    }
}

impl Short for EncryptError {
    fn required_size(&self) -> Option<usize> {
        match self {
            EncryptError::InsufficientSize(InsufficientSizeError { required_size }) => Some(*required_size),
            EncryptError::EncryptExhausted => None,
        }
    }
}

/// Lets rustls write behind the bytes in `out`, with as much room as it needs. A good `guess` saves
/// a second call.
fn append<E: Short>(
    out: &mut Vec<u8>,
    guess: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<(), Error> {
    let start = out.len();
    let mut room = guess;
    loop {
        out.resize(start + room, 0);
        let written = write(&mut out[start..]);
        match written.as_ref().map_err(Short::required_size) {
            Ok(written) => {
                out.truncate(start + written);
                return Ok(());
            }
            Err(Some(required)) if required > room => room = required,
            Err(_) => {
                out.truncate(start);
                return Err(Error::EncryptError);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that we add to rustls' own state, which is ten times as much, most of it behind
    /// pointers.
    #[test]
    fn the_state_is_small() {
        let ours = size_of::<Tls>() - size_of::<UnbufferedServerConnection>();
        assert!(ours <= 112, "{ours}");
    }
}
