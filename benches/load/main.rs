//! `shardgate-load`: how fast is a gateway, and does it lose anything?
//!
//! | room | duty |
//! | --- | --- |
//! | `args` | the command line |
//! | `wire` | client side of RFC 6455 (pure) |
//! | `message` | benchmark messages: numbers in, numbers out (pure) |
//! | `sequence` | losses, duplicates, order (pure) |
//! | `conn` | one connection's life (pure) |
//! | `dialect` | servers with protocols of their own (pure) |
//! | `scenario` | what the connections do |
//! | `tls` | client side of TLS |
//! | `net` | the sockets of one thread |
//! | `driver` | the epoll loop of one thread |
//! | `board` | what threads and coordinator tell each other |
//! | `coordinator` | phases, sampling, progress |
//! | `target` | the gateways, and who connects to which |
//! | `procfs`, `sys` | what is asked of the kernel |
//! | `redis` | what is asked of Redis |
//! | `tally`, `cost`, `report` | counts and what is made of them |
//!
//! One connection of the report is one user. Threads share nothing but a few counters.

mod args;
mod board;
mod conn;
mod coordinator;
mod cost;
mod dialect;
mod driver;
mod message;
mod net;
mod procfs;
mod redis;
mod report;
mod scenario;
mod sequence;
mod sys;
mod tally;
mod target;
mod tls;
mod tokens;
mod wire;

use std::fs::File;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.is_empty() || words.iter().any(|word| word == "--help" || word == "-h") {
        print!("{}", args::USAGE);
        return if words.is_empty() {
            ExitCode::from(2)
        } else {
            ExitCode::SUCCESS
        };
    }
    match run(words) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("shardgate-load: {why}");
            ExitCode::from(2)
        }
    }
}

/// True if nothing was lost and nothing failed.
fn run(words: Vec<String>) -> Result<bool, String> {
    let options = args::parse(words)?;
    options.targets.dialect().check(&options)?;
    sys::make_room_for(options.connections())?;
    // A file that cannot be written is found out before the run, not after it.
    let mut json: Option<Box<dyn Write>> = match options.json.as_deref() {
        None => None,
        Some("-") => Some(Box::new(std::io::stdout())),
        Some(file) => Some(Box::new(
            File::create(file).map_err(|error| format!("--json {file}: {error}"))?,
        )),
    };
    let report = report::Report::new(&options, coordinator::run(options.clone())?);
    if !options.quiet {
        if options.json.as_deref() == Some("-") {
            eprint!("{}", report.summary());
        } else {
            print!("{}", report.summary());
        }
    }
    if let Some(out) = &mut json {
        out.write_all(report.json().as_bytes())
            .map_err(|error| format!("--json: {error}"))?;
    }
    Ok(report.is_ok())
}
