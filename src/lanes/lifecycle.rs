//! The life of a shard: its settings, the drain, the end.

use std::sync::Arc;

use crate::session::drain::DrainPlan;
use crate::settings::Settings;

/// What the control thread posts to every shard.
#[derive(Debug)]
pub enum LifecycleToShard {
    /// New settings.
    Settings(Arc<Settings>),
    /// Keys were fetched, or could not be, because a shard wanted them.
    KeysFetched,
    /// Tell the clients to go, and close those that stay.
    Drain(DrainPlan),
    /// Close everything and end.
    Stop,
}

/// What a shard tells the control thread of its life.
#[derive(Debug)]
pub enum LifecycleToControl {
    /// A client shows a token that is signed with an unknown key. [`LifecycleToShard::KeysFetched`]
    /// is the answer, whatever came of it.
    KeysWanted,
    /// The drain is over here.
    Drained {
        /// Clients that went by themselves.
        left: u64,
        /// Clients that were closed.
        closed: u64,
    },
    /// The shard has ended.
    Ended {
        /// What broke; `None`: nothing did.
        cause: Option<Box<str>>,
    },
}
