//! The division of `fanout`: each user's channels, each publisher's channels, and their threads.
//!
//! Duty: numbers to numbers, so every thread can compute the part of every other one. Pure. Users
//! and publishers are counted from 0 here. Each worker has its part of both, its publishers
//! numbered behind its users. A connection's name and target go by its number among all.

use std::ops::Range;

use crate::args::Options;

/// Which channel is whose, and who is where.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) users: usize,
    pub(super) publishers: usize,
    pub(super) channels: usize,
    pub(super) per_user: usize,
    pub(super) workers: usize,
    /// The number of each worker's first connection.
    firsts: Vec<usize>,
}

impl Plan {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            users: options.load.users,
            publishers: options.publishers,
            channels: options.channels,
            per_user: options.per_user,
            workers: options.workers(),
            firsts: (0..options.workers()).map(|worker| options.part(worker).0).collect(),
        }
    }

    pub(super) fn users_of(&self, worker: usize) -> Range<usize> {
        part(self.users, worker, self.workers)
    }

    pub(super) fn publishers_of(&self, worker: usize) -> Range<usize> {
        part(self.publishers, worker, self.workers)
    }

    /// The worker of a user.
    pub(super) fn worker_of_user(&self, user: usize) -> usize {
        whose(self.users, user, self.workers)
    }

    /// The worker of a publisher.
    pub(super) fn worker_of_publisher(&self, publisher: usize) -> usize {
        whose(self.publishers, publisher, self.workers)
    }

    /// The publisher whose connection has this number among all.
    pub(super) fn publisher(&self, connection: usize) -> Option<usize> {
        let worker = self.firsts.partition_point(|first| *first <= connection) - 1;
        let place = (connection - self.firsts[worker]).checked_sub(self.users_of(worker).len())?;
        let publisher = self.publishers_of(worker).start + place;
        (publisher < self.publishers).then_some(publisher)
    }

    /// The channel of publication `n` of a publisher.
    pub(super) fn channel(&self, publisher: usize, n: u32) -> usize {
        (n as usize + publisher) % self.channels
    }

    /// Which of the user's subscriptions this channel is.
    pub(super) fn subscription(&self, user: usize, channel: usize) -> Option<usize> {
        let k = (channel + self.channels - self.subscribed(user, 0)) % self.channels;
        (k < self.per_user).then_some(k)
    }

    /// The channel of the user's subscription `k`.
    pub(super) fn subscribed(&self, user: usize, k: usize) -> usize {
        (user * self.per_user + k) % self.channels
    }

    /// The number of a publisher's first publication to this channel.
    fn first_to(&self, publisher: usize, channel: usize) -> usize {
        (channel + self.channels - publisher % self.channels) % self.channels
    }

    /// Of the first `sent` publications of a publisher, how many went to this channel.
    pub(super) fn sent_to(&self, publisher: usize, channel: usize, sent: u32) -> u32 {
        let first = self.first_to(publisher, channel);
        (sent as usize).saturating_sub(first).div_ceil(self.channels) as u32
    }

    /// The number of the publication with this index in the order of a publisher in this channel.
    pub(super) fn number(&self, publisher: usize, channel: usize, place: u32) -> u32 {
        (self.first_to(publisher, channel) + place as usize * self.channels) as u32
    }

    /// Where the order of one publisher in one subscription of one user is watched, the user
    /// counted from the first of the worker.
    pub(super) fn stream(&self, user: usize, publisher: usize, k: usize) -> usize {
        (user * self.publishers + publisher) * self.per_user + k
    }
}

/// The part of one worker of so many things.
fn part(count: usize, worker: usize, workers: usize) -> Range<usize> {
    count * worker / workers..count * (worker + 1) / workers
}

/// In whose part thing number `n` is.
fn whose(count: usize, n: usize, workers: usize) -> usize {
    ((n + 1) * workers - 1) / count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(line: &str) -> (Plan, Options) {
        let line = format!("fanout --url ws://127.0.0.1:9 {line}");
        let options = crate::args::parse(line.split_whitespace().map(str::to_owned)).unwrap();
        (Plan::new(&options), options)
    }

    #[test]
    fn everybody_knows_what_comes_by_which_subscription() {
        for (users, publishers, channels, per_user) in [(5, 1, 1, 1), (10, 3, 4, 1), (7, 2, 5, 3), (4, 4, 3, 3)] {
            let (plan, _) = plan(&format!(
                "--users {users} --publishers {publishers} --channels {channels} --per-user {per_user}"
            ));
            for (user, j) in (0..users).flat_map(|user| (0..publishers).map(move |j| (user, j))) {
                let mut next = vec![0; per_user];
                for n in 0..50 {
                    let channel = plan.channel(j, n);
                    let wanted = (0..per_user).find(|k| plan.subscribed(user, *k) == channel);
                    assert_eq!(plan.subscription(user, channel), wanted);
                    assert_eq!(plan.sent_to(j, channel, n) + 1, plan.sent_to(j, channel, n + 1));
                    assert_eq!(plan.number(j, channel, n / channels as u32), n);
                    if let Some(k) = wanted {
                        assert_eq!(n / channels as u32, next[k], "the place in the order of the channel");
                        assert_eq!(next[k], plan.sent_to(j, channel, n));
                        next[k] += 1;
                    }
                }
            }
        }
    }

    #[test]
    fn every_stream_has_its_place() {
        let (plan, _) = plan("--users 3 --publishers 2 --channels 9 --per-user 4");
        let mut places: Vec<usize> = vec![];
        for user in 0..3 {
            for j in 0..2 {
                places.extend((0..4).map(|k| plan.stream(user, j, k)));
            }
        }
        assert_eq!(places, (0..24).collect::<Vec<_>>());
    }

    #[test]
    fn everybody_is_on_one_thread_and_known_there() {
        for line in [
            "--users 3 --publishers 2",
            "--users 10 --publishers 3 --threads 4",
            "--users 7 --publishers 1 --threads 2 --processes 3",
            "--users 2 --publishers 9 --threads 5",
            "--users 1 --publishers 1 --threads 8",
        ] {
            let (plan, options) = plan(line);
            let (mut users, mut publishers, mut connection) = (0, 0, 0);
            for worker in 0..plan.workers {
                let (first, count) = options.part(worker);
                let own = (plan.users_of(worker), plan.publishers_of(worker));
                assert_eq!((first, count), (connection, own.0.len() + own.1.len()), "{line}");
                assert!(count > 0, "{line}");
                for user in own.0 {
                    assert_eq!((user, plan.worker_of_user(user)), (users, worker), "{line}");
                    assert_eq!(plan.publisher(connection), None, "{line}");
                    (users, connection) = (users + 1, connection + 1);
                }
                for publisher in own.1 {
                    assert_eq!((publisher, plan.worker_of_publisher(publisher)), (publishers, worker));
                    assert_eq!(plan.publisher(connection), Some(publisher), "{line}");
                    (publishers, connection) = (publishers + 1, connection + 1);
                }
            }
            assert_eq!((users, publishers), (plan.users, plan.publishers), "{line}");
            assert_eq!(plan.publisher(connection), None, "{line}: there is nobody");
        }
    }
}
