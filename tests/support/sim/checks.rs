//! The conditions that hold when all is quiet, and when all have gone.

use std::collections::BTreeSet;

use shardgate::shard::Outstanding;

use super::World;

impl World {
    /// Looks at the books. Everything must be quiet.
    pub fn check(&mut self) {
        let live = self.live();
        self.books.check(&self.clients, &live);
        self.check_channels(&live.iter().copied().collect());
        let limit = self.settings.limits.connections_per_user;
        for user in 0..self.books.users.len() {
            let devices = live
                .iter()
                .filter(|index| self.clients[**index].user == Some(user))
                .count();
            assert!(limit == 0 || devices <= limit, "{devices} connections of one user");
        }
        assert!(self.control.is_idle(), "{:?}", self.control);
        for client in &self.clients {
            client.check_responses();
            client.check_token(&self.wires[client.wire]);
        }
        let users: BTreeSet<_> = live.iter().map(|index| self.clients[*index].user).collect();
        assert_eq!(self.shared.users(), users.len() as u64, "users");
        let accepted = self.metric("shardgate_connections_accepted_total", "");
        let upgraded = self.wires.iter().filter(|wire| wire.said.status == Some(101)).count();
        // With a small limit before authentication, a connection may have to go before its `101`
        // has left.
        let lost = accepted.checked_sub(upgraded as u64);
        assert!(
            lost == Some(0) || self.books.places_limited && lost.is_some(),
            "accepted"
        );
        let closed = self.metric("shardgate_connections_closed_total", "");
        assert_eq!(accepted - closed, self.shared.connections(), "closed");
        // A client sends a presence query.
        if let Some(asker) = live.first() {
            let client = &mut self.clients[*asker];
            let query = client.ask_all(&mut self.books, &mut self.chance);
            self.settle(0);
            let answer = self.books.answer(query).expect("an answer");
            // The asker may have gone by asking, under a rate limit; then there is none.
            let live = self.live();
            for (user, online) in answer {
                let here = live.iter().any(|index| self.clients[*index].user == Some(*user));
                assert_eq!(*online, here, "is {} online?", self.books.users[*user]);
            }
        }
    }

    fn check_channels(&mut self, live: &BTreeSet<usize>) {
        self.lost += self.books.channels.check(live, self.books.lanes_full);
        let counted = self.metric("shardgate_dropped_total", "kind=\"publication\"");
        assert!(
            self.lost as u64 <= counted,
            "{} were lost, {counted} counted",
            self.lost
        );
        let seated = self.books.channels.seated().filter(|(client, _)| live.contains(client));
        let subscriptions: Vec<(usize, usize)> = seated
            .map(|(client, channel)| (self.home(self.clients[client].user.expect("a user")), channel))
            .collect();
        let gauges = ["shardgate_subscriptions", "shardgate_channels"].map(|name| self.metric(name, "") as usize);
        let channels: BTreeSet<_> = subscriptions.iter().collect();
        assert_eq!(
            gauges,
            [subscriptions.len(), channels.len()],
            "subscriptions and channels"
        );
    }

    /// No client is there any more, and nothing is left of them.
    pub fn check_empty(&self) {
        assert_eq!((self.shared.connections(), self.shared.users()), (0, 0));
        for shard in &self.shards {
            assert_eq!(shard.real.core.residue(), Outstanding::default());
            assert!(shard.sockets.is_empty());
            assert!(shard.real.inbox().is_empty());
            assert_eq!(shard.real.core.metrics().sockets.get(), 0);
            assert!(!shard.real.core.has_more());
        }
        for gauge in ["shardgate_subscriptions", "shardgate_channels"] {
            assert_eq!(self.metric(gauge, ""), 0, "{gauge}");
        }
        for (from, to, depth) in self.shared.lanes() {
            assert_eq!(depth, 0, "lane {from} to {to}");
        }
        let accepted = self.metric("shardgate_connections_accepted_total", "");
        assert_eq!(accepted, self.metric("shardgate_connections_closed_total", ""));
    }
}
