//! The opponent of one gateway: the same wire contract on tokio and tungstenite, all users in one
//! process.
//!
//! Duty: to put [`opponent`], [`local`] and [`tungstenite`] together.

mod local;
mod opponent;
mod tungstenite;

use local::Local;
use opponent::Result;
use tungstenite::Tungstenite;

fn main() -> Result<()> {
    let [address, cpu] = opponent::arguments(["--listen", "--cpu"])?;
    let Some(address) = address else {
        // `cargo bench` and `cargo test --all-targets` start every bench: a server would never end.
        println!("tokio_server --listen ADDR [--cpu N]: nothing to do without an address");
        return Ok(());
    };
    opponent::run::<Tungstenite, _>(&address, cpu.as_deref(), async |_| Ok(Local("tokio")))
}
