//! Why a connection ends: one table from reason to close code, text, and metric label.

/// Why the gateway closes a connection. The one place where peer faults, limits and our own
/// decisions get their code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// RFC 6455 was broken.
    Protocol,
    /// A binary frame where only text is understood.
    Unsupported,
    /// A text frame that is not UTF-8.
    InvalidUtf8,
    /// A message over `limits.message_bytes`.
    TooBig,
    /// The gateway drains.
    Shutdown,
    /// The token ended, and no other came before.
    TokenExpired,
    /// The outbox is over `limits.outbox_bytes`.
    SlowConsumer,
    /// An administrator asked for it: come back.
    Reconnect,
    /// Nothing came for `heartbeat.timeout`.
    HeartbeatTimeout,
    /// The rate limit was exceeded, and again and again.
    TooManyRequests,
    /// `auth` with something that does not name a user, or a token that is not good.
    InvalidCredential,
    /// Ten frames in a row that could not be understood.
    BadRequest,
    /// No `auth` within `auth.timeout`.
    NoCredential,
    /// An administrator said so.
    Administrator,
    /// The user opened more than `limits.connections_per_user`; the oldest goes.
    TooManyConnections,
    /// `auth` as somebody else on an authenticated connection.
    NotPermitted,
    /// An administrator said so, with a code of their own.
    Ordered(u16),
}

impl CloseReason {
    /// Every reason that we have a code for.
    pub const ALL: [CloseReason; 16] = [
        CloseReason::Protocol,
        CloseReason::Unsupported,
        CloseReason::InvalidUtf8,
        CloseReason::TooBig,
        CloseReason::Shutdown,
        CloseReason::TokenExpired,
        CloseReason::SlowConsumer,
        CloseReason::Reconnect,
        CloseReason::HeartbeatTimeout,
        CloseReason::TooManyRequests,
        CloseReason::InvalidCredential,
        CloseReason::BadRequest,
        CloseReason::NoCredential,
        CloseReason::Administrator,
        CloseReason::TooManyConnections,
        CloseReason::NotPermitted,
    ];

    /// The reason with this code.
    pub fn by_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }

    /// The reason for which an administrator closes with this code: those from 3000 to 4999 are
    /// applications' to use (RFC 6455, 7.4.2), and below 4000 they have their meaning for clients.
    pub fn by_order(code: u16) -> Option<Self> {
        let reason = Self::by_code(code).unwrap_or(CloseReason::Ordered(code));
        (3000..=4999).contains(&code).then_some(reason)
    }

    /// The code that goes into the close frame: RFC 6455 below 3000; 3000 to 3499 means come back,
    /// 3500 to 3999 means do not come back unchanged (Centrifugo's ranges, which its clients
    /// already know).
    pub fn code(self) -> u16 {
        self.row().0
    }

    /// The short English text that goes into the close frame.
    pub fn text(self) -> &'static str {
        self.row().1
    }

    fn row(self) -> (u16, &'static str) {
        match self {
            CloseReason::Protocol => (1002, "protocol error"),
            CloseReason::Unsupported => (1003, "binary frames are not supported"),
            CloseReason::InvalidUtf8 => (1007, "invalid UTF-8"),
            CloseReason::TooBig => (1009, "message too big"),
            CloseReason::Shutdown => (3001, "shutdown"),
            CloseReason::TokenExpired => (3005, "token expired"),
            CloseReason::SlowConsumer => (3008, "slow consumer"),
            CloseReason::Reconnect => (3011, "asked to reconnect"),
            CloseReason::HeartbeatTimeout => (3012, "heartbeat timeout"),
            CloseReason::TooManyRequests => (3013, "too many requests"),
            CloseReason::InvalidCredential => (3500, "invalid credential"),
            CloseReason::BadRequest => (3501, "bad request"),
            CloseReason::NoCredential => (3502, "no credential in time"),
            CloseReason::Administrator => (3503, "closed by an administrator"),
            CloseReason::TooManyConnections => (3504, "too many connections of this user"),
            CloseReason::NotPermitted => (3507, "not permitted"),
            CloseReason::Ordered(code) => (code, "closed by an administrator"),
        }
    }
}

/// True for a code that a peer may put into a close frame (RFC 6455, 7.4).
pub fn is_valid_peer_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_texts_fit_a_control_frame() {
        let mut codes: Vec<u16> = CloseReason::ALL.iter().map(|r| r.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), CloseReason::ALL.len());
        for reason in CloseReason::ALL {
            assert!(reason.text().len() <= 123);
            assert!(is_valid_peer_code(reason.code()));
        }
    }

    #[test]
    fn administrators_choose_among_the_codes_of_applications() {
        assert_eq!(CloseReason::by_order(3503), Some(CloseReason::Administrator));
        assert_eq!(CloseReason::by_order(3011), Some(CloseReason::Reconnect));
        for code in [3000, 3499, 3500, 4000, 4999] {
            assert_eq!(CloseReason::by_order(code).map(CloseReason::code), Some(code));
        }
        for code in [0, 1000, 1001, 1011, 2999, 5000, u16::MAX] {
            assert_eq!(CloseReason::by_order(code), None, "{code}");
        }
    }

    #[test]
    fn reserved_codes_are_not_for_the_wire() {
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, u16::MAX] {
            assert!(!is_valid_peer_code(code), "{code}");
        }
    }
}
