//! Many gateways as one system: what each knows of the others, sends to them and receives from
//! them.
//!
//! Pure: [`Cluster`] is data and rules, owned by the control thread. Batches of shards and events
//! of the store come in through `handle_*`; requests to the store and subscriptions come out of
//! `poll_*`, and mail to shards goes into the control thread's lanes. The store is Redis, or a
//! model of it in simulations; time comes as an argument.
//!
//! Each part owns its tables and names no other part. What concerns two goes through the files at
//! the end of the table.
//!
//! | file | duty |
//! | --- | --- |
//! | [`store`] | the contract with the store |
//! | [`packet`] | the framing between gateways |
//! | `verdict` | what senders hear |
//! | **parts** | |
//! | [`membership`] | the lease of this gateway |
//! | `subscriptions` | the channels of gateways that it is subscribed to |
//! | [`directory`] | the other gateways |
//! | `mismatch` | other gateways whose configuration does not fit |
//! | [`presence`] | writing down who is here |
//! | `sweeps` | clearing what dead gateways, and earlier incarnations, wrote |
//! | [`audit`] | a slow walk over our users, which finds what the store has lost |
//! | [`lookups`] | where users are: what is asked of the store, in which order, how much of it at once |
//! | [`inquiries`] | where users are, for administrators |
//! | `deferred` | answers that wait for the directory |
//! | [`outbound`] | packets to others, and senders who want to hear |
//! | [`inbound`] | packets of others |
//! | [`partitions`] | publications: partitions that are subscribed, and published in |
//! | `commands` | commands for the shards of all gateways |
//! | [`seal`] | tags of packets, and who is not believed |
//! | [`probe`] | whether what is published on our channel reaches us |
//! | `requests` | what was asked of the store, and how it is |
//! | `shards` | which shard a user lives on, and the lanes there |
//! | **together** | |
//! | `core` | [`Cluster`]: all parts, and what may be asked of it |
//! | `effects` | what concerns several parts at once |
//! | `mail` | what shards say |
//! | `received` | packets of other gateways |
//! | `answers` | what the store says |
//! | `turn` | the end of a turn: what goes out, what is judged |

mod answers;
pub mod audit;
mod commands;
mod core;
mod deferred;
pub mod directory;
mod effects;
pub mod inbound;
pub mod inquiries;
pub mod lookups;
mod mail;
pub mod membership;
mod mismatch;
pub mod outbound;
pub mod packet;
pub mod partitions;
pub mod presence;
pub mod probe;
mod received;
mod requests;
pub mod seal;
mod shards;
pub mod store;
mod subscriptions;
mod sweeps;
mod turn;
mod verdict;

pub use self::core::{Cluster, Identity, Outstanding};
pub use subscriptions::Subscription;
pub use verdict::{TooMuchWaits, Verdict};
