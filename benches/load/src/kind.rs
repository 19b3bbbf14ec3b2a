//! Which scenarios there are. Pure.

use clap::ValueEnum;

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
