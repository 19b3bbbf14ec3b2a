//! `shardgate-load`: how fast is a gateway, and does it lose anything?
//!
//! | room | duty |
//! | --- | --- |
//! | `args` | the command line |
//! | `wire` | client side of RFC 6455 (pure) |
//! | `message` | benchmark messages: numbers in, numbers out (pure) |
//! | `sequence` | losses, duplicates, order (pure) |
//! | `conn` | one connection's life (pure) |
//! | `scenario` | what the connections do |
//! | `net` | the sockets of one thread |
//! | `driver` | the epoll loop of one thread |
//! | `board` | what threads and coordinator tell each other |
//! | `coordinator` | phases, sampling, progress |
//! | `procfs`, `sys` | what is asked of the kernel |
//! | `tally`, `report` | counts and what is made of them |
//!
//! One connection of the report is one user. Threads share nothing but a few counters.

mod args;
mod board;
mod conn;
mod coordinator;
mod driver;
mod message;
mod net;
mod procfs;
mod report;
mod scenario;
mod sequence;
mod sys;
mod tally;
mod wire;

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
    sys::make_room_for(options.users)?;
    let report = report::Report::new(&options, coordinator::run(options.clone())?);
    let to_stdout = options.json.as_deref() == Some("-");
    if !options.quiet {
        if to_stdout {
            eprint!("{}", report.summary());
        } else {
            print!("{}", report.summary());
        }
    }
    match options.json.as_deref() {
        None => {}
        Some("-") => print!("{}", report.json()),
        Some(file) => {
            std::fs::write(file, report.json())
                .map_err(|error| format!("--json {file}: {error}"))?;
        }
    }
    Ok(report.is_ok())
}
