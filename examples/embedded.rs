//! A gateway inside another program: it serves on a port of the kernel's choice, the program
//! publishes to all clients, and a client of the same program hears it and answers.
//!
//! `cargo run --example embedded [GATEWAY FLAGS]`

use std::error::Error;
use std::ffi::OsString;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use shardgate::admin::Request;
use shardgate::config::{self, Loaded};
use shardgate::control::{Exit, Gateway, Handle};
use tokio::net::TcpStream;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

fn main() -> Result<(), Box<dyn Error>> {
    // Keys are said as flags; `Config` has them as fields for whoever makes one by hand.
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    args.extend(["--listen", "127.0.0.1:0", "--shards", "1"].map(OsString::from));
    let Loaded::Run(config) = config::load(args, Vec::<(OsString, OsString)>::new())? else {
        return Err("these flags ask for something else than a gateway".into());
    };
    // Its threads are its own; it returns once clients are let in.
    let gateway = Gateway::start(&config)?;
    println!("listening on {}", gateway.local_addr());

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(talk(&gateway))?;

    // A drain tells clients to go elsewhere, and ends once they have gone.
    gateway.handle().drain();
    match gateway.wait() {
        Exit::Drained { .. } => Ok(()),
        exit => Err(format!("the gateway ended otherwise: {exit:?}").into()),
    }
}

/// What an administrator may ask, the program may ask, without a token.
async fn publish(handle: &Handle, channel: &str, content: &str) -> Result<(), Box<dyn Error>> {
    let body = json!({"channel": channel, "content": content}).to_string();
    let request = Request {
        method: "POST".into(),
        path: "/admin/publish".into(),
        query: "".into(),
        body: Bytes::from(body),
    };
    let answer = handle.administer(request).await?;
    println!("published: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
    Ok(())
}

async fn talk(gateway: &Gateway) -> Result<(), Box<dyn Error>> {
    let address = gateway.local_addr();
    let stream = TcpStream::connect(address).await?;
    let (mut socket, _) = client_async(format!("ws://{address}/ws?user=alice"), stream).await?;
    while let Some(message) = socket.next().await {
        let Message::Text(text) = message? else { continue };
        let frame: Value = serde_json::from_str(&text)?;
        let said = match frame["type"].as_str() {
            Some("welcome") => json!({"type": "subscribe", "channel": "news"}),
            Some("subscribed") => {
                publish(&gateway.handle(), "news", "hello from the program").await?;
                continue;
            }
            // The program's own publications have no user.
            Some("publication") if frame["from"] == "" => {
                println!("alice heard {}", frame["content"]);
                json!({"type": "publish", "channel": "news", "content": "hello from alice", "id": "1"})
            }
            Some("publication") => {
                println!("alice heard {}", frame["content"]);
                socket.close(None).await?;
                continue;
            }
            _ => continue,
        };
        socket.send(Message::text(said.to_string())).await?;
    }
    Ok(())
}
