//! Commands for the shards of all gateways: those of this gateway on their way out, and those of
//! others on their way in.
//!
//! Pure; owned by the control thread. Broadcasts, closing of users and ends of subscriptions travel
//! on the channel of all.

use std::collections::VecDeque;

use super::packet::{Origin, PacketBuilder};
use crate::lanes::ShardCommand;

/// A packet to all gateways, not sealed yet.
#[derive(Debug)]
pub(super) struct CommandPacket {
    /// Commands in it; it may say more.
    pub(super) commands: u64,
    pub(super) payload: Vec<u8>,
}

/// Commands under way. Owned by the control thread.
#[derive(Debug, Default)]
pub(super) struct Commands {
    outgoing: Vec<ShardCommand>,
    /// The others should look at the directory.
    look: bool,
    /// The number of our last packet to all, where they are sealed.
    sequence: u32,
    incoming: VecDeque<ShardCommand>,
}

impl Commands {
    /// All other gateways shall carry this out.
    pub(super) fn forward(&mut self, command: ShardCommand) {
        self.outgoing.push(command);
    }

    /// All other gateways shall read the directory.
    pub(super) fn announce(&mut self) {
        self.look = true;
    }

    /// What goes to all others now, in order.
    pub(super) fn take_packets(&mut self, origin: Origin<'_>, seals: bool) -> Vec<CommandPacket> {
        if self.outgoing.is_empty() && !self.look {
            return Vec::new();
        }
        let mut packet = PacketBuilder::default();
        if std::mem::take(&mut self.look) {
            packet.look(origin);
        }
        let (mut packets, mut count) = (Vec::new(), 0);
        for command in std::mem::take(&mut self.outgoing) {
            match command {
                ShardCommand::Broadcast(message) => packet.broadcast(origin, message.body()),
                ShardCommand::CloseUser { user, reason } => packet.close_user(origin, &user, reason.code()),
                ShardCommand::EndSubscription { user, channel } => {
                    // What came before it goes before it.
                    packets.push((std::mem::take(&mut packet), std::mem::take(&mut count)));
                    packet.end_subscription(origin, &user, &channel);
                    packets.push((std::mem::take(&mut packet), 1));
                    continue;
                }
            }
            count += 1;
        }
        packets.push((packet, count));
        let packets = packets.into_iter().filter(|(packet, _)| !packet.is_empty());
        packets
            .map(|(packet, commands)| {
                if seals {
                    // 0 is for packets without a number.
                    self.sequence = self.sequence.wrapping_add(1).max(1);
                }
                let payload = packet.close(self.sequence);
                CommandPacket { commands, payload }
            })
            .collect()
    }

    /// The others cannot be told now, and what was meant for now must not happen at some later
    /// time. Returns how many commands that were.
    pub(super) fn fail(&mut self) -> u64 {
        std::mem::take(&mut self.outgoing).len() as u64
    }

    /// Another gateway wants all shards to do this.
    pub(super) fn received(&mut self, command: ShardCommand) {
        self.incoming.push_back(command);
    }

    /// The next thing that another gateway wants all shards to do.
    pub(super) fn poll(&mut self) -> Option<ShardCommand> {
        self.incoming.pop_front()
    }

    /// Commands of others that wait.
    pub(super) fn waiting(&self) -> usize {
        self.incoming.len()
    }
}
