//! What a generator can do: each scenario is one implementation of [`Scenario`].
//!
//! A new one is a file here, a variant of [`Kind`] and an arm where the coordinator starts the threads.

mod acks;
mod direct;
mod fanout;
mod idle;
mod schedule;

pub(crate) use direct::Direct;
pub(crate) use fanout::Fanout;
pub(crate) use idle::Idle;

use crate::board::{Board, Phase};
use crate::net::Net;
use crate::tally::Tally;

/// Messages sent in one turn before the sockets are read again.
const SENDS_PER_TURN_MAX: u32 = 128;

/// The scenarios that exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// [`Idle`]
    Idle,
    /// [`Direct`]
    Direct,
    /// [`Fanout`]
    Fanout,
}

const NAMES: [(&str, Kind); 3] = [("idle", Kind::Idle), ("direct", Kind::Direct), ("fanout", Kind::Fanout)];

impl Kind {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }

    pub(crate) fn name(self) -> &'static str {
        NAMES
            .iter()
            .find(|(_, kind)| *kind == self)
            .map_or("", |(name, _)| name)
    }

    /// All names, for messages.
    pub(crate) fn names() -> String {
        NAMES.map(|(name, _)| name).join(", ")
    }

    /// Users come in groups of so many, and a group stays on one thread.
    pub(crate) fn unit(self) -> usize {
        match self {
            Self::Idle | Self::Fanout => 1,
            Self::Direct => 2,
        }
    }
}

/// One thread's part of a scenario. It sees frames and time, and sends through [`Net`]; it owns no socket.
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

    /// Connection `index`, which was ready, is over.
    fn handle_gone(&mut self, _net: &mut Net, _index: usize) {}

    /// Whether what has to be done before load is done; false if there can be no load.
    fn prepared(&self) -> Option<bool> {
        Some(true)
    }

    /// Whether nothing is under way any more.
    fn is_drained(&self) -> bool {
        true
    }

    /// The thread ends: complete the counts.
    fn finish(&mut self, _tally: &mut Tally, _now_ns: u64) {}
}
