//! Administrators' requests, carried out.
//!
//! Lives on the control thread. A request comes from a shard, over whose public port it came, or
//! from `listener`; each is a task of its own, which asks shards and the cluster, waits for what
//! they say, and makes an answer of it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::super::handle::{Handle, Order};
use crate::admin::routes::{self, bad_cursor, no_such_connection};
use crate::admin::{
    Action, AdminError, AdminReply, ChannelInfo, ChannelPage, ClosedInfo, ConnectionInfo, Cursor, GatewayInfo, Page,
    Receivers, Request, SentInfo, UserInfo,
};
use crate::cluster::inquiries::Whereabouts;
use crate::ids::{IdSource, ShardId, SocketKey};
use crate::lanes::mailbox::Mailboxes;
use crate::lanes::{AdminToShard, ShardCommand, ShardQuery, ShardReply};
use crate::router::HomeMap;
use crate::shared::clock::Clock;
use crate::shared::{Now, Shared};
use crate::wire::codec::Codec;
use crate::wire::framing::Encoded;
use crate::wire::message::{AckStatus, Broadcast, Message, Publication, ServerMessage};
use crate::wire::ws::close::CloseReason;

/// The longest that a request may take. A broadcast to a million connections takes a few seconds.
pub(in crate::control) const ANSWER_MAX: Duration = Duration::from_secs(20);
const NOT_TOLD: &str = "but the other gateways could not be told: Redis is away";

/// What a task waits for.
#[derive(Debug)]
enum Reply {
    Shard(ShardReply),
    Whereabouts(Whereabouts),
}

/// Senders of answers that tasks wait for.
#[derive(Debug, Default)]
struct Waiting {
    last: u32,
    tickets: BTreeMap<u32, oneshot::Sender<Reply>>,
}

/// An entry of [`Waiting`]; taken out when nobody waits any more.
struct Ticket<'a> {
    service: &'a AdminService,
    number: u32,
    reply: oneshot::Receiver<Reply>,
}

/// An answer that an administrator waits for. A drain waits until this is dropped.
pub(super) struct Expected(Arc<Shared>);

impl Drop for Expected {
    fn drop(&mut self) {
        self.0.gate.answered();
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.service.waiting.borrow_mut().tickets.remove(&self.number);
    }
}

/// Where requests are carried out. Owned by the control thread.
#[derive(Debug)]
pub(in crate::control) struct AdminService {
    /// To the turn, of this same thread, which has the cluster.
    handle: Handle,
    mailboxes: Mailboxes,
    homes: HomeMap,
    clock: Clock,
    shared: Arc<Shared>,
    answer_max: Duration,
    ids: RefCell<IdSource>,
    waiting: RefCell<Waiting>,
}

impl AdminService {
    /// `answer_max`: usually [`ANSWER_MAX`].
    pub(in crate::control) fn new(
        handle: Handle,
        mailboxes: Mailboxes,
        homes: HomeMap,
        (shared, clock): (Arc<Shared>, Clock),
        answer_max: Duration,
        seed: u64,
    ) -> Rc<Self> {
        Rc::new(AdminService {
            handle,
            mailboxes,
            homes,
            clock,
            shared,
            answer_max,
            ids: RefCell::new(IdSource::new(seed)),
            waiting: RefCell::default(),
        })
    }

    /// The time.
    pub(super) fn now(&self) -> Now {
        self.clock.now()
    }

    /// `None` once the gateway has ended: then [`AdminReply::ending`] is all there is to say.
    pub(super) fn expect_answer(&self) -> Option<Expected> {
        self.shared.gate.expect().then(|| Expected(Arc::clone(&self.shared)))
    }

