//! The control thread of a gateway of its own, as a model: it fetches keys, carries out what
//! administrators ask, reads the configuration again, and ends the gateway.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use shardgate::admin::{AdminError, AdminReply};
use shardgate::config::{Config, CredentialSource};
use shardgate::engine::SocketKey;
use shardgate::ids::ShardId;
use shardgate::jws::{Algorithm, KeySet, SigningKey, VerifyingKey};
use shardgate::lanes::{
    AdminToControl, AdminToShard, LifecycleToControl, LifecycleToShard, ShardCommand, ShardQuery, ToControl,
};
use shardgate::settings::Settings;
use shardgate::wire::ws::close::CloseReason;
use uuid::Uuid;

use super::World;

/// The admin token of all runs.
pub const ADMIN_TOKEN: &str = "a-token-for-tests-of-32-bytes-00";
/// The issuer changes its key no sooner than this, or nobody would know the last one.
const ROTATION_MS: u64 = 3_000;

/// Signs the tokens of clients, with a key that it changes now and then.
#[derive(Debug)]
pub struct Issuer {
    secrets: Vec<String>,
    key: SigningKey,
    rotated_ms: u64,
}

impl Issuer {
    pub fn new() -> Self {
        let secret = secret(0);
        Issuer {
            key: SigningKey::new(Algorithm::Hs256, &secret).unwrap(),
            secrets: vec![secret],
            rotated_ms: 0,
        }
    }

