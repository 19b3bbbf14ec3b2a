//! The interface of a scenario to the driver of a thread.

use crate::board::{Board, Phase};
use crate::net::{End, Net};
use crate::tally::Tally;

/// Messages sent in one turn before the sockets are read again.
pub(super) const SENDS_PER_TURN_MAX: u32 = 128;

/// One thread's part of a scenario. It sees frames and time, and sends through [`Net`]; it owns no
/// socket.
pub(crate) trait Scenario {
    /// A text frame came for connection `index`, read at `now_ns`.
    fn handle_text(&mut self, net: &mut Net, index: usize, text: &[u8], now_ns: u64);

    /// The run entered `phase`.
    fn handle_phase(&mut self, _net: &mut Net, _phase: Phase, _board: &Board) {}

    /// Called every turn, and at [`Self::poll_timeout`] at the latest: send what is due.
    fn handle_timeout(&mut self, _net: &mut Net, _now_ns: u64) {}

    /// When something will be due.
    fn poll_timeout(&self, _net: &Net) -> Option<u64> {
        None
    }

    /// Connection `index` takes bytes again.
    fn handle_writable(&mut self, _net: &mut Net, _index: usize, _now_ns: u64) {}

    /// Connection `index` is ready, for the first time or again.
    fn handle_ready(&mut self, _net: &mut Net, _index: usize, _now_ns: u64) {}

    /// Connection `index`, which was ready, is over, or did not come back.
    fn handle_gone(&mut self, _net: &mut Net, _index: usize, _end: &End, _now_ns: u64) {}

    /// Users who are to come back.
    fn away(&self) -> u64 {
        0
    }

    /// Whether what has to be done before load is done; false if there can be no load.
    fn prepared(&self) -> Option<bool> {
        Some(true)
    }

    /// Whether nothing is under way any more.
    fn is_drained(&self) -> bool {
        true
    }

    /// With the connections closed: whether what other threads say will not change any more.
    fn is_over(&self) -> bool {
        true
    }

    /// The thread ends: complete the counts.
    fn finish(&mut self, _tally: &mut Tally, _now_ns: u64) {}
}
