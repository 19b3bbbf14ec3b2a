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
