//! Mail of other threads, to the service that carries it out.
//!
//! Owned by the shard. Every match is exhaustive: a new kind of mail does not compile before it has
//! its service.

use super::core::{Command, Core};
use crate::lanes::{
    AckToShard, AdminToShard, Batch, ChannelToShard, LifecycleToShard, MessageToShard, PresenceToShard, RosterToShard,
    ToShard,
};

impl Core {
    /// Carries out what another thread sent. Returns the number of items.
    pub fn handle_batch(&mut self, mut batch: Batch<ToShard>) -> usize {
        let items = std::mem::take(&mut batch.items);
        let count = items.len();
        for item in items {
            match item {
                ToShard::Handoff(hand_off) => self.kernel.command(Command::Adopt(hand_off)),
                ToShard::Message(mail) => self.handle_message_mail(&batch, mail),
                ToShard::Ack(AckToShard { ack_to, status }) => {
                    self.kernel.turn.interactive = true;
                    self.kernel.answer(&batch.ack_to(self.kernel.me, &ack_to), status);
                }
                ToShard::Presence(mail) => self.handle_presence_mail(&batch, mail),
                ToShard::Roster(mail) => self.handle_roster_mail(&batch, mail),
                ToShard::Channel(mail) => self.handle_channel_mail(&batch, mail),
                ToShard::Admin(AdminToShard::Query(ticket, query)) => self.handle_query(ticket, *query),
                ToShard::Admin(AdminToShard::Answer(conn, answer)) => self.handle_answer(conn, *answer),
                ToShard::Command(command) => self.handle_command(command),
                ToShard::Lifecycle(mail) => self.handle_lifecycle_mail(mail),
            }
        }
        self.settle();
        count
    }

    fn handle_message_mail(&mut self, batch: &Batch<ToShard>, mail: MessageToShard) {
        match mail {
            MessageToShard::Message(message) => {
                self.kernel.turn.interactive = true;
                self.messages.handle_message_item(&mut self.kernel, batch, &message);
            }
            MessageToShard::FromGateway {
                hash,
                to,
                body,
                index,
                received_ns,
            } => {
                self.kernel.turn.interactive = true;
                self.messages.handle_from_gateway(
                    &mut self.kernel,
                    (hash, batch.text(to)),
                    batch.bytes(body),
                    index,
                    received_ns,
                );
            }
            MessageToShard::PacketEnd { packet } => self.messages.handle_packet_end(&mut self.kernel, packet),
            MessageToShard::Located { hash, user, location } => {
                self.messages
                    .handle_located(&mut self.kernel, hash, batch.text(user), &location);
            }
            MessageToShard::Forget { hash, user } => self.kernel.forget_location(hash, batch.text(user)),
            MessageToShard::ForgetAll => self.kernel.forget_locations(),
        }
    }

    fn handle_presence_mail(&mut self, batch: &Batch<ToShard>, mail: PresenceToShard) {
        match mail {
            PresenceToShard::Query(query) => self.presence.handle_presence_query(&mut self.kernel, batch, &query),
            PresenceToShard::Answer { ticket, online, known } => {
                self.presence
                    .handle_presence_answer(&mut self.kernel, ticket, online, known)
            }
            PresenceToShard::Unknown { ticket, overloaded } => {
                self.presence
                    .handle_presence_unknown(&mut self.kernel, ticket, overloaded)
            }
        }
    }

    fn handle_roster_mail(&mut self, batch: &Batch<ToShard>, mail: RosterToShard) {
        match mail {
            RosterToShard::List { round, from, count } => self.kernel.list_users(round, from, count),
            RosterToShard::ReviewPage { round, from, count } => self.kernel.review_page(round, from, count),
            RosterToShard::ReviewUsers { round, users } => {
                let users = users.iter().map(|(hash, user)| (*hash, batch.text(*user)));
                self.kernel.review_users(round, users);
            }
            RosterToShard::Check { users } => {
                let users = users.iter().map(|(hash, user)| (*hash, batch.text(*user)));
                self.kernel.check_users(users);
            }
        }
    }

    fn handle_channel_mail(&mut self, batch: &Batch<ToShard>, mail: ChannelToShard) {
        match mail {
            ChannelToShard::Publish(publish) => self.channels.handle_publish_item(&mut self.kernel, batch, &publish),
            ChannelToShard::Publication(item) => {
                self.channels.queue_publication(
                    &mut self.kernel,
                    item.channel.read(batch),
                    &item.message,
                    item.received_ns,
                );
            }
            ChannelToShard::Published(item) => self.channels.handle_published_item(&mut self.kernel, batch, &item),
            ChannelToShard::Join { channel, ticket } => {
                self.channels
                    .handle_join_item(&mut self.kernel, batch.from, channel.read(batch), ticket);
            }
            ChannelToShard::Leave { channel } => {
                self.channels
                    .handle_leave_item(&mut self.kernel, batch.from, channel.read(batch))
            }
            ChannelToShard::Crowded { channel, crowded } => {
                self.channels.handle_crowded(batch.from, channel.hash, crowded);
            }
            ChannelToShard::Joined { ticket } => self.channels.handle_joined(&mut self.kernel, ticket),
            ChannelToShard::PartitionSubscribed { partition, subscribed } => {
                if subscribed {
                    self.channels.handle_partition_subscribed(&mut self.kernel, partition);
                } else {
                    self.channels.handle_partition_lost(partition);
                }
            }
        }
    }

    fn handle_lifecycle_mail(&mut self, mail: LifecycleToShard) {
        match mail {
            LifecycleToShard::Settings(settings) => {
                self.admission.handle_settings(&settings);
                let before = std::mem::replace(&mut self.kernel.settings, settings);
                if before.subscribe != self.kernel.settings.subscribe {
                    self.channels.review_all();
                }
            }
            LifecycleToShard::KeysFetched => self.admission.handle_keys_fetched(),
            LifecycleToShard::Drain(plan) => self.begin_drain(plan),
            LifecycleToShard::Stop => self.stop(),
        }
    }
}
