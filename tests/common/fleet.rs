//! Gateways that are one system through a Redis.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use super::gateway::{Ended, PROGRAM, command, run_command};
use super::{DEADLINE, Gateway, Redis, eventually};

/// Where and how gateways of one system start. It owns none of them: they are the test's.
pub struct Fleet {
    url: String,
    /// Of every key and channel; different for each fleet.
    pub prefix: String,
    args: Vec<String>,
}

impl Fleet {
    pub fn new(url: impl Into<String>) -> Fleet {
        Fleet {
            url: url.into(),
            prefix: format!("test{:08x}:", fastrand::u32(..)),
            args: Vec::new(),
        }
    }

    /// Every gateway gets these arguments too.
    pub fn with_args(mut self, args: &[&str]) -> Fleet {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// A gateway of this system that is not started.
    pub fn command(&self, id: &str) -> Command {
        let mut command = command(PROGRAM);
        command.args(["--listen", "127.0.0.1:0", "--shards", "2", "--cpus", "none"]);
        command.args(["--limits-messages-per-second", "0", "--gateway-id", id]);
        command.args(["--redis-url", &self.url, "--redis-prefix", &self.prefix]);
        command.args(&self.args);
        command
    }

    #[track_caller]
    pub fn gateway(&self, id: &str) -> Gateway {
        Gateway::try_spawn(self.command(id)).unwrap_or_else(|ended| panic!("{id} did not start: {ended:#?}"))
    }

    /// Starts `gw1`, `gw2` and so on, all at once.
    #[track_caller]
    pub fn start<const N: usize>(&self) -> [Gateway; N] {
        std::thread::scope(|scope| {
            let starting: [_; N] =
                std::array::from_fn(|n| scope.spawn(move || Gateway::try_spawn(self.command(&format!("gw{}", n + 1)))));
            starting.map(|gateway| {
                let started = gateway.join().unwrap();
                started.unwrap_or_else(|ended| panic!("a gateway did not start: {ended:#?}"))
            })
        })
    }

    /// A gateway that must not start, to its end.
    #[track_caller]
    pub fn refused(&self, id: &str) -> Ended {
        run_command(self.command(id))
    }

    pub fn user_key(&self, user: &str) -> String {
        format!("{}user:{user}", self.prefix)
    }

    pub fn index_key(&self, incarnation: &str) -> String {
        format!("{}index:{incarnation}", self.prefix)
    }

    pub fn directory_key(&self) -> String {
        format!("{}{{gateways}}", self.prefix)
    }

    pub fn lease_key(&self, id: &str) -> String {
        format!("{}{{gateways}}:lease:{id}", self.prefix)
    }

    pub fn channel(&self, id: &str, incarnation: &str) -> String {
        format!("{}gw:{id}:{incarnation}", self.prefix)
    }

    /// The directory in a Redis: incarnation to id.
    #[track_caller]
    pub fn directory(&self, redis: &Redis) -> BTreeMap<String, String> {
        hash(redis, &self.directory_key())
    }

    /// The incarnation of the gateway with this id.
    #[track_caller]
    pub fn incarnation(&self, redis: &Redis, id: &str) -> String {
        let directory = self.directory(redis);
        let entry = directory.iter().find(|(_, known)| *known == id);
        entry.unwrap_or_else(|| panic!("no {id} in {directory:?}")).0.clone()
    }

    /// Where a user is written down to be: incarnation to number of connections.
    #[track_caller]
    pub fn places(&self, redis: &Redis, user: &str) -> BTreeMap<String, String> {
        hash(redis, &self.user_key(user))
    }

    /// Waits until these users are written down for this life of a gateway, so that they can be
    /// found after its death.
    #[track_caller]
    pub fn wait_until_indexed<S: AsRef<str>>(&self, redis: &Redis, incarnation: &str, users: &[S]) {
        let key = self.index_key(incarnation);
        eventually("users are in the index", || {
            let indexed = redis.cmd(&["SMEMBERS", &key]).good().sorted();
            users.iter().all(|user| {
                indexed
                    .binary_search_by(|known| known.as_str().cmp(user.as_ref()))
                    .is_ok()
            })
        });
    }

    /// All keys in a Redis about one life of a gateway, but for claims, which end by themselves
    /// soon.
    #[track_caller]
    pub fn traces(&self, redis: &Redis, incarnation: &str) -> Vec<String> {
        let mut traces = Vec::new();
        for key in redis.keys(&self.prefix) {
            if key.contains(incarnation) {
                let lasts_ms = redis.cmd(&["PTTL", &key]).int();
                if !(0..=60_000).contains(&lasts_ms) {
                    traces.push(key);
                }
            } else if redis.cmd(&["TYPE", &key]).text() == "hash" && hash(redis, &key).contains_key(incarnation) {
                traces.push(format!("{key} -> {incarnation}"));
            } else if key.contains(":lease:") {
                let lease = redis.cmd(&["GET", &key]);
                if lease != super::Reply::Nil && lease.text().contains(incarnation) {
                    traces.push(format!("{key} -> {lease:?}"));
                }
            }
        }
        traces
    }

    /// Waits until nothing in a Redis is about this life of a gateway.
    #[track_caller]
    pub fn wait_until_swept(&self, redis: &Redis, incarnation: &str) {
        let until = Instant::now() + DEADLINE;
        loop {
            let left = self.traces(redis, incarnation);
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "never swept: {left:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[track_caller]
fn hash(redis: &Redis, key: &str) -> BTreeMap<String, String> {
    let answer = redis.cmd(&["HGETALL", key]).good();
    let texts: Vec<String> = answer.array().iter().map(super::Reply::text).collect();
    texts.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}
