//! The log: how its lines look, and the one thread that writes them.
//!
//! No thread waits for the reader of the log: a line is queued for the writer, or dropped and
//! counted. A terminal that stands still, a pipe without a reader and a full disk cost lines and
//! nothing else.
//!
//! The log is the process's and not a gateway's, as the `log` crate's logger is: two gateways in
//! one process share it.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use env_logger::Target;
use env_logger::fmt::Formatter;
use log::kv::{Key, Value, VisitSource};
use log::{LevelFilter, Record};

use crate::config::LogFormat;

/// Bytes that may wait to be written: some thousand lines, more than a second of the busiest log
/// that there is.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// Waiting lines are written together, up to this many bytes at once.
const WRITE_BYTES_MAX: usize = 64 * 1024;
/// How long the writer pauses when it cannot write now, as another process made stderr
/// non-blocking.
const PAUSE: Duration = Duration::from_millis(10);
/// Dropped lines are reported at most this often.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How long the last lines before a panic ends its thread may take.
const PANIC_FLUSH: Duration = Duration::from_secs(1);

static LOG: OnceLock<(LogFormat, Queue)> = OnceLock::new();

enum Job {
    /// A whole line, its end included.
    Line(Box<[u8]>),
    /// Replies when everything before it is written, or given up.
    Flush(Sender<()>),
}

/// The queue from all threads to the writer. Its bound is in bytes, as lines may be long.
#[derive(Clone)]
struct Queue {
    jobs: Sender<Job>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Handed over and not written.
    waiting_bytes: AtomicUsize,
    /// Lines, since the start.
    dropped: AtomicU64,
}

impl Queue {
    fn hand_off(&self, line: &[u8]) {
        let more = |waiting: usize| Some(waiting + line.len()).filter(|bytes| *bytes <= WAITING_BYTES_MAX);
        let has_room = self.counts.waiting_bytes.fetch_update(Relaxed, Relaxed, more).is_ok();
        if !has_room || self.jobs.send(Job::Line(line.into())).is_err() {
            self.counts.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// Lines of the log that were dropped, because too many waited or they could not be written.
pub fn lines_dropped() -> u64 {
    LOG.get().map_or(0, |(_, queue)| queue.counts.dropped.load(Relaxed))
}

/// Begins to write the log to stderr, by the level that `log` has at each moment. Lines of other
/// crates appear from `warn` on only: below, they may print secrets, such as a URL with the key in
/// it. rustls logs nothing.
///
/// # Errors
/// Stderr is closed, or no thread can be started.
pub fn start(format: LogFormat) -> io::Result<()> {
    // A descriptor of its own: the lock of std's stderr would be held for as long as a write takes.
    let out = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let (sender, jobs) = unbounded();
    let counts = Arc::<Counts>::default();
    let writer = Writer::new(out, Arc::clone(&counts));
    let queue = Queue { jobs: sender, counts };
    if LOG.set((format, queue.clone())).is_err() {
        return Ok(());
    }
    std::thread::Builder::new()
        .name("log".into())
        .spawn(move || writer.live(&jobs))?;
    env_logger::Builder::new()
        .filter_level(LevelFilter::Warn)
        .filter_module("shardgate", LevelFilter::Trace)
        // It warns of each unexpected record, so unauthenticated peers would fill our log. The
        // gateway counts those itself.
        .filter_module("rustls", LevelFilter::Off)
        .target(Target::Pipe(Box::new(Lines(queue))))
        .format(move |out, record| match format {
            LogFormat::Text => write_text(out, record),
            LogFormat::Json => write_json(out, record),
        })
        .init();
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        let backtrace = Backtrace::capture();
        match backtrace.status() {
            BacktraceStatus::Captured => log::error!("thread {name} {panic}\n{backtrace}"),
            _ => log::error!("thread {name} {panic}"),
        }
        flush(PANIC_FLUSH);
    }));
    Ok(())
}

/// Logs why the program ends, at any level. Follows [`start`].
pub fn say_last(cause: &str) {
    match LOG.get() {
        Some((LogFormat::Json, _)) => {
            log::set_max_level(log::max_level().max(LevelFilter::Error));
            log::error!(target: "shardgate", "{cause}");
        }
        Some((LogFormat::Text, queue)) => queue.hand_off(format!("shardgate: {cause}\n").as_bytes()),
        None => debug_assert!(false, "last words before the first"),
    }
}

/// Waits until all lines so far are written, but no longer than this. For the end of the program.
pub fn flush(within: Duration) {
    let (done, written) = bounded(1);
    if let Some((_, queue)) = LOG.get()
        && queue.jobs.send(Job::Flush(done)).is_ok()
    {
        let _ = written.recv_timeout(within);
    }
}

