//! The progress of a run on a terminal: one line, written over every second. Without a terminal it
//! is silent.

use std::io::{IsTerminal, Write};

use crate::board::{Phase, Totals};
use crate::series::Row;

/// The line on standard error.
#[derive(Debug)]
pub(crate) struct Progress {
    quiet: bool,
    live: bool,
    connections: usize,
}

impl Progress {
    pub(crate) fn new(quiet: bool, connections: usize) -> Self {
        Self {
            quiet,
            live: !quiet && std::io::stderr().is_terminal(),
            connections,
        }
    }

    /// Says something that scripts wait for, on a line of its own.
    pub(crate) fn say(&self, what: &str) {
        if self.live {
            let _ = writeln!(std::io::stderr(), "\r\x1b[K{what}");
        } else if !self.quiet {
            let _ = writeln!(std::io::stderr(), "{what}");
        }
    }

    /// Shows the last second.
    pub(crate) fn show(&self, phase: Phase, row: &Row, totals: &Totals, latency: Option<(f64, f64)>) {
        if self.live {
            // Cut off at the edge, where it could not be written over any more, and not wrapped.
            let line = self.line(phase, row, totals, latency);
            let _ = write!(std::io::stderr(), "\r\x1b[K\x1b[?7l{line}\x1b[?7h");
        }
    }

    pub(crate) fn clear(&self) {
        if self.live {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }

    fn line(&self, phase: Phase, row: &Row, totals: &Totals, latency: Option<(f64, f64)>) -> String {
        let phase = format!("{phase:?}").to_lowercase();
        let mut line = format!("{phase}: {} of {} ready", row.ready, self.connections);
        if phase == "prepare" {
            line += &format!(", {} subscriptions", totals.subscriptions);
        }
        if totals.sent > 0 {
            line += &format!(
                ", {:.0}/s sent, {:.0}/s received",
                row.sent_per_second, row.received_per_second
            );
        }
        if let Some((p50, p99)) = latency {
            line += &format!(", p50 {p50:.0} p99 {p99:.0} us");
        }
        if let Some(percent) = row.server_cpu_percent {
            line += &format!(", server {percent:.0} %");
        }
        for (n, what) in [
            (totals.away, "away"),
            (totals.failed, "failed"),
            (totals.dropped, "dropped"),
            (totals.errors, "errors"),
        ] {
            if n > 0 {
                line += &format!(", {n} {what}");
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::Series;

    #[test]
    fn a_line_has_rates_latency_and_errors() {
        let (mut series, progress) = (Series::new(&[], &[]), Progress::new(false, 10));
        let totals = Totals {
            ready: 10,
            sent: 2000,
            received: 1990,
            errors: 3,
            ..Totals::default()
        };
        series.tick(1_000_000_000, Phase::Measure, &totals);
        let line = progress.line(Phase::Measure, &series.rows[0], &totals, Some((21.4, 80.0)));
        assert_eq!(
            line,
            "measure: 10 of 10 ready, 2000/s sent, 1990/s received, p50 21 p99 80 us, 3 errors"
        );
    }
}
