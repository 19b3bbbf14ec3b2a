//! Text for people, made from the table of keys: `--help`, `--check-config` and the table of
//! `docs/configuration.md`.

use std::fmt::Write as _;

use super::error::Source;
use super::keys::{Fallback, KEYS, Key, OTHER_FLAGS};
use super::sources::KeyValues;
use super::value::Kind;

/// Columns of `--help`.
const WIDTH: usize = 100;
/// Column where descriptions begin.
const INDENT: usize = 42;

const EXAMPLES: &str = "\
Examples:
  shardgate
      Everything embedded, on 127.0.0.1:8080, in development mode
  shardgate --config shardgate.toml --limits-message-bytes 16384
      A file, and one key that overrides it
  SHARDGATE_LISTEN=0.0.0.0:80 shardgate --insecure --origins 'https://*.example.com,https://a.test'
      Reachable from elsewhere, pages of two sites only
  SHARDGATE_AUTH_KEY=@/etc/shardgate/key.pem shardgate --listen 0.0.0.0:80 --auth-algorithm ES256
      Users show tokens; shardgate token --help makes some for trying things out
  shardgate --shards 2 --cpus 0-1 --engine ring --check-config
      Print what would hold, and start nothing
";

/// `--version`
pub(super) fn version() -> String {
    format!("shardgate {}\n", env!("CARGO_PKG_VERSION"))
}

/// `--help`
pub(super) fn help() -> String {
    let mut text = format!(
        "shardgate {}: {}\n\n\
         Usage: shardgate [--FLAG VALUE | --FLAG=VALUE]...\n\n\
         Every key has one name in three spellings; the strongest comes first:\n  \
         flag      --limits-message-bytes 65536\n  \
         variable  SHARDGATE_LIMITS_MESSAGE_BYTES=65536\n  \
         TOML      [limits] message_bytes = 65536\n\
         Times have a unit: 500ms, 25s, 2m, 1h. Lists are arrays in TOML and comma-separated elsewhere.\n\
         Defaults stand in brackets. SIGHUP applies changes of the keys that are marked with +.\n",
        env!("CARGO_PKG_VERSION"),
        env!("CARGO_PKG_DESCRIPTION"),
    );
    text.push_str("\nProgram:\n");
    for (usage, help) in OTHER_FLAGS {
        push_entry(&mut text, ' ', usage, help);
    }
    for group in KEYS.chunk_by(|a, b| a.group == b.group) {
        let _ = write!(text, "\n{}:\n", group[0].group);
        for key in group {
            let usage = format!("{} {}", key.flag(), key.kind.metavar());
            let mark = if key.reloadable { '+' } else { ' ' };
            push_entry(&mut text, mark, usage.trim_end(), &describe(key));
        }
    }
    text.push('\n');
    text.push_str(EXAMPLES);
    text
}

/// One flag and its description, wrapped into the right column.
fn push_entry(text: &mut String, mark: char, usage: &str, help: &str) {
    let mut left = format!("{mark} {usage}");
    for line in wrap(help, WIDTH - INDENT) {
        let _ = writeln!(text, "{left:<INDENT$}{line}");
        left.clear();
    }
}

/// Lines of at most `width` characters, broken at spaces.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is one from the start");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// The description for `--help`: effect, allowed words and default of the key.
fn describe(key: &Key) -> String {
    let words = match key.kind {
        Kind::Choice(words) => format!(": {}", words.join(", ")),
        _ => String::new(),
    };
    format!("{}{words} [{}]", key.help, default_of(key))
}

fn default_of(key: &Key) -> String {
    match key.default {
        Fallback::Value(value) => value.to_owned(),
        Fallback::Unset(words) => words.to_owned(),
    }
}

/// `--check-config`: TOML with the value of every key that has one, and its source if it is not the
/// default.
///
/// `derived` are values, in TOML, of unset keys that follow from the host. Secrets are masked. The
/// mask is refused where it is read, so that a gateway is not started without the secret by
/// mistake.
pub(super) fn effective(settings: &KeyValues, derived: &[(&'static str, String)]) -> String {
    let mut text = String::from("# Effective configuration of shardgate; keys without a comment have their default.\n");
    let mut tables: Vec<&str> = settings.iter().map(|(key, _)| key.table_and_leaf().0).collect();
    // Keys without a table come first: in TOML all keys behind a header belong to it.
    tables.sort_by_key(|table| !table.is_empty());
    let mut seen = Vec::new();
    for table in tables {
        if seen.contains(&table) {
            continue;
        }
        seen.push(table);
        if !table.is_empty() {
            let _ = writeln!(text, "\n[{table}]");
        }
        for (key, setting) in settings.iter().filter(|(key, _)| key.table_and_leaf().0 == table) {
            let name = key.table_and_leaf().1;
            let value = key.kind.write_toml(&setting.value);
            let follows = derived.iter().find(|(derived, _)| *derived == key.name);
            let _ = match (&setting.from, follows) {
                _ if value.is_empty() && follows.is_some() => {
                    let value = follows.map_or("", |(_, value)| value);
                    writeln!(text, "{name} = {value} # not set: {}", default_of(key))
                }
                // An empty list is the same as no key.
                _ if value.is_empty() && key.kind.may_be_empty() => writeln!(text, "{name} = [] # {}", default_of(key)),
                // TOML has no word for nothing.
                _ if value.is_empty() => writeln!(text, "# {name}: {}", default_of(key)),
                (Source::Default, _) => writeln!(text, "{name} = {value}"),
                (from, _) => writeln!(text, "{name} = {value} # {from}"),
            };
        }
    }
    text
}

/// The table of all keys in `docs/configuration.md`.
#[cfg(test)]
pub(super) fn markdown() -> String {
    let escape = |text: &str| text.replace('|', "\\|").replace('<', "&lt;").replace('*', "\\*");
    let mut text = String::new();
    for group in KEYS.chunk_by(|a, b| a.group == b.group) {
        let _ = write!(
            text,
            "### {}\n\n| key | default | allowed | meaning | SIGHUP |\n",
            group[0].group
        );
        text.push_str("| --- | --- | --- | --- | --- |\n");
        for key in group {
            let default = match key.default {
                Fallback::Value(value) => format!("`{value}`"),
                Fallback::Unset(words) => escape(words),
            };
            let (allowed, help) = (escape(&key.kind.allowed()), escape(key.help));
            let sighup = if key.reloadable { "applied" } else { "restart" };
            let _ = writeln!(text, "| `{}` | {default} | {allowed} | {help} | {sighup} |", key.name);
        }
        text.push('\n');
    }
    text
}
