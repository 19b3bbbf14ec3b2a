//! What a generator can do: each scenario is one implementation of [`Scenario`].
//!
//! A new one is a file here, a variant of [`Kind`] and an arm where the coordinator starts the threads.

mod acks;
mod chat;
mod direct;
mod fanout;
mod idle;
mod mixed;
mod plan;
mod schedule;
mod storm;

pub(crate) use chat::Chat;
pub(crate) use direct::Direct;
pub(crate) use fanout::Fanout;
pub(crate) use idle::Idle;
pub(crate) use mixed::Mixed;
pub(crate) use storm::Storm;

use clap::ValueEnum;

use crate::board::{Board, Phase};
use crate::net::{End, Net};
use crate::tally::Tally;

/// Messages sent in one turn before the sockets are read again.
const SENDS_PER_TURN_MAX: u32 = 128;

/// The scenarios that exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Connect and hold N authenticated connections
    Idle,
    /// Users are paired and send messages to each other
    Direct,
    /// Users subscribe to channels, to which others publish
    Fanout,
    /// Everyone is cut off at once and comes back
    Storm,
    /// A day of chat: people come, talk in pairs and in rooms, and go
    Mixed,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Storm => "storm",
            Self::Mixed => "mixed",
        }
    }

    /// Users come in groups of so many, and a group stays on one thread.
    pub(crate) fn unit(self) -> usize {
        match self {
            Self::Idle | Self::Fanout => 1,
            Self::Direct | Self::Storm | Self::Mixed => 2,
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