    /// Carries out what came over a connection of a shard, and brings the answer there. The shard
    /// expects it.
    pub(in crate::control) fn take(
        self: &Rc<Self>,
        shard: ShardId,
        conn: SocketKey,
        from: Option<SocketAddr>,
        request: Request,
    ) {
        let service = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let answer = service.serve(&request, from).await;
            service
                .mailboxes
                .post(shard, AdminToShard::Answer(conn, Box::new(answer)));
        });
    }

    /// Carries out what the program itself wants.
    pub(in crate::control) fn take_own(self: &Rc<Self>, request: Request, answered: oneshot::Sender<AdminReply>) {
        let service = Rc::clone(self);
        tokio::task::spawn_local(async move {
            // Without it there is no answer, which says that the gateway has ended.
            if let Some(_expected) = service.expect_answer() {
                let _ = answered.send(service.serve(&request, None).await);
            }
        });
    }

    /// A shard has replied.
    pub(in crate::control) fn replied(&self, ticket: u32, reply: ShardReply) {
        self.resolve(ticket, Reply::Shard(reply));
    }

    /// The cluster has answered.
    pub(in crate::control) fn located(&self, ticket: u32, found: Whereabouts) {
        self.resolve(ticket, Reply::Whereabouts(found));
    }

    fn resolve(&self, ticket: u32, reply: Reply) {
        // Whoever waited may have given up.
        if let Some(sender) = self.waiting.borrow_mut().tickets.remove(&ticket) {
            let _ = sender.send(reply);
        }
    }

    fn ticket(&self) -> Ticket<'_> {
        let (sender, reply) = oneshot::channel();
        let mut waiting = self.waiting.borrow_mut();
        waiting.last = waiting.last.wrapping_add(1);
        let number = waiting.last;
        waiting.tickets.insert(number, sender);
        Ticket {
            service: self,
            number,
            reply,
        }
    }

    /// Carries out one request and makes the answer.
    pub(super) async fn serve(&self, request: &Request, from: Option<SocketAddr>) -> AdminReply {
        let action = match routes::read(request) {
            Ok(action) => action,
            Err(answer) => return answer,
        };
        let change = action.change();
        let answer = match tokio::time::timeout(self.answer_max, self.carry_out(action)).await {
            Ok(Ok(answer) | Err(answer)) => answer,
            Err(_) => {
                let words = format!("no answer in {:?}; it may be carried out all the same", self.answer_max);
                AdminReply::refuse(AdminError::Timeout, &words)
            }
        };
        if let Some(change) = change {
            let from = from.map_or("somebody on this host".to_owned(), |from| from.to_string());
            log::info!("admin: {change}, asked for by {from}; the answer is {}", answer.status);
        }
        answer
    }

    async fn carry_out(&self, action: Action<'_>) -> Result<AdminReply, AdminReply> {
        match action {
            Action::Document => Ok(AdminReply::document()),
            Action::ListConnections { user, cursor, limit } => self.list(user.map(Into::into), cursor, limit).await,
            Action::ShowConnection(id) => {
                let found = self.find(id, None).await?;
                Ok(AdminReply::json(&found))
            }
            Action::CloseConnection(id, reason) => {
                self.find(id, Some(reason)).await?;
                Ok(AdminReply::empty(204))
            }
            Action::ShowUser(user) => self.show_user(&user).await,
            Action::CloseUser(user, reason) => self.close_user(user.into(), reason).await,
            Action::EndSubscription { user, channel } => self.end_subscription(user.into(), channel.into()).await,
            Action::ListChannels { prefix, after, limit } => {
                self.list_channels(prefix.into(), after.into(), limit).await
            }
            Action::Send { to, from, content } => self.send(to, &from, content).await,
            Action::Publish { channel, from, content } => self.publish(channel.into(), &from, content).await,
            Action::Broadcast { content } => self.broadcast(content).await,
            Action::Drain => {
                self.handle.drain();
                Ok(AdminReply::empty(202))
            }
        }
    }

    async fn reply(&self, mut ticket: Ticket<'_>) -> Result<Reply, AdminReply> {
        let reply = (&mut ticket.reply).await;
        reply.map_err(|_| AdminReply::ending())
    }

    async fn ask(&self, shard: ShardId, query: ShardQuery) -> Result<ShardReply, AdminReply> {
        let ticket = self.ticket();
        self.mailboxes
            .post(shard, AdminToShard::Query(ticket.number, Box::new(query)));
        match self.reply(ticket).await? {
            Reply::Shard(reply) => Ok(reply),
            Reply::Whereabouts(_) => Err(wrong_reply()),
        }
    }

    async fn ask_page(
        &self,
        shard: ShardId,
        query: ShardQuery,
    ) -> Result<(Vec<ConnectionInfo>, Option<u32>), AdminReply> {
        match self.ask(shard, query).await? {
            ShardReply::Page { connections, next } => Ok((connections, next)),
            _ => Err(wrong_reply()),
        }
    }

    async fn ask_count(&self, shard: ShardId, query: ShardQuery) -> Result<u64, AdminReply> {
        match self.ask(shard, query).await? {
            ShardReply::Count(count) => Ok(count),
            _ => Err(wrong_reply()),
        }
    }

    async fn ask_status(&self, shard: ShardId, query: ShardQuery) -> Result<AckStatus, AdminReply> {
        match self.ask(shard, query).await? {
            ShardReply::Status(status) => Ok(status),
            _ => Err(wrong_reply()),
        }
    }

    fn shards(&self) -> impl Iterator<Item = ShardId> {
        (0..self.mailboxes.shards.len() as u16).map(ShardId)
    }

    fn home(&self, user: &str) -> ShardId {
        self.homes.home(self.homes.hash(user))
    }

    /// Tells the other gateways. Returns false if they cannot be told now.
    async fn forward(&self, command: ShardCommand) -> bool {
        let (sender, told) = oneshot::channel();
        self.handle.order(Order::Forward(command, sender));
        told.await.unwrap_or(false)
    }

    async fn list(
        &self,
        user: Option<Arc<str>>,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> Result<AdminReply, AdminReply> {
        let shards = match &user {
            Some(user) => self.home(user).0..=self.home(user).0,
            None => 0..=self.mailboxes.shards.len() as u16 - 1,
        };
        let first = Cursor {
            shard: *shards.start(),
            slot: 0,
        };
        let mut next = Some(cursor.unwrap_or(first));
        if next.is_some_and(|at| !shards.contains(&at.shard)) {
            return Err(bad_cursor());
        }
        let mut connections = Vec::new();
        while let Some(at) = next
            && connections.len() < limit
        {
            let query = ShardQuery::List {
                user: user.clone(),
                from: at.slot,
                limit: limit - connections.len(),
            };
            let (found, slot) = self.ask_page(ShardId(at.shard), query).await?;
            connections.extend(found);
            next = match slot {
                Some(slot) => Some(Cursor { slot, ..at }),
                None => Some(Cursor {
                    shard: at.shard + 1,
                    slot: 0,
                }),
            }
            .filter(|next| shards.contains(&next.shard));
        }
        Ok(AdminReply::json(&Page {
            connections,
            cursor: next,
        }))
    }

    /// The connection with this id, closed if that is wanted.
    async fn find(&self, id: Uuid, close: Option<CloseReason>) -> Result<ConnectionInfo, AdminReply> {
        let searches = self.shards().map(|shard| self.find_on(shard, id, close));
        for found in join_all(searches).await {
            if let Some(found) = found? {
                return Ok(found);
            }
        }
        Err(no_such_connection())
    }

    async fn find_on(
        &self,
        shard: ShardId,
        id: Uuid,
        close: Option<CloseReason>,
    ) -> Result<Option<ConnectionInfo>, AdminReply> {
        let mut next = Some(0);
        while let Some(from) = next {
            let (found, after) = self.ask_page(shard, ShardQuery::Find { id, from, close }).await?;
            if let Some(found) = found.into_iter().next() {
                return Ok(Some(found));
            }
            next = after;
        }
        Ok(None)
    }

    async fn show_user(&self, user: &str) -> Result<AdminReply, AdminReply> {
        let count = ShardQuery::Count { user: user.into() };
        let here = self.ask_count(self.home(user), count).await?;
        let mut gateways = Vec::new();
        if here > 0 {
            gateways.push(GatewayInfo {
                gateway_id: self.shared.gateway_id.clone(),
                connections: here,
            });
        }
        if !self.shared.cluster.is_alone() {
            let ticket = self.ticket();
            self.handle.order(Order::Locate(ticket.number, user.into()));
            let Reply::Whereabouts(found) = self.reply(ticket).await? else {
                return Err(wrong_reply());
            };
            let words = "the other gateways cannot be asked: Redis is away, or one of them is coming back";
            let elsewhere = found.ok_or_else(|| AdminReply::refuse(AdminError::Unavailable, words))?;
            gateways.extend(elsewhere.into_iter().map(|(id, connections)| GatewayInfo {
                gateway_id: id.to_string(),
                connections: connections.into(),
            }));
        }
        Ok(AdminReply::json(&UserInfo {
            user_id: user,
            gateways,
        }))
    }

    async fn end_subscription(&self, user: Arc<str>, channel: Arc<str>) -> Result<AdminReply, AdminReply> {
        let home = self.home(&user);
        let command = ShardCommand::EndSubscription { user, channel };
        self.close_everywhere(home, command, "subscriptions of this gateway were ended")
            .await
    }

    async fn close_user(&self, user: Arc<str>, reason: CloseReason) -> Result<AdminReply, AdminReply> {
        let home = self.home(&user);
        let command = ShardCommand::CloseUser { user, reason };
        self.close_everywhere(home, command, "connections of this gateway were closed")
            .await
    }

    /// Has the user's home shard and the other gateways do this. `done`: what of this gateway's
    /// came of it, for a client that hears only of that.
    async fn close_everywhere(
        &self,
        home: ShardId,
        command: ShardCommand,
        done: &str,
    ) -> Result<AdminReply, AdminReply> {
        let told = self.forward(command.clone()).await;
        let closed = self.ask_count(home, ShardQuery::Command(command)).await?;
        if !told {
            let words = format!("{closed} {done}, {NOT_TOLD}");
            return Err(AdminReply::refuse(AdminError::Unavailable, &words));
        }
        Ok(AdminReply::json(&ClosedInfo { closed }))
    }

    /// This gateway's channels by name, from every shard.
    async fn list_channels(&self, prefix: Arc<str>, after: Arc<str>, limit: usize) -> Result<AdminReply, AdminReply> {
        let walks = self
            .shards()
            .map(|shard| self.channels_of(shard, &prefix, &after, limit + 1));
        let mut all = BTreeMap::<Box<str>, u64>::new();
        for (channel, subscribers) in try_join_all(walks).await?.into_iter().flatten() {
            *all.entry(channel).or_default() += subscribers;
        }
        let there_are_more = all.len() > limit;
        let channels: Vec<ChannelInfo> = all
            .into_iter()
            .take(limit)
            .map(|(channel, subscribers)| ChannelInfo { channel, subscribers })
            .collect();
        let last = channels.last().filter(|_| there_are_more);
        let cursor = last.map(|last| last.channel.clone());
        Ok(AdminReply::json(&ChannelPage { channels, cursor }))
    }

    /// The first `most` channels of a shard.
    async fn channels_of(
        &self,
        shard: ShardId,
        prefix: &Arc<str>,
        after: &Arc<str>,
        most: usize,
    ) -> Result<BTreeMap<Box<str>, u64>, AdminReply> {
        let mut first = BTreeMap::new();
        let mut next = Some(0);
        while let Some(from) = next {
            let query = ShardQuery::Channels {
                prefix: Arc::clone(prefix),
                after: Arc::clone(after),
                from,
            };
            let ShardReply::Channels {
                channels,
                next: after_these,
            } = self.ask(shard, query).await?
            else {
                return Err(wrong_reply());
            };
            first.extend(channels);
            while first.len() > most {
                first.pop_last();
            }
            next = after_these;
        }
        Ok(first)
    }

    async fn send(&self, to: Receivers, from: &str, content: &str) -> Result<AdminReply, AdminReply> {
        let now = self.clock.now();
        let id = self.ids.borrow_mut().next(now.wall_ms);
        let send_to = |to: Arc<str>| {
            let message = Message {
                id,
                from,
                to: &to,
                content,
                ts_ms: now.wall_ms,
            };
            let body = body(&ServerMessage::Message(message)).into();
            let home = self.home(&to);
            let query = ShardQuery::Message {
                to,
                body,
                message_id: id,
                received_ns: now.mono_ns,
            };
            self.ask_status(home, query)
        };
        let mut info = SentInfo {
            message_id: id,
            status: None,
            statuses: None,
            recipients: None,
        };
        match to {
            Receivers::One(to) => info.status = Some(send_to(to.into()).await?.as_str()),
            Receivers::Many(all) => {
                let sent = all.into_iter().map(|to| {
                    let status = send_to(to.as_str().into());
                    async { Ok::<_, AdminReply>((to.into_boxed_str(), status.await?.as_str())) }
                });
                info.statuses = Some(try_join_all(sent).await?.into_iter().collect());
            }
        }
        Ok(AdminReply::json(&info))
    }

    async fn publish(&self, channel: Arc<str>, from: &str, content: &str) -> Result<AdminReply, AdminReply> {
        let now = self.clock.now();
        let message_id = self.ids.borrow_mut().next(now.wall_ms);
        let publication = Publication {
            id: message_id,
            from,
            channel: &channel,
            content,
            ts_ms: now.wall_ms,
        };
        let message = Encoded::new(&body(&ServerMessage::Publication(publication)));
        let home = self.homes.partition_home(self.homes.partition(&channel));
        let query = ShardQuery::Publish {
            channel,
            message,
            message_id,
            received_ns: now.mono_ns,
        };
        match self.ask_status(home, query).await? {
            AckStatus::Published => Ok(AdminReply::json(&SentInfo {
                message_id,
                status: None,
                statuses: None,
                recipients: None,
            })),
            _ => {
                let words = "not every subscriber gets it: Redis is away, or too much is on its way";
                Err(AdminReply::refuse(AdminError::Unavailable, words))
            }
        }
    }

    async fn broadcast(&self, content: &str) -> Result<AdminReply, AdminReply> {
        let now = self.clock.now();
        let message_id = self.ids.borrow_mut().next(now.wall_ms);
        let broadcast = Broadcast {
            id: message_id,
            content,
            ts_ms: now.wall_ms,
        };
        let message = Encoded::new(&body(&ServerMessage::Broadcast(broadcast)));
        let command = ShardCommand::Broadcast(message);
        let told = self.forward(command.clone()).await;
        let queries = self
            .shards()
            .map(|shard| self.ask_count(shard, ShardQuery::Command(command.clone())));
        let recipients = try_join_all(queries).await?.into_iter().sum();
        if !told {
            let words = format!("{recipients} connections of this gateway got it, {NOT_TOLD}");
            return Err(AdminReply::refuse(AdminError::Unavailable, &words));
        }
        Ok(AdminReply::json(&SentInfo {
            message_id,
            status: None,
            statuses: None,
            recipients: Some(recipients),
        }))
    }
}

/// The body of what the system says.
fn body(message: &ServerMessage<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    Codec::Json.encode(&mut body, message);
    body
}

/// A fault of ours: each query has its kind of reply.
fn wrong_reply() -> AdminReply {
    debug_assert!(false, "a reply of another kind");
    AdminReply::refuse(AdminError::Internal, "a reply of another kind")
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
