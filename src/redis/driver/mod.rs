//! The one task that knows all servers. It hands each operation to the right one, and sends events
//! when servers come and go.
//!
//! Owns the nodes, who serves which slot, and what is subscribed to where. Everything reaches it
//! through one channel, so requests are handed on in the order in which they were made. One server,
//! or a master behind sentinels, is one node that serves slot 0, where everything is then.
//!
//! | file | duty |
//! | --- | --- |
//! | `core` | the state |
//! | `schedule` | pure: when discovery is asked again |
//! | `slots` | the picture of a cluster |
//! | `watch` | where a node's connections should be |
//! | `run` | the task |

mod core;
mod run;
mod schedule;
mod slots;
mod watch;

pub(super) use self::core::Driver;
