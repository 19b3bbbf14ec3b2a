//! All that the program says on its two streams, besides the log. Neither a pipe that nobody reads nor a full disk is a
//! reason to panic.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

/// Prints what was asked for. Exit 0 if it got out, else 1: quietly where the reader has gone, which is its own choice, and
/// with a line for any other reason.
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

/// One line on standard error. Where that is closed nobody can be told.
pub(crate) fn complain(program: &str, cause: &dyn Display) {
    let _ = writeln!(io::stderr(), "{program}: {cause}");
}
