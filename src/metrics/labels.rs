//! Labels: each is an enum whose variants stand beside the values that the text shows.
//!
//! A counter of a label is an array with an element for each variant, so counting is one addition:
//! no name is looked up. Codes of close frames and of HTTP are numbers already, and peers choose
//! them: they are searched in a short list.

use crate::auth;
use crate::wire::message::ServerMessage;
use crate::wire::ws::close::CloseReason;
use crate::wire::ws::head;

/// An enum, and in `LABELS` the values of its variants in their order.
macro_rules! labels {
    ($(#[$about:meta])* $name:ident: $value:ty { $($(#[$doc:meta])* $variant:ident => $text:expr,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// The values of the label, in the order of the variants.
            pub const LABELS: [$value; [$($text),+].len()] = [$($text),+];
        }
    };
}

/// Close codes that are counted by themselves, ascending, and their labels with `other` behind
/// them.
macro_rules! close_codes {
    ($($code:literal)+) => {
        const CLOSE_CODES: [u16; [$($code),+].len()] = [$($code),+];

        /// Labels of `shardgate_connections_closed_total`: our codes and those of the RFC that
        /// peers send. 1005 is a close frame without a code, 1006 an end without a close frame.
        pub const CLOSE_LABELS: [&str; CLOSE_CODES.len() + 1] = [$(stringify!($code),)+ "other"];
    };
}

close_codes! {
    1000 1001 1002 1003 1005 1006 1007 1009 1011 3001 3005
    3008 3011 3012 3013 3500 3501 3502 3503 3504 3507
}

/// How a connection ended, for its counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCause {
    /// We closed it.
    Ours(CloseReason),
    /// The peer closed it, with this code if any.
    Peer(Option<u16>),
    /// It broke, or the peer went without a word.
    Abrupt,
}

impl CloseCause {
    /// Index into [`CLOSE_LABELS`].
    pub(super) fn label_index(self) -> usize {
        let code = match self {
            CloseCause::Ours(reason) => reason.code(),
            CloseCause::Peer(code) => code.unwrap_or(1005),
            CloseCause::Abrupt => 1006,
        };
        CLOSE_CODES.binary_search(&code).unwrap_or(CLOSE_CODES.len())
    }
}

labels! {
    /// Why a handshake was refused: the reason of `shardgate_handshakes_refused_total`.
    RefusalReason: &'static str {
        /// Another method than GET.
        Method => "method",
        /// No handshake where one is due.
        NotAnUpgrade => "not_an_upgrade",
        /// Another version of the protocol than 13.
        Version => "version",
        /// A page of a site that may not connect.
        Origin => "origin",
        /// No user id, or a forbidden one.
        User => "user",
        /// No valid token.
        Credential => "credential",
        /// The token was not looked at, or not shown, in time.
        CredentialTimeout => "credential_timeout",
        /// In development mode, a request for another machine.
        Host => "host",
        /// The gateway drains.
        Draining => "draining",
        /// `limits.connections` are open.
        ConnectionLimit => "connection_limit",
        /// `limits.handshakes_per_second` was exceeded.
        AdmissionRate => "admission_rate",
        /// The request did not come in time.
        HeadTimeout => "head_timeout",
        /// More bytes or fields than a request may have.
        HeadTooLarge => "head_too_large",
        /// No HTTP.
        Malformed => "malformed",
        /// The lane to the user's shard is full.
        LaneFull => "lane_full",
        /// Too many connections from one address.
        AddressLimit => "address_limit",
        /// The oldest of too many connections before authentication.
        HandshakeLimit => "handshake_limit",
        /// A TLS handshake that failed.
        Tls => "tls",
        /// Plain HTTP at the TLS port.
        PlainText => "plain_text",
    }
}

impl RefusalReason {
    /// The reason as the metric and the log write it.
    pub fn label(self) -> &'static str {
        Self::LABELS[self as usize]
    }
}

impl From<head::Refusal> for RefusalReason {
    fn from(refusal: head::Refusal) -> Self {
        match refusal {
            head::Refusal::Method => Self::Method,
            head::Refusal::NotAnUpgrade => Self::NotAnUpgrade,
            head::Refusal::Version => Self::Version,
            head::Refusal::Origin => Self::Origin,
            head::Refusal::User => Self::User,
            head::Refusal::Credential => Self::Credential,
            head::Refusal::Host => Self::Host,
        }
    }
}