/// Where the logger puts its lines: each `write` is one, as it gives whole ones.
struct Lines(Queue);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.hand_off(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread that may wait.
struct Writer<W> {
    out: W,
    counts: Arc<Counts>,
    buffer: Vec<u8>,
    /// Lines in it.
    lines: u64,
    /// The number of dropped lines that was last reported, and when.
    told: u64,
    told_at: Option<Instant>,
}

impl<W: Write> Writer<W> {
    fn new(out: W, counts: Arc<Counts>) -> Self {
        Writer {
            out,
            counts,
            buffer: Vec::new(),
            lines: 0,
            told: 0,
            told_at: None,
        }
    }

    fn live(mut self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let mut next = Some(first);
            let mut flushed = None;
            while let Some(job) = next.take() {
                match job {
                    Job::Line(line) => {
                        self.buffer.extend_from_slice(&line);
                        self.lines += 1;
                    }
                    Job::Flush(done) => flushed = Some(done),
                }
                if flushed.is_none() && self.buffer.len() < WRITE_BYTES_MAX {
                    next = jobs.try_recv().ok();
                }
            }
            self.write_out();
            if let Some(done) = flushed {
                let _ = done.send(());
            }
        }
    }

    fn write_out(&mut self) {
        if self.lines == 0 {
            return;
        }
        match write_patiently(&mut self.out, &self.buffer) {
            Ok(()) => self.tell_dropped(),
            Err(_) => drop(self.counts.dropped.fetch_add(self.lines, Relaxed)),
        }
        self.counts.waiting_bytes.fetch_sub(self.buffer.len(), Relaxed);
        self.buffer.clear();
        self.lines = 0;
    }

    /// The log is read again: the reader shall know that lines are missing.
    fn tell_dropped(&mut self) {
        let dropped = self.counts.dropped.load(Relaxed);
        let is_due = self.told_at.is_none_or(|at| at.elapsed() >= TELL_EVERY);
        if dropped > self.told && is_due {
            let lines = dropped - std::mem::replace(&mut self.told, dropped);
            self.told_at = Some(Instant::now());
            log::warn!("{lines} lines of the log were dropped, as they could not be written in time");
        }
    }
}

/// Writes all of it, for as long as it takes.
fn write_patiently(out: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// `[2026-11-29T12:00:00.000Z DEBUG shardgate::shard] connected user="alice"
/// address=192.0.2.1:50000`
fn write_text(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    struct Fields<'a>(&'a mut Formatter);

    impl<'kvs> VisitSource<'kvs> for Fields<'_> {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
            // Users choose their names: quoted, they begin no line of their own.
            let written = match value.to_borrowed_str() {
                Some(text) => write!(self.0, " {key}={text:?}"),
                None => write!(self.0, " {key}={value}"),
            };
            written.map_err(|_| log::kv::Error::msg("not written"))
        }
    }

    let time = out.timestamp_millis();
    write!(
        out,
        "[{time} {:<5} {}] {}",
        record.level(),
        record.target(),
        record.args()
    )?;
    record
        .key_values()
        .visit(&mut Fields(out))
        .map_err(|_| ErrorKind::Other)?;
    writeln!(out)
}

/// One object a line: `time`, `level`, `target`, `message`, and the fields.
fn write_json(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    struct Fields<'a>(&'a mut Formatter);

    impl<'kvs> VisitSource<'kvs> for Fields<'_> {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
            let key = json(key.as_str());
            let written = match value.to_u64() {
                Some(number) => write!(self.0, ",{key}:{number}"),
                None => write!(self.0, ",{key}:{}", json(&value.to_string())),
            };
            written.map_err(|_| log::kv::Error::msg("not written"))
        }
    }

    let time = out.timestamp_millis();
    let level = record.level().as_str().to_ascii_lowercase();
    let (target, message) = (json(record.target()), json(&record.args().to_string()));
    write!(
        out,
        "{{\"time\":\"{time}\",\"level\":\"{level}\",\"target\":{target},\"message\":{message}"
    )?;
    record
        .key_values()
        .visit(&mut Fields(out))
        .map_err(|_| ErrorKind::Other)?;
    writeln!(out, "}}")
}

fn json(text: &str) -> serde_json::Value {
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a few bytes at a time, and now and then nothing; or nothing at all.
    struct Stubborn {
        taken: Vec<u8>,
        calls: usize,
        is_full: bool,
    }

    impl Write for Stubborn {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            match self.calls % 3 {
                _ if self.is_full => Err(ErrorKind::StorageFull.into()),
                0 => Err(ErrorKind::WouldBlock.into()),
                1 => Err(ErrorKind::Interrupted.into()),
                _ => {
                    let len = bytes.len().min(5);
                    self.taken.extend_from_slice(&bytes[..len]);
                    Ok(len)
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn stubborn(is_full: bool) -> Stubborn {
        Stubborn {
            taken: Vec::new(),
            calls: 0,
            is_full,
        }
    }

    fn queue() -> (Queue, Receiver<Job>, Arc<Counts>) {
        let (jobs, receiver) = unbounded();
        let counts = Arc::<Counts>::default();
        let queue = Queue {
            jobs,
            counts: Arc::clone(&counts),
        };
        (queue, receiver, counts)
    }

    #[test]
    fn a_line_is_written_whole_however_the_file_takes_it() {
        let mut out = stubborn(false);
        write_patiently(&mut out, b"a line of the log\n").unwrap();
        assert_eq!(out.taken, b"a line of the log\n");
    }

    #[test]
    fn what_nobody_takes_is_dropped_and_counted() {
        let (queue, jobs, counts) = queue();
        let line = [b'x'; 1000];
        for _ in 0..2_000 {
            queue.hand_off(&line);
        }
        let taken = jobs.len() as u64;
        assert_eq!(taken, WAITING_BYTES_MAX as u64 / 1000);
        assert_eq!(counts.dropped.load(Relaxed), 2_000 - taken);
        // A full disk takes none of them, and nothing waits any more.
        drop(queue);
        Writer::new(stubborn(true), Arc::clone(&counts)).live(&jobs);
        assert_eq!(counts.dropped.load(Relaxed), 2_000);
        assert_eq!(counts.waiting_bytes.load(Relaxed), 0);
    }
}
