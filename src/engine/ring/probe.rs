//! Whether this kernel can do what the engine needs.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::super::slab::RECEIVING;
use super::super::{Engine, EngineStats, Event};
use super::RingEngine;
use super::queue::unsupported;

/// How long the set-up waits for bytes that are already in the socket.
const PROBE_WAIT: Duration = Duration::from_secs(2);

const WORD: &[u8] = b"shardgate";

impl RingEngine {
    /// Checks what a probe of opcodes cannot show, with an engine that does not accept yet: a
    /// multishot receive that picks buffers, and goes on, and ends.
    ///
    /// # Errors
    /// `io::ErrorKind::Unsupported`, whatever is amiss, so that the other engine is tried.
    pub(super) fn probe(&mut self) -> io::Result<()> {
        self.receive_twice()
            .map_err(|error| unsupported("multishot receive (Linux 6.0)", &error))?;
        self.stats = EngineStats::default();
        Ok(())
    }

    fn receive_twice(&mut self) -> io::Result<()> {
        let failed = |what: &str| Err(io::Error::other(what.to_owned()));
        let deadline = Instant::now() + PROBE_WAIT;
        let (near, mut far) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        let key = self.adopt(near.into())?;
        self.receive_stream(key);
        for _ in 0..2 {
            far.write_all(WORD)?;
            loop {
                self.turn(Some(PROBE_WAIT))?;
                match self.next_event() {
                    Some(Event::Received { bytes, .. }) if *bytes == *WORD => break,
                    Some(Event::Ended { error: Some(error), .. }) => return Err(error),
                    Some(other) => return failed(&format!("{other:?} instead of bytes")),
                    None if Instant::now() > deadline => return failed("no bytes"),
                    None => {}
                }
            }
            let armed = self.slab.peek(key);
            if !armed.is_some_and(|entry| entry.any(RECEIVING)) {
                return failed("it stopped after one");
            }
        }
        self.close(key);
        while self.slab.len() > 0 && Instant::now() < deadline {
            self.turn(Some(PROBE_WAIT))?;
            while self.next_event().is_some() {}
        }
        if self.in_flight > 0 {
            return failed("it did not end");
        }
        Ok(())
    }
}
