//! Traces that tools leave in secrets: line breaks, byte order marks, quotes. They go unnoticed, as
//! secrets are not printed.
//!
//! Characters that cannot be a part of any secret are removed. Characters that may be one, and most
//! likely are not, are refused with their cause.

use std::fs;
use std::path::Path;

use super::bounds::MASK;
use super::error::{ConfigError, Source};

/// Most bytes of a file that holds a secret. A file that never ends, or a wrong one, is not read as
/// a whole.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The text of a secret, or of a URL that may hold one: itself, or the contents of the file after
/// an `@`.
pub(super) fn resolve(text: &str, key: &str, from: &Source) -> Result<String, ConfigError> {
    let (path, content) = match text.strip_prefix('@') {
        None => (None, Ok(text.to_owned())),
        Some(path) => (Some(path), read(Path::new(path), from)?),
    };
    let cleaned = content.and_then(|content| clean(&content));
    cleaned.map_err(|trouble| ConfigError::BadSecret {
        key: key.to_owned(),
        from: from.clone(),
        file: path.map_or_else(String::new, |path| format!(", read from {path:?},")),
        trouble,
    })
}

fn read(path: &Path, from: &Source) -> Result<Result<String, &'static str>, ConfigError> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = fs::File::open(path);
    let read = file.and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    read.map_err(|cause| ConfigError::Unreadable {
        path: path.to_owned(),
        from: from.clone(),
        cause,
    })?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Ok(Err("is larger than 1 MiB: name a file that holds nothing else"));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Ok(Err("is UTF-16: save the file as UTF-8"));
    }
    Ok(String::from_utf8(bytes).map_err(|_| "is not valid UTF-8: give text, such as what openssl rand -hex 32 prints"))
}

/// Without what tools put around it.
fn clean(text: &str) -> Result<String, &'static str> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim();
    let in_quotes = |quote: char| text.len() > 1 && text.starts_with(quote) && text.ends_with(quote);
    if text.is_empty() {
        return Err("is empty: leave the key out for the default");
    }
    if text == MASK {
        return Err("is the *** that stands for a secret where one is printed: put the secret itself there, or @FILE");
    }
    if text.contains('\0') {
        return Err("has zero bytes in it, as UTF-16 has: save it as UTF-8");
    }
    // Around PEM nothing matters.
    if !text.contains("-----BEGIN ") {
        if in_quotes('"') || in_quotes('\'') {
            return Err(
                "stands in quotes, which would be a part of it: leave them out (docker's --env-file takes none off)",
            );
        }
        if text.ends_with("\\n") || text.ends_with("\\r") {
            return Err("ends with a backslash and a letter where a line break was meant: leave the two out");
        }
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inline(text: &str) -> Result<String, String> {
        resolve(text, "admin.token", &Source::Variable("SHARDGATE_ADMIN_TOKEN".into()))
            .map_err(|error| error.to_string())
    }

    fn from_file(bytes: &[u8]) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, bytes).unwrap();
        inline(&format!("@{}", file.path().display()))
    }

    #[test]
    fn what_surrounds_a_secret_is_no_part_of_it() {
        for around in [
            "s3cret",
            "s3cret\n",
            "s3cret\r\n\n",
            " s3cret\t",
            "\u{feff}s3cret\n",
            "\n s3cret",
        ] {
            assert_eq!(inline(around).as_deref(), Ok("s3cret"), "{around:?}");
            assert_eq!(from_file(around.as_bytes()).as_deref(), Ok("s3cret"), "{around:?}");
        }
        assert_eq!(inline("two words").as_deref(), Ok("two words"));
        assert_eq!(inline("it's \"odd\"").as_deref(), Ok("it's \"odd\""));
    }

    #[test]
    fn what_is_most_likely_no_part_of_it_is_refused_by_its_cause() {
        for (bytes, cause) in [
            (&b"\"s3cret\""[..], "quotes"),
            (b"'s3cret'\n", "quotes"),
            (b"s3cret\\n", "backslash"),
            (b"s3cret\\r\n", "backslash"),
            (b"s\x003\x00c\x00", "zero bytes"),
            (b"\xff\xfes\x003\x00c\x00", "UTF-16"),
            (b"s3cret\xff", "not valid UTF-8"),
            (b" \n", "is empty"),
            (b"***\n", "stands for a secret"),
            (&[b'x'; 2 << 20], "1 MiB"),
        ] {
            let said = from_file(bytes).unwrap_err();
            assert!(said.contains(cause) && said.contains("admin.token"), "{said}");
            assert!(said.contains("read from \"") && !said.contains("s3cret"), "{said}");
        }
    }

    #[test]
    fn of_a_variable_the_same_is_said() {
        for text in ["\"s3cret\"", "s3cret\\n", " \n", "***"] {
            let said = inline(text).unwrap_err();
            assert!(
                said.starts_with("admin.token (variable SHARDGATE_ADMIN_TOKEN) "),
                "{said}"
            );
            assert!(!said.contains("s3cret"), "{said}");
        }
    }
}
