//! The route of an opponent that is alone.
//!
//! Duty: [`Route`]: everybody is here, so a message goes into a queue or nowhere.

use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::opponent::{Result, Route, Users};

/// What it calls itself.
pub(crate) struct Local(pub(crate) &'static str);

impl Route for Local {
    const READ_BATCH_MAX: usize = 64;

    fn gateway_id(&self) -> &str {
        self.0
    }

    async fn join(&self, _user: &str) -> Result<()> {
        Ok(())
    }

    async fn leave(&self, _user: &str) {}

    async fn send(&self, users: &Users, to: &str, frame: Utf8Bytes) -> &'static str {
        if users.deliver(to, &frame) {
            "delivered"
        } else {
            "offline"
        }
    }
}