labels! {
    /// The result of a look at a token, in `shardgate_token_verifications_total`.
    TokenResult: &'static str {
        /// It is good.
        Ok => "ok",
        /// It is good, as an identical token was before.
        Cached => "cached",
        /// It is no token.
        Malformed => "malformed",
        /// Its algorithm is not ours.
        Algorithm => "algorithm",
        /// It names a key that we do not have.
        UnknownKey => "unknown_key",
        /// Its signature is wrong.
        Signature => "signature",
        /// It has expired.
        Expired => "expired",
        /// It never expires.
        NoExpiry => "no_expiry",
        /// It is not valid yet.
        NotYetValid => "not_yet_valid",
        /// It is of another issuer.
        Issuer => "issuer",
        /// It is for another audience.
        Audience => "audience",
        /// Its claims are no good.
        Claims => "claims",
    }
}

impl From<auth::TokenError> for TokenResult {
    fn from(refusal: auth::TokenError) -> Self {
        match refusal {
            auth::TokenError::Malformed => Self::Malformed,
            auth::TokenError::Algorithm => Self::Algorithm,
            auth::TokenError::UnknownKey => Self::UnknownKey,
            auth::TokenError::Signature => Self::Signature,
            auth::TokenError::Expired => Self::Expired,
            auth::TokenError::NoExpiry => Self::NoExpiry,
            auth::TokenError::NotYetValid => Self::NotYetValid,
            auth::TokenError::Issuer => Self::Issuer,
            auth::TokenError::Audience => Self::Audience,
            auth::TokenError::Claims => Self::Claims,
        }
    }
}

labels! {
    /// Kinds of frames that the gateway sends.
    #[allow(missing_docs, reason = "they are the frames of the contract")]
    SentKind: &'static str {
        Welcome => "welcome",
        Message => "message",
        Ack => "ack",
        Presence => "presence",
        Heartbeat => "heartbeat",
        Error => "error",
        Shutdown => "shutdown",
        Close => "close",
        Ping => "ping",
        Pong => "pong",
        Echo => "echo",
        Broadcast => "broadcast",
        Publication => "publication",
        Subscribed => "subscribed",
        Unsubscribed => "unsubscribed",
    }
}

impl SentKind {
    /// The kind of a message.
    pub fn of(message: &ServerMessage<'_>) -> Self {
        match message {
            ServerMessage::Welcome(_) => SentKind::Welcome,
            ServerMessage::Heartbeat { .. } => SentKind::Heartbeat,
            ServerMessage::Message(_) => SentKind::Message,
            ServerMessage::Publication(_) => SentKind::Publication,
            ServerMessage::Subscribed { .. } => SentKind::Subscribed,
            ServerMessage::Unsubscribed { .. } | ServerMessage::SubscriptionEnded { .. } => SentKind::Unsubscribed,
            ServerMessage::Ack { .. } => SentKind::Ack,
            ServerMessage::Broadcast(_) => SentKind::Broadcast,
            ServerMessage::Presence { .. } => SentKind::Presence,
            ServerMessage::Error { .. } => SentKind::Error,
            ServerMessage::Shutdown { .. } => SentKind::Shutdown,
        }
    }

    /// True for what a client misses if it does not read it. Greetings, signs of life and goodbyes
    /// mean nothing to a client that has gone.
    pub fn is_missed(self) -> bool {
        match self {
            SentKind::Message
            | SentKind::Ack
            | SentKind::Presence
            | SentKind::Error
            | SentKind::Echo
            | SentKind::Broadcast
            | SentKind::Publication
            | SentKind::Subscribed
            | SentKind::Unsubscribed => true,
            SentKind::Welcome
            | SentKind::Heartbeat
            | SentKind::Shutdown
            | SentKind::Close
            | SentKind::Ping
            | SentKind::Pong => false,
        }
    }
}

