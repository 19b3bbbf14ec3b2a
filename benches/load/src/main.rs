//! `shardgate-load`: how fast is a gateway, and does it lose anything?
//!
//! | room | duty |
//! | --- | --- |
//! | `args` | the command line |
//! | `wire` | client side of RFC 6455 (pure) |
//! | `message` | benchmark messages: numbers in, numbers out (pure) |
//! | `sequence` | losses, duplicates, order (pure) |
//! | `stream`, `audience` | the same while people come and go: of a pair, of a channel (pure) |
//! | `reconnect` | when a client comes back (pure) |
//! | `conn` | one connection's life (pure) |
//! | `dialect` | servers with protocols of their own (pure) |
//! | `kind`, `chat` | which scenarios there are; what the users of `mixed` do (pure) |
//! | `scenario` | what the connections do |
//! | `tls` | client side of TLS |
//! | `net` | the sockets of one thread |
//! | `driver` | the epoll loop of one thread |
//! | `board` | what threads and coordinator tell each other |
//! | `ledger` | what the threads and processes of a fanout know of each other |
//! | `workers` | the threads of a process |
//! | `children` | the other processes |
//! | `coordinator` | phases, sampling |
//! | `progress`, `series` | the run second by second: for the eye, for the report |
//! | `target`, `resolve` | the gateways, and who connects to which; names to addresses |
//! | `procfs`, `sys` | what is asked of the kernel |
//! | `redis`, `admin` | what is asked of Redis, and of a gateway's admin API |
//! | `spread`, `tally` | what is counted |
//! | `cost`, `own`, `turmoil`, `report` | what is made of it |
//! | `figures`, `duration`, `html` | numbers, times and text as people write or read them (pure) |
//! | `page`, `plot` | the report as HTML |
//!
//! Imports between files have no circle; `tests/imports.rs` of the gateway checks it.
//!
//! One connection of the report is one user. Threads share nothing but a few counters and, in a
//! fanout, the ledger.

mod admin;
mod args;
mod audience;
mod board;
mod chat;
mod children;
mod conn;
mod coordinator;
mod cost;
mod dialect;
mod driver;
mod duration;
mod figures;
mod html;
mod kind;
mod ledger;
mod message;
mod net;
mod own;
mod page;
mod plot;
mod procfs;
mod progress;
mod reconnect;
mod redis;
mod report;
mod resolve;
mod scenario;
mod sequence;
mod series;
mod spread;
mod stream;
mod sys;
mod tally;
mod target;
mod tls;
mod tokens;
mod turmoil;
mod verdict;
mod whereabouts;
mod wire;
mod workers;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = if words.first().is_some_and(|word| word == "report") {
        args::parse_comparison(words.into_iter().skip(1)).map(|comparison| compare(&comparison))
    } else {
        args::parse(words).map(run)
    };
    match done {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) => ExitCode::FAILURE,
        Ok(Err(why)) => {
            let _ = writeln!(std::io::stderr(), "shardgate-load: {why}");
            ExitCode::from(2)
        }
        Err(asked) => {
            // Help goes to standard output, a mistake to standard error.
            let _ = asked.print();
            ExitCode::from(asked.exit_code() as u8)
        }
    }
}

/// True if nothing was lost and nothing failed.
fn run(options: args::Options) -> Result<bool, String> {
    sys::make_room_for(options.own_connections())?;
    if !options.cpus().is_empty() {
        sys::pin(options.cpus())?;
    }
    if options.generator.process > 0 {
        return children::serve(options).map(|()| true);
    }
    // A file that cannot be written is found out before the run, not after it.
    let mut json: Option<Box<dyn Write>> = match options.output.json.as_deref() {
        None => None,
        Some("-") => Some(Box::new(std::io::stdout())),
        Some(file) => Some(Box::new(
            File::create(file).map_err(|error| format!("--json {file}: {error}"))?,
        )),
    };
    let mut html = options.output.html.as_deref().map(create_page).transpose()?;
    let report = report::Report::new(&options, coordinator::run(options.clone())?);
    if !options.output.quiet {
        // A closed or full output is no error: the verdict and the files count all the same.
        let _ = if options.output.json.as_deref() == Some("-") {
            write!(std::io::stderr(), "{}", report.summary())
        } else {
            write!(std::io::stdout(), "{}", report.summary())
        };
    }
    if let Some(out) = &mut json {
        out.write_all(report.json().as_bytes())
            .map_err(|error| format!("--json: {error}"))?;
    }
    if let Some(out) = &mut html {
        let run = page::Run::read(report.name(), &report.json())?;
        out.write_all(page::write(&[run]).as_bytes())
            .map_err(|error| format!("--html: {error}"))?;
    }
    Ok(report.is_ok())
}

/// Puts reports that are there beside each other.
fn compare(comparison: &args::Comparison) -> Result<bool, String> {
    let read = |file: &Path| {
        let say = |why: String| format!("{}: {why}", file.display());
        let text = std::fs::read_to_string(file).map_err(|error| say(error.to_string()))?;
        let name = file.file_stem().unwrap_or(file.as_os_str()).to_string_lossy();
        page::Run::read(&name, &text).map_err(say)
    };
    let runs = comparison
        .files
        .iter()
        .map(|file| read(file))
        .collect::<Result<Vec<_>, _>>()?;
    create_page(&comparison.html)?
        .write_all(page::write(&runs).as_bytes())
        .map_err(|error| format!("--html: {error}"))?;
    Ok(true)
}

fn create_page(file: &Path) -> Result<File, String> {
    File::create(file).map_err(|error| format!("--html {}: {error}", file.display()))
}
