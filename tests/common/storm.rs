//! A storm of presence questions, as large as ordinary users may make it, and the proof that it
//! touched nothing else.

use super::Gateway;
use super::client::TEXT;

/// Three users with as many connections as one user may have.
pub const USERS: usize = 3;
pub const CONNECTIONS: usize = 16;
/// One new connection may send so many frames of a hundred names at once: each costs eleven of
/// `limits.burst`.
pub const FRAMES: usize = 18;
pub const NAMES: usize = 100;

/// The user that the connection with this number belongs to.
pub fn user(connection: usize) -> String {
    format!("storm{}", connection % USERS)
}

/// So many questions, for names that were never asked for. Each answer has the id `"q"`.
pub fn burst(connection: usize, round: usize, frames: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in 0..frames {
        let names = (0..NAMES).map(|n| format!("\"u{connection}-{round}-{frame}-{n}\""));
        let names: Vec<String> = names.collect();
        let text = format!(r#"{{"type":"presence","id":"q","users":[{}]}}"#, names.join(","));
        // A mask of zeros is one as well, and costs the machine nothing: it shall be busy with
        // answers.
        bytes.extend([0x80 | TEXT, 0x80 | 126]);
        bytes.extend((text.len() as u16).to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// The numbers of one of two gateways about its link to Redis before a storm.
pub struct Link {
    reconnects: f64,
    log_lines: usize,
}

impl Link {
    #[track_caller]
    pub fn of(gateway: &Gateway) -> Link {
        Link {
            reconnects: gateway.metric("shardgate_redis_reconnects_total", &[]),
            log_lines: gateway.log_lines(),
        }
    }

    /// Nothing was given up, no connection to Redis was lost, and neither gateway took the other
    /// for dead.
    #[track_caller]
    pub fn assert_held(&self, gateway: &Gateway) {
        assert_eq!(gateway.get("/readyz").status, 200);
        assert_eq!(gateway.metric("shardgate_redis_reconnects_total", &[]), self.reconnects);
        assert_eq!(gateway.metric("shardgate_cluster_gateways", &[]), 1.0);
        assert_eq!(gateway.metric("shardgate_cluster_rebuilds_total", &[]), 0.0);
        let log = gateway.log();
        let mut later = log.lines().skip(self.log_lines);
        let bad = later.find(|line| line.contains("Redis is") || line.contains("has not answered"));
        assert_eq!(bad, None);
    }
}
