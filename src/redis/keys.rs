//! Names of keys and channels. Pure.
//!
//! | name | type | what |
//! | --- | --- | --- |
//! | `<prefix>user:<user>` | hash | where a user is: incarnation to number of connections |
//! | `<prefix>index:<incarnation>` | set | users that an incarnation wrote down, for the sweep after its death |
//! | `<prefix>{gateways}` | hash | the directory: incarnation to gateway id |
//! | `<prefix>{gateways}:lease:<id>` | string | the lease of a gateway id, expires |
//! | `<prefix>{gateways}:takeover:<id>` | string | claim: somebody takes over this id, expires |
//! | `<prefix>{gateways}:sweep:<incarnation>` | string | claim: somebody sweeps this incarnation, expires |
//! | `<prefix>gw:<id>:<incarnation>` | channel | one life of one gateway |
//! | `<prefix>all` | channel | all gateways |
//! | `<prefix>part:<n>` | channel | publications of the channels of one partition |
//!
//! Keys belong to a database, channels to the whole server: two systems with one prefix in two
//! databases would receive each other's packets. So every channel of a database other than 0 ends
//! with `@db<n>`. It is a suffix because no other system's channel can end like that, whatever its
//! prefix is. Database 0 has none, as in earlier versions.
//!
//! `{gateways}` is a hash tag: in a cluster directory and leases share a slot, so one MGET reads
//! all leases. A user or gateway id with braces of its own may share a slot with others. Nothing
//! depends on the slot of such a key.

use std::sync::Arc;

use crate::cluster::store::{Channel, Incarnation, Task};

/// Makes names, all with one prefix.
#[derive(Debug, Clone)]
pub struct Names {
    prefix: Arc<str>,
    /// The suffix of every channel: the database, unless it is 0.
    channel_end: Arc<str>,
}

impl Names {
    /// Those of the system with this prefix in this database.
    pub fn new(prefix: &str, db: u32) -> Names {
        let channel_end = if db == 0 { String::new() } else { format!("@db{db}") };
        Names {
            prefix: prefix.into(),
            channel_end: channel_end.into(),
        }
    }

    pub(super) fn user(&self, user: &str) -> String {
        format!("{}user:{user}", self.prefix)
    }

    /// The user of a key that [`Names::user`] made; `None` for any other key.
    pub(super) fn user_of(&self, key: &[u8]) -> Option<Arc<str>> {
        let rest = key.strip_prefix(self.prefix.as_bytes())?.strip_prefix(b"user:")?;
        std::str::from_utf8(rest).ok().map(Arc::from)
    }

    pub(super) fn index(&self, owner: Incarnation) -> String {
        format!("{}index:{owner}", self.prefix)
    }

    pub(super) fn directory(&self) -> String {
        format!("{}{{gateways}}", self.prefix)
    }

    pub(super) fn lease(&self, id: &str) -> String {
        format!("{}{{gateways}}:lease:{id}", self.prefix)
    }

    pub(super) fn claim(&self, task: &Task) -> String {
        match task {
            Task::TakeOver(id) => format!("{}{{gateways}}:takeover:{id}", self.prefix),
            Task::Sweep(owner) => format!("{}{{gateways}}:sweep:{owner}", self.prefix),
        }
    }

    /// The name of a channel, on the whole server.
    pub fn channel(&self, channel: &Channel) -> String {
        let end = &self.channel_end;
        match channel {
            Channel::Gateway(id, incarnation) => format!("{}gw:{id}:{incarnation}{end}", self.prefix),
            Channel::All => format!("{}all{end}", self.prefix),
            Channel::Partition(number) => format!("{}part:{number}{end}", self.prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_documented() {
        let names = Names::new("p:", 0);
        let life = Incarnation(0xab);
        assert_eq!(names.user("bob"), "p:user:bob");
        assert_eq!(names.index(life), "p:index:00000000000000ab");
        assert_eq!(names.directory(), "p:{gateways}");
        assert_eq!(names.lease("gw"), "p:{gateways}:lease:gw");
        assert_eq!(names.claim(&Task::TakeOver("gw".into())), "p:{gateways}:takeover:gw");
        assert_eq!(names.claim(&Task::Sweep(life)), "p:{gateways}:sweep:00000000000000ab");
        assert_eq!(
            names.channel(&Channel::Gateway("gw".into(), life)),
            "p:gw:gw:00000000000000ab"
        );
        assert_eq!(names.channel(&Channel::All), "p:all");
        assert_eq!(names.channel(&Channel::Partition(16_383)), "p:part:16383");
    }

    /// Databases of one server have keys of their own, and share all channels.
    #[test]
    fn channels_name_their_database() {
        let life = Incarnation(0xab);
        let channels = [Channel::All, Channel::Gateway("gw".into(), life), Channel::Partition(7)];
        let of = |db| {
            let names = Names::new("p:", db);
            channels.clone().map(|channel| names.channel(&channel))
        };
        assert_eq!(of(0), ["p:all", "p:gw:gw:00000000000000ab", "p:part:7"]);
        assert_eq!(of(12), ["p:all@db12", "p:gw:gw:00000000000000ab@db12", "p:part:7@db12"]);
        assert_eq!(Names::new("p:", 12).user("bob"), Names::new("p:", 0).user("bob"));
    }

    #[test]
    fn a_user_comes_back_from_its_key_and_nothing_else_does() {
        let names = Names::new("p:", 0);
        assert_eq!(
            names.user_of(names.user("ü:user:x").as_bytes()).as_deref(),
            Some("ü:user:x")
        );
        for other in ["p:index:bob", "user:bob", "q:user:bob", "p:{gateways}"] {
            assert_eq!(names.user_of(other.as_bytes()), None, "{other}");
        }
        assert_eq!(names.user_of(b"p:user:\xff"), None);
    }
}
