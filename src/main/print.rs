//! The program's output on its two streams, besides the log. Neither a pipe without a reader nor a
//! full disk is a reason to panic.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

/// Prints the output. Exit 0 if it was written, else 1. That is quiet if the reader has gone, which
/// is its own choice, and with a line for any other reason.
pub(crate) fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Err(error) => {
            complain("shardgate", &format_args!("cannot write to standard output: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// One line on standard error. If that is closed, the line is lost.
pub(crate) fn complain(program: &str, cause: &dyn Display) {
    let _ = writeln!(io::stderr(), "{program}: {cause}");
}
