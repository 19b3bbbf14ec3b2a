//! The scenarios of the generator: each is one implementation of [`Scenario`].
//!
//! A new one is a file here, a variant of [`Kind`](crate::kind::Kind) and an arm in `workers`,
//! which starts the threads.

mod acks;
mod behaviour;
mod direct;
mod fanout;
mod idle;
mod mixed;
mod plan;
mod schedule;
mod storm;

pub(crate) use behaviour::Scenario;
pub(crate) use direct::Direct;
pub(crate) use fanout::Fanout;
pub(crate) use idle::Idle;
pub(crate) use mixed::Mixed;
pub(crate) use storm::Storm;
