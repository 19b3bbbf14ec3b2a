//! Several processes that are one generator.
//!
//! Duty: the first process starts the others with its own arguments and their number, and gives
//! them the path of its ledger. It sends them its board as lines of JSON on their standard input.
//! It receives their notes, counters and at last their tally from their standard output. The other
//! processes run threads as the first one does, and have no coordinator: they follow the board. A
//! process that ends early ends the run, and a process whose first process is gone ends itself.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::args::Options;
use crate::board::{Board, Meter, Note, Orders, Totals};
use crate::ledger::Ledger;
use crate::sys::Clock;
use crate::tally::Tally;
use crate::workers;

/// Counters are shown this often.
const SHOW_EVERY: Duration = Duration::from_millis(100);

/// The first line to a process.
#[derive(Debug, Deserialize, Serialize)]
struct Start {
    clock: Clock,
    /// Where the ledger is.
    ledger: String,
}

/// A line of a process.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Show(Totals),
    Note(Note),
    Tally(Box<Tally>),
}

/// One of the other processes, as the first one sees it.
#[derive(Debug)]
pub(crate) struct Helper {
    pub(crate) pid: u32,
    stdin: ChildStdin,
}

impl Helper {
    /// Sends the board. A process that is gone is noticed where it is heard.
    pub(crate) fn send(&mut self, orders: Orders) {
        let _ = send(&mut self.stdin, &orders);
    }
}

fn send(out: &mut impl Write, line: &impl Serialize) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    out.write_all(&text)?;
    out.flush()
}

/// Starts process number `number`; the thread that hears it gives its tally, or none if it died.
///
/// # Errors
/// It cannot be started.
pub(crate) fn start(
    number: usize,
    clock: Clock,
    ledger: &Ledger,
    meter: Arc<Meter>,
    notes: mpsc::Sender<Note>,
) -> std::io::Result<(Helper, JoinHandle<Option<Tally>>)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .args(["--process", &number.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(std::io::Error::other("a process without pipes"));
    };
    let ledger = ledger.path();
    send(&mut stdin, &Start { clock, ledger })?;
    let helper = Helper { pid: child.id(), stdin };
    let hear = move || hear(number, child, BufReader::new(stdout), &meter, &notes);
    let thread = std::thread::Builder::new().name(format!("hear-{number}")).spawn(hear)?;
    Ok((helper, thread))
}

fn hear(
    number: usize,
    mut child: Child,
    lines: impl BufRead,
    meter: &Meter,
    notes: &mpsc::Sender<Note>,
) -> Option<Tally> {
    let mut tally = None;
    for line in lines.lines().map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(Line::Show(totals)) => meter.show(totals),
            Ok(Line::Note(note)) => drop(notes.send(note)),
            Ok(Line::Tally(last)) => {
                tally = Some(*last);
                break;
            }
            Err(error) => {
                let _ = notes.send(Note::Died(format!(
                    "process {number} of the generator: {error} in {line:?}"
                )));
                break;
            }
        }
    }
    if tally.is_none() {
        // Its output has no reader from now on.
        let _ = child.kill();
    }
    let status = child
        .wait()
        .map_or_else(|error| error.to_string(), |status| status.to_string());
    if tally.is_none() {
        let why = format!("process {number} of the generator (pid {}) died: {status}", child.id());
        let _ = notes.send(Note::Died(why));
    }
    tally
}

/// The work of the other processes, from their first line to their tally.
///
/// # Errors
/// The first process is gone, or the kernel gives no thread.
pub(crate) fn serve(options: Options) -> Result<(), String> {
    let mut orders = BufReader::new(std::io::stdin()).lines();
    let mut next = move || orders.next().and_then(Result::ok);
    let gone = || "the first process is gone".to_owned();
    let start: Start = serde_json::from_str(&next().ok_or_else(gone)?).map_err(|error| error.to_string())?;
    let (board, options) = (Arc::new(Board::default()), Arc::new(options));
    let (sender, notes) = mpsc::channel();
    let cannot = |error: std::io::Error| format!("cannot start: {error}");
    let ledger = Ledger::open(&options, &start.ledger).map_err(cannot)?;
    let (meters, threads) = workers::start(&options, start.clock, &board, &ledger, &sender).map_err(cannot)?;
    drop(sender);
    let followed = meters.clone();
    std::thread::spawn(move || {
        while let Some(orders) = next().and_then(|line| serde_json::from_str(&line).ok()) {
            board.follow(orders);
            followed.iter().for_each(|meter| meter.wake());
        }
        // No stop command can come any more, and no reader wants the results.
        std::process::exit(2);
    });
    let mut out = std::io::stdout().lock();
    loop {
        let line = match notes.recv_timeout(SHOW_EVERY) {
            Ok(note) => {
                // Counters go before the note, as the reader of the note looks at them.
                send(&mut out, &Line::Show(Totals::of(&meters))).map_err(|_| gone())?;
                Line::Note(note)
            }
            Err(RecvTimeoutError::Timeout) => Line::Show(Totals::of(&meters)),
            Err(RecvTimeoutError::Disconnected) => break,
        };
        send(&mut out, &line).map_err(|_| gone())?;
    }
    let tally = workers::join(threads)?;
    send(&mut out, &Line::Tally(Box::new(tally))).map_err(|_| gone())
}
