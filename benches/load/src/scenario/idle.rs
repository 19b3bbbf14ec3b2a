//! `idle`: connections that do nothing. The driver makes and holds them, answers pings and counts
//! who leaves.

use crate::net::Net;
use crate::scenario::behaviour::Scenario;

/// Has no state: whatever the server says is counted by kind.
#[derive(Debug, Default)]
pub(crate) struct Idle;

impl Scenario for Idle {
    fn handle_text(&mut self, net: &mut Net, _index: usize, text: &[u8], _now_ns: u64) {
        net.tally.note_other(text);
    }
}