labels! {
    /// Drops of a shard: kind and reason of `shardgate_dropped_total`.
    DropReason: (&'static str, &'static str) {
        /// A message for a user who is not here; its sender got `offline`.
        MessageOffline => ("message", "offline"),
        /// A client's frame over its rate limit; the client got `rateLimited`.
        FrameRateLimited => ("frame", "rate_limited"),
        /// A message did not fit into a lane; its sender got `failed`.
        MessageLaneFull => ("message", "lane_full"),
        /// A presence query did not fit into a lane; its sender got `unavailable`.
        PresenceLaneFull => ("presence", "lane_full"),
        /// A hand-over did not fit into a lane; the client got 503.
        HandOverLaneFull => ("handover", "lane_full"),
        /// A frame that a slow consumer's outbox had no room for, or that waited in it; the
        /// consumer was closed with 3008.
        FrameSlowConsumer => ("frame", "slow_consumer"),
        /// An answer for a connection that had gone.
        ReplyGone => ("reply", "connection_gone"),
        /// A message for other gateways while Redis is away; its sender heard `failed` if nobody
        /// here took it.
        MessageRedisAway => ("message", "redis_away"),
        /// A message for other gateways that was held while its receiver's location was asked for,
        /// and too many were.
        MessageHeldFull => ("message", "held_full"),
        /// A presence query while Redis is unavailable; its sender got `unavailable`.
        PresenceRedisAway => ("presence", "redis_away"),
        /// A message of another gateway for a user who is not here any more; its sender heard
        /// `offline`.
        MessageMissed => ("message", "missed"),
        /// A publication did not fit into a lane; its publisher heard `failed` if it is on this
        /// gateway.
        PublicationLaneFull => ("publication", "lane_full"),
        /// A publication for which too much was on its way to subscribers; its publisher heard
        /// `failed` if this is its channel's home.
        PublicationQueueFull => ("publication", "queue_full"),
        /// A publication that went to this gateway's subscribers only, while Redis is away; its
        /// publisher heard `failed`.
        PublicationRedisAway => ("publication", "redis_away"),
        /// A subscription for which a lane was full; the client got `unavailable`.
        SubscriptionLaneFull => ("subscription", "lane_full"),
        /// A broadcast for which too many were on their way.
        BroadcastQueueFull => ("broadcast", "queue_full"),
        /// A presence query whose users could not be looked up, as too many were; its sender heard
        /// `unavailable`.
        PresenceLookupsFull => ("presence", "lookups_full"),
        /// A frame that waited for a connection when that was lost, or that it may not have read by
        /// then.
        FrameConnectionLost => ("frame", "connectionLost"),
    }
}

labels! {
    /// Drops of the control thread: kind and reason of `shardgate_dropped_total`.
    ClusterDrop: (&'static str, &'static str) {
        /// Too much is queued for a gateway; the sender got `failed`.
        MessageGatewayFull => ("message", "gateway_full"),
        /// A message for a gateway without a subscription; the sender got `failed` or `offline`.
        MessageGatewayGone => ("message", "gateway_gone"),
        /// A message that was queued for Redis when Redis went; the sender got `failed`.
        MessageRedisAway => ("message", "redis_away"),
        /// A message of another gateway did not fit into the lane of its shard; the sender heard
        /// `failed`.
        MessageLaneFull => ("message", "lane_full"),
        /// A packet that was not confirmed in time; its senders got `failed`.
        PacketUnconfirmed => ("packet", "unconfirmed"),
        /// A packet that came behind a later one; its senders got `failed`.
        PacketLate => ("packet", "late"),
        /// A packet that made no sense.
        PacketMalformed => ("packet", "malformed"),
        /// A packet of another version of the framing.
        PacketVersion => ("packet", "version"),
        /// A packet for which there was no room.
        PacketInboxFull => ("packet", "inbox_full"),
        /// A broadcast or an order to close a user's connections, which did not reach the other
        /// gateways.
        OrderRedisAway => ("order", "redis_away"),
        /// The same, when fewer gateways heard it than there are: one was subscribing anew, or has
        /// just died.
        OrderUnheard => ("order", "unheard"),
        /// A publication that was queued for Redis when Redis went; its publisher got `failed`.
        PublicationRedisAway => ("publication", "redis_away"),
        /// A publication while too much was queued for Redis; its publisher got `failed`.
        PublicationRedisSlow => ("publication", "redis_slow"),
        /// A publication whose packet Redis did not take; its publisher got `failed`.
        PublicationFailed => ("publication", "failed"),
        /// A publication of another gateway that did not fit into the lane of its shard.
        PublicationLaneFull => ("publication", "lane_full"),
        /// A peer's packet in a partition that we subscribe to, which did not arrive.
        PacketGap => ("packet", "gap"),
        /// A partition that was not heard in time; its subscribers were told that they are
        /// subscribed.
        SubscriptionUnheard => ("subscription", "unheard"),
        /// A packet without a tag, while there is a `cluster.key`.
        PacketUnsealed => ("packet", "unsealed"),
        /// A packet with a tag, while there is no `cluster.key`.
        PacketNoKey => ("packet", "no_key"),
        /// A packet with a tag of another key.
        PacketWrongTag => ("packet", "wrong_tag"),
        /// A packet of a gateway that is in no directory, of which there are too many.
        PacketUnknownGateway => ("packet", "unknown_gateway"),
        /// A peer's message that is no frame; its sender got `failed`.
        MessageBadFrame => ("message", "bad_frame"),
        /// A publication of another gateway that is no frame.
        PublicationBadFrame => ("publication", "bad_frame"),
        /// A broadcast of another gateway that is no frame.
        OrderBadFrame => ("order", "bad_frame"),
    }
}

