//! The opponent of one gateway: the same wire contract on tokio and tungstenite, all users in one process.
//!
//! Duty: the part of [`opponent`] that differs: everybody is here, so a message goes into a queue or nowhere.

mod opponent;

use std::rc::Rc;

use opponent::{Result, Route, Users};
use tokio_tungstenite::tungstenite::Utf8Bytes;

struct Local;

impl Route for Local {
    const READ_BATCH_MAX: usize = 64;

    fn gateway_id(&self) -> &str {
        "tokio"
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

fn main() -> Result<()> {
    let [address, cpu] = opponent::arguments(["--listen", "--cpu"])?;
    let Some(address) = address else {
        // `cargo bench` and `cargo test --all-targets` start every bench: a server would never end.
        println!("tokio_server --listen ADDR [--cpu N]: nothing to do without an address");
        return Ok(());
    };
    opponent::run(&address, cpu.as_deref(), async |_: Rc<Users>| Ok(Local))
}
