//! Mail about presence: clients' queries, and the control thread's record of who is here.

use super::{LANE_ITEMS_MAX, LANE_ITEMS_RESERVED, LaneFull, Lanes, Span};
use crate::ids::ShardId;
use crate::router::UserHash;

/// Mail for a shard about presence queries of clients.
#[derive(Debug)]
pub enum PresenceToShard {
    /// From another shard: which of these users are online?
    Query(PresenceQuery),
    /// The answer, where bit `n` is for the user at index `n`.
    Answer {
        /// As asked.
        ticket: u32,
        /// Indexes of users who are online.
        online: u128,
        /// Indexes of users of whom nobody else needs to be asked.
        known: u128,
    },
    /// From the control thread: the other answer. The cluster cannot be asked.
    Unknown {
        /// As asked.
        ticket: u32,
        /// It could, but too much is asked already.
        overloaded: bool,
    },
}

/// Mail for a shard: walks of the control thread over the users who live there.
#[derive(Debug)]
pub enum RosterToShard {
    /// Tell some users, by [`PresenceToControl::Changed`], then [`PresenceToControl::Listed`].
    List {
        /// Comes back with the answer.
        round: u32,
        /// The first slot to look at: 0, or as the last answer said.
        from: u32,
        /// How many slots to look at.
        count: u32,
    },
    /// Tell the users in these slots, by [`PresenceToControl::Reviewed`].
    ReviewPage {
        /// Comes back with the answer.
        round: u32,
        /// The first slot to look at: 0, or as the last answer said.
        from: u32,
        /// How many slots to look at.
        count: u32,
    },
    /// Tell which of these users are here, by [`PresenceToControl::Reviewed`].
    ReviewUsers {
        /// Comes back with the answer.
        round: u32,
        /// The users.
        users: Vec<(UserHash, Span)>,
    },
    /// These users are written down as being here; tell those who are not.
    Check {
        /// The users.
        users: Vec<(UserHash, Span)>,
    },
}

/// Mail for the control thread about presence.
#[derive(Debug)]
pub enum PresenceToControl {
    /// Which of these users are online on other gateways?
    Query(PresenceQuery),
    /// A user has this many connections on this gateway now, perhaps none.
    Changed {
        /// The user.
        user: Span,
        /// Connections.
        connections: u32,
    },
    /// Changes did not fit into the lane; all users must be listed again.
    Lost,
    /// As many users as [`RosterToShard::List`] asked for have been told; go on here, if there are
    /// more.
    Listed {
        /// As asked.
        round: u32,
        /// The next slot.
        next: Option<u32>,
    },
    /// Users who are here, and how many connections they have, as [`RosterToShard::ReviewPage`] or
    /// [`RosterToShard::ReviewUsers`] asked for.
    Reviewed {
        /// As asked.
        round: u32,
        /// It was a page; the next slot, if there are more.
        page: Option<Option<u32>>,
        /// The users.
        users: Vec<(Span, u32)>,
    },
}

/// Which of these users are online?
#[derive(Debug)]
pub struct PresenceQuery {
    /// Names the question on the asking shard.
    pub ticket: u32,
    /// The hash of the asking user: users take turns.
    pub asker: UserHash,
    /// Their indexes in the question, and their ids.
    pub users: Vec<(u8, UserHash, Span)>,
}

impl Lanes {
    /// Asks a shard which users are online.
    ///
    /// # Errors
    /// The lane is full: cannot be asked now.
    pub fn try_presence_query<'a>(
        &mut self,
        to: ShardId,
        (ticket, asker): (u32, UserHash),
        users: impl Iterator<Item = (u8, UserHash, &'a str)>,
    ) -> Result<(), LaneFull> {
        let lane = self.shard(to);
        lane.check(LANE_ITEMS_MAX + LANE_ITEMS_RESERVED)?;
        let users = users
            .map(|(index, hash, user)| (index, hash, lane.write(user.as_bytes())))
            .collect();
        lane.push(PresenceToShard::Query(PresenceQuery { ticket, asker, users }));
        Ok(())
    }

    /// Asks the control thread which users are online on other gateways.
    ///
    /// # Errors
    /// The lane is full: cannot be asked now.
    pub fn try_cluster_query<'a>(
        &mut self,
        (ticket, asker): (u32, UserHash),
        users: impl Iterator<Item = (u8, UserHash, &'a str)>,
    ) -> Result<(), LaneFull> {
        let lane = self.control()?;
        lane.check(LANE_ITEMS_MAX + LANE_ITEMS_RESERVED)?;
        let users = users
            .map(|(index, hash, user)| (index, hash, lane.write(user.as_bytes())))
            .collect();
        lane.push(PresenceToControl::Query(PresenceQuery { ticket, asker, users }));
        Ok(())
    }

    /// Answers a question.
    pub fn presence_answer(&mut self, to: ShardId, ticket: u32, online: u128, known: u128) {
        self.push(to, PresenceToShard::Answer { ticket, online, known });
    }

    /// Tells the control thread how many connections a user has here now.
    ///
    /// # Errors
    /// The lane is full: [`PresenceToControl::Lost`] is owed.
    pub fn try_presence(&mut self, user: &str, connections: u32) -> Result<(), LaneFull> {
        let lane = self.control()?;
        lane.check(LANE_ITEMS_MAX + LANE_ITEMS_RESERVED)?;
        let user = lane.write(user.as_bytes());
        lane.push(PresenceToControl::Changed { user, connections });
        Ok(())
    }

    /// Tells the control thread who is here, and how many connections each has.
    pub fn users_reviewed<'a>(
        &mut self,
        (round, page): (u32, Option<Option<u32>>),
        users: impl Iterator<Item = (&'a str, usize)>,
    ) {
        if let Ok(lane) = self.control() {
            let users = users
                .map(|(user, connections)| (lane.write(user.as_bytes()), connections as u32))
                .collect();
            lane.push(PresenceToControl::Reviewed { round, page, users });
        }
    }

    /// Names several users of a shard to it: for [`RosterToShard::ReviewUsers`] and
    /// [`RosterToShard::Check`].
    pub fn push_users<'a>(
        &mut self,
        to: ShardId,
        users: impl Iterator<Item = (UserHash, &'a str)>,
        item: impl FnOnce(Vec<(UserHash, Span)>) -> RosterToShard,
    ) {
        let lane = self.shard(to);
        let users = users.map(|(hash, user)| (hash, lane.write(user.as_bytes()))).collect();
        lane.push(item(users));
    }
}