    /// A token for a user.
    pub fn token(&self, user: &str) -> String {
        self.key.sign(&format!(r#"{{"sub":"{user}"}}"#), None).unwrap()
    }

    /// It has had more than one key: a token may be of one that is not known yet, or not any more.
    pub fn has_rotated(&self) -> bool {
        self.secrets.len() > 1
    }

    fn rotate(&mut self, now_ms: u64) {
        let secret = secret(self.secrets.len());
        self.key = SigningKey::new(Algorithm::Hs256, &secret).unwrap();
        self.secrets.push(secret);
        self.rotated_ms = now_ms;
    }

    /// The key of now, and the one before.
    fn published(&self) -> Arc<KeySet> {
        let keys = self.secrets.iter().rev().take(2);
        let keys = keys.flat_map(|secret| VerifyingKey::configured(secret, &[Algorithm::Hs256]).unwrap());
        Arc::new(KeySet::of(keys.collect()))
    }
}

fn secret(number: usize) -> String {
    format!("secret {number:03} of thirty-two bytes.")
}

/// An administrator's request that shards are asked about.
#[derive(Debug)]
struct Inquiry {
    shard: usize,
    conn: SocketKey,
    /// Replies that are not there yet.
    left: usize,
}

#[derive(Debug, Default)]
pub struct Control {
    /// What shards have sent of administrators' requests.
    admin: VecDeque<(usize, AdminToControl)>,
    inquiries: Vec<Inquiry>,
    /// Which inquiry a ticket belongs to.
    tickets: BTreeMap<u32, usize>,
    next_ticket: u32,
    keys_wanted: bool,
    /// What shards go by besides the configuration of the run.
    keys: Option<Arc<KeySet>>,
    subscribe: Option<Vec<String>>,
}

impl Control {
    /// Nothing waits for it.
    pub fn is_idle(&self) -> bool {
        self.admin.is_empty() && self.tickets.is_empty() && !self.keys_wanted
    }
}

/// Makes the configuration one in which users show tokens.
pub fn with_tokens(config: &mut Config) {
    config.auth.source = CredentialSource::Jwks("https://issuer.example/keys".into());
    config.auth.algorithms = vec![Algorithm::Hs256];
    config.auth.require_exp = false;
    config.channels.subscribe = Some(vec!["*".into()]);
    config.channels.publish = Some(vec!["*".into()]);
}

impl World {
    /// Takes what shards have sent to the control thread.
    pub fn collect_mail(&mut self) {
        while let Some(mut batch) = self.control_inbox.try_next() {
            let room = batch.room();
            for item in std::mem::take(&mut batch.items) {
                match item {
                    ToControl::Admin(mail) => self.control.admin.push_back((batch.from.index(), mail)),
                    ToControl::Lifecycle(LifecycleToControl::KeysWanted) => {
                        self.reach.keys_wanted += 1;
                        self.control.keys_wanted = true;
                    }
                    ToControl::Lifecycle(LifecycleToControl::Drained { .. }) => {}
                    ToControl::Lifecycle(LifecycleToControl::Ended { .. }) => panic!("a core does not end"),
                    ToControl::Cluster(mail) => panic!("there are no other gateways: {mail:?}"),
                }
            }
            if let Some(room) = room {
                self.control_inbox.done(room);
            }
        }
    }

    /// One turn of the control thread. Returns true if it did anything.
    pub fn turn_control(&mut self, eager: bool) -> bool {
        self.shared.control_turn_ms.set(self.now_ms());
        let mut busy = false;
        if self.control.keys_wanted && (eager || self.chance.percent(10)) {
            busy = true;
            self.control.keys_wanted = false;
            self.fetch_keys();
        }
        while (eager || self.chance.percent(50))
            && let Some((shard, mail)) = self.control.admin.pop_front()
        {
            busy = true;
            match mail {
                AdminToControl::Request(asked) => self.handle_request(shard, asked.conn),
                AdminToControl::Reply(ticket, _) => self.handle_reply(ticket),
            }
        }
        busy
    }

    /// What happens to a gateway now and then.
    pub fn administer(&mut self) {
        let now_ms = self.now_ms();
        if self.chance.percent(1)
            && let Some(issuer) = &mut self.books.issuer
            && now_ms >= issuer.rotated_ms + ROTATION_MS
        {
            issuer.rotate(now_ms);
        }
        if self.setup.reloads && self.chance.below(300) == 0 {
            self.reload();
        }
    }

    /// New settings, as a reload posts them.
    fn post_settings(&mut self) {
        let mut config = self.setup.config.clone();
        if let Some(subscribe) = &self.control.subscribe {
            config.channels.subscribe = Some(subscribe.clone());
        }
        let places = self.settings.connections_max;
        let settings = Settings::with_keys(&config, places, self.control.keys.as_ref()).unwrap();
        self.settings = Arc::new(settings);
        let settings = &self.settings;
        self.mailboxes
            .post_all(|| LifecycleToShard::Settings(Arc::clone(settings)));
    }

    /// Now and then the issuer cannot be reached.
    fn fetch_keys(&mut self) {
        if !self.setup.hostile || self.chance.percent(80) {
            self.control.keys = self.books.issuer.as_ref().map(|issuer| issuer.published());
            self.post_settings();
        } else {
            self.books.keys_failed = true;
        }
        self.reach.keys_fetched += 1;
        self.mailboxes.post_all(|| LifecycleToShard::KeysFetched);
    }

    /// Other channels may be subscribed to than before.
    fn reload(&mut self) {
        self.reach.reloads += 1;
        let mut allowed = Vec::new();
        for channel in 0..self.books.channels.names.len() {
            if self.chance.percent(70) {
                allowed.push(self.books.channels.names[channel].clone());
            } else {
                self.books.channels.refusals.insert("notPermitted");
                self.end_sittings(channel, None);
            }
        }
        self.control.subscribe = Some(allowed);
        self.post_settings();
    }

    /// Subscriptions to a channel may end: those of one user, or all.
    fn end_sittings(&mut self, channel: usize, of: Option<usize>) {
        self.books.channels.order_end(channel);
        for (client, plan) in self.clients.iter().enumerate() {
            if let Some(user) = plan.wanted_user().filter(|user| of.is_none_or(|of| of == *user)) {
                let done_ns = self.books.done_ns[self.books.homes[user]];
                self.books.channels.end(client, channel, done_ns);
            }
        }
    }

    /// An administrator asks something; what, is decided here.
    fn handle_request(&mut self, shard: usize, conn: SocketKey) {
        self.reach.asked += 1;
        let user = self.chance.below(self.books.users.len());
        let name: Arc<str> = self.books.users[user].as_str().into();
        let everywhere: Vec<usize> = (0..self.shards.len()).collect();
        let any = vec![self.chance.below(self.shards.len())];
        let home = vec![self.home(user)];
        let (query, shards) = match self.chance.below(8) {
            0 => return self.give_answer(shard, conn, AdminReply::refuse(AdminError::Timeout, "later")),
            1 => {
                let from = self.chance.below(20) as u32;
                let (user, limit) = (None, 1 + self.chance.below(20));
                (ShardQuery::List { user, from, limit }, any)
            }
            2 => {
                let (from, limit) = (0, 100);
                let user = Some(name);
                (ShardQuery::List { user, from, limit }, home)
            }
            3 => {
                let (id, from, close) = (Uuid::nil(), 0, None);
                (ShardQuery::Find { id, from, close }, any)
            }
            4 => (ShardQuery::Count { user: name }, home),
            5 => {
                let (prefix, after, from) = ("room".into(), "".into(), 0);
                (ShardQuery::Channels { prefix, after, from }, any)
            }
            6 if self.chance.percent(30) => {
                self.books.closed_users.insert(user);
                let reason = CloseReason::Administrator;
                let command = ShardCommand::CloseUser { user: name, reason };
                (ShardQuery::Command(command), home)
            }
            7 if !self.books.channels.names.is_empty() => {
                let channel = self.chance.below(self.books.channels.names.len());
                self.end_sittings(channel, Some(user));
                let channel = self.books.channels.names[channel].as_str().into();
                let command = ShardCommand::EndSubscription { user: name, channel };
                (ShardQuery::Command(command), home)
            }
            _ => {
                let message = self.begin_broadcast();
                let command = ShardCommand::Broadcast(message);
                (ShardQuery::Command(command), everywhere)
            }
        };
        let inquiry = self.control.inquiries.len();
        let left = shards.len();
        self.control.inquiries.push(Inquiry { shard, conn, left });
        for shard in shards {
            let ticket = self.control.next_ticket;
            self.control.next_ticket += 1;
            self.control.tickets.insert(ticket, inquiry);
            let query = AdminToShard::Query(ticket, Box::new(query.clone()));
            self.mailboxes.post(ShardId(shard as u16), query);
        }
    }

    fn handle_reply(&mut self, ticket: u32) {
        self.reach.replied += 1;
        let inquiry = self.control.tickets.remove(&ticket).expect("a reply to a query");
        let inquiry = &mut self.control.inquiries[inquiry];
        inquiry.left -= 1;
        if inquiry.left == 0 {
            let (shard, conn) = (inquiry.shard, inquiry.conn);
            self.give_answer(shard, conn, AdminReply::json(&"done"));
        }
    }

    fn give_answer(&mut self, shard: usize, conn: SocketKey, answer: AdminReply) {
        self.reach.answered += 1;
        let answer = AdminToShard::Answer(conn, Box::new(answer));
        self.mailboxes.post(ShardId(shard as u16), answer);
    }

    /// The gateway ends at once: all shards close everything.
    pub fn stop(&mut self) {
        self.mailboxes.post_all(|| LifecycleToShard::Stop);
        for shard in &mut self.shards {
            shard.sockets.close_listener(&mut self.wires);
        }
        for client in &mut self.clients {
            client.behave();
        }
        let mut running: Vec<usize> = (0..self.shards.len()).collect();
        for _ in 0..10_000 {
            self.now_ns += 1_000_000;
            self.move_bytes(true);
            for shard in running.clone() {
                self.turn(shard, false);
            }
            running.retain(|shard| !self.shards[*shard].is_over);
            self.turn_control(true);
            if running.is_empty() {
                self.reach.stops += 1;
                self.move_bytes(true);
                assert!(self.live().is_empty(), "connections outlive the gateway");
                return;
            }
        }
        panic!("it does not end");
    }
}