labels! {
    /// Which way a message went.
    Path: &'static str {
        /// Sender and receiver live on one shard.
        Local => "local",
        /// Over a lane.
        Shard => "shard",
        /// From another gateway; counted where it is delivered, from its receipt there.
        Gateway => "gateway",
    }
}

labels! {
    /// How the keys of `auth.jwks_url` were fetched.
    FetchResult: &'static str {
        /// They are here.
        Ok => "ok",
        /// They are not.
        Failed => "failed",
    }
}

labels! {
    /// Operations of the cluster, as Redis gets them.
    #[allow(missing_docs, reason = "they are those of `cluster::store`, which documents them")]
    RedisOperation: &'static str {
        SetPresence => "set_presence",
        ClearPresence => "clear_presence",
        Locate => "locate",
        IndexAdd => "index_add",
        IndexRemove => "index_remove",
        IndexScan => "index_scan",
        Publish => "publish",
        LeaseTake => "lease_take",
        LeaseWrite => "lease_write",
        LeaseRead => "lease_read",
        LeaseDrop => "lease_drop",
        Register => "register",
        Unregister => "unregister",
        ReadDirectory => "read_directory",
        Claim => "claim",
        KeepPresence => "keep_presence",
    }
}

/// Labels of `shardgate_admin_requests_total`: every status that the admin API has, ascending.
pub const ADMIN_STATUSES: [u16; 11] = [200, 202, 204, 400, 401, 404, 405, 413, 500, 503, 504];

/// The same as text.
pub(super) const ADMIN_STATUS_LABELS: [&str; ADMIN_STATUSES.len()] = [
    "200", "202", "204", "400", "401", "404", "405", "413", "500", "503", "504",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_of_ours_has_its_own_label() {
        let other = CLOSE_LABELS.len() - 1;
        for reason in CloseReason::ALL {
            assert_ne!(CloseCause::Ours(reason).label_index(), other, "{reason:?}");
        }
        assert!(CLOSE_CODES.is_sorted());
        assert_eq!(CLOSE_LABELS[CloseCause::Peer(None).label_index()], "1005");
        assert_eq!(CLOSE_LABELS[CloseCause::Peer(Some(4999)).label_index()], "other");
        assert_eq!(CLOSE_LABELS[CloseCause::Peer(Some(7)).label_index()], "other");
        assert_eq!(CLOSE_LABELS[CloseCause::Abrupt.label_index()], "1006");
    }

    /// Two variants with one value would be two samples of one name.
    #[test]
    fn no_value_stands_twice() {
        fn check<T: PartialEq + std::fmt::Debug>(values: &[T]) {
            for (at, value) in values.iter().enumerate() {
                assert!(!values[..at].contains(value), "{value:?}");
            }
        }
        check(&CLOSE_LABELS);
        check(&RefusalReason::LABELS);
        check(&TokenResult::LABELS);
        check(&SentKind::LABELS);
        check(&DropReason::LABELS);
        check(&ClusterDrop::LABELS);
        check(&RedisOperation::LABELS);
    }

    #[test]
    fn statuses_are_what_they_say() {
        let shown = ADMIN_STATUSES.map(|status| status.to_string());
        assert_eq!(shown.each_ref().map(String::as_str), ADMIN_STATUS_LABELS);
    }
}
