//! From arguments, variables and the TOML file to one [`Setting`] per key: flag over variable over
//! file over default.
//!
//! Owns precedence and the refusal of everything unknown. A value is checked by its kind even where
//! a stronger source overrides it. Reads the file, and files that an `@` names; nothing else of the
//! world.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::bounds::MASK;
use super::error::{ConfigError, Source};
use super::keys::{self, CONFIG_VARIABLE, Fallback, KEYS, Key, OTHER_FLAGS, VARIABLE_PREFIX};
use super::secrets;
use super::value::{Kind, Value, show};

/// Prefixes of the variables that Kubernetes injects for a Service named shardgate; a key may not
/// begin like this.
const KUBERNETES: [&str; 2] = ["SHARDGATE_PORT", "SHARDGATE_SERVICE_"];

/// The value of one key and its source.
#[derive(Clone)]
pub(super) struct Setting {
    pub(super) value: Value,
    pub(super) from: Source,
}

/// The request of the command line.
pub(super) enum CommandLine {
    Help,
    Version,
    Run(Invocation),
}

/// The command line, split but not yet checked by kind.
#[derive(Default)]
pub(super) struct Invocation {
    /// Print the effective configuration instead of running.
    pub(super) check: bool,
    file: Option<String>,
    /// Row and text of each flag, in the order given.
    flags: Vec<(usize, String)>,
}

/// One setting per row of [`KEYS`].
pub(super) struct KeyValues(Vec<Setting>);

impl KeyValues {
    /// The defaults of all keys.
    pub(super) fn defaults() -> KeyValues {
        let default = |key: &Key| match key.default {
            Fallback::Value(text) => key.kind.parse_text(text).expect("a test parses every default"),
            Fallback::Unset(_) => Value::Unset,
        };
        KeyValues(
            KEYS.iter()
                .map(|key| Setting {
                    value: default(key),
                    from: Source::Default,
                })
                .collect(),
        )
    }

    /// The setting of a key that is in the table; asking for another is a bug of ours.
    pub(super) fn setting(&self, name: &str) -> &Setting {
        &self.0[keys::find(name).unwrap_or_else(|| panic!("{name} is not in the table of keys"))]
    }

    /// Keys with their settings, in the order of the table.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static Key, &Setting)> {
        KEYS.iter().zip(&self.0)
    }

    /// All given values, the strongest source last.
    pub(super) fn gather(invocation: &Invocation, env: Vec<(OsString, OsString)>) -> Result<KeyValues, ConfigError> {
        let (config, variables) = variables(env)?;
        let file = match (&invocation.file, &config) {
            (Some(file), _) => Some((file, Source::Flag("--config".to_owned()))),
            (None, Some(file)) => Some((file, Source::Variable(CONFIG_VARIABLE.to_owned()))),
            (None, None) => None,
        };
        let mut settings = KeyValues::defaults();
        if let Some((path, from)) = file {
            let path = PathBuf::from(path);
            let text = fs::read_to_string(&path).map_err(|cause| ConfigError::Unreadable {
                path: path.clone(),
                from,
                cause,
            })?;
            // Some editors put a byte order mark before it.
            settings.set_from_toml(&path, text.strip_prefix('\u{feff}').unwrap_or(&text))?;
        }
        for (row, variable, text) in variables {
            settings.set_from_text(row, Source::Variable(variable), &text)?;
        }
        for (row, text) in &invocation.flags {
            settings.set_from_text(*row, Source::Flag(KEYS[*row].flag()), text)?;
        }
        Ok(settings)
    }

    fn set_from_text(&mut self, row: usize, from: Source, text: &str) -> Result<(), ConfigError> {
        let key = &KEYS[row];
        if text.is_empty() {
            return Err(ConfigError::MissingValue {
                from,
                allowed: key.kind.allowed(),
            });
        }
        let value = if matches!(key.kind, Kind::Secrets) {
            let texts = text.split(',').map(|text| text.trim().to_owned()).collect();
            read_secrets(key, texts, &from)?
        } else if key.kind.may_be_secret() {
            read_secret(key, text, &from)?
        } else {
            key.kind.parse_text(text).map_err(|allowed| ConfigError::BadValue {
                key: key.name.to_owned(),
                from: from.clone(),
                value: key.kind.show(text),
                allowed,
            })?
        };
        self.0[row] = Setting { value, from };
        Ok(())
    }

    /// Sets the values of a TOML document.
    pub(super) fn set_from_toml(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
        let document = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            line: line(error.span().map_or(text.len(), |span| span.start)),
            message: error.message().to_owned(),
        })?;
        let mut leaves = Vec::new();
        flatten("", document.get_ref(), &mut leaves);
        // In the order of the file, so that the first mistake is the one that is reported.
        leaves.sort_by_key(|leaf| leaf.at);
        let mut seen = BTreeMap::new();
        for leaf in leaves {
            let from = Source::File {
                path: path.to_owned(),
                line: line(leaf.at),
            };
            let written = &text[leaf.span.clone()];
            let Some(row) = keys::find(&leaf.name) else {
                return Err(unknown_toml_key(&leaf, &from, written));
            };
            let key = &KEYS[row];
            if let Some(first) = seen.insert(row, from.clone()) {
                return Err(ConfigError::GivenTwice {
                    name: key.name.to_owned(),
                    first,
                    second: from,
                });
            }
            let secret = leaf
                .value
                .as_str()
                .filter(|text| key.kind.may_be_secret() && !text.is_empty());
            let value = match secret {
                Some(text) => read_secret(key, text, &from)?,
                None => key
                    .kind
                    .parse_toml(leaf.value)
                    .map_err(|allowed| ConfigError::BadValue {
                        key: key.name.to_owned(),
                        from: from.clone(),
                        value: leaf
                            .value
                            .as_str()
                            .map_or_else(|| show_toml(&key.kind, written), |text| key.kind.show(text)),
                        allowed,
                    })?,
            };
            let value = match value {
                Value::List(texts) if matches!(key.kind, Kind::Secrets) => read_secrets(key, texts, &from)?,
                value => value,
            };
            // An empty list is the explicit default.
            let from = if value == Value::Unset { Source::Default } else { from };
            self.0[row] = Setting { value, from };
        }
        Ok(())
    }
}

/// Splits the command line. `--help` and `--version` win over everything else.
pub(super) fn read_args(args: Vec<OsString>) -> Result<CommandLine, ConfigError> {
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        return Ok(CommandLine::Help);
    }
    if args.iter().any(|arg| arg == "--version" || arg == "-V") {
        return Ok(CommandLine::Version);
    }
    let mut invocation = Invocation::default();
    let mut args = utf8(args)?.into_iter().peekable();
    let mut after_secret = false;
    while let Some(arg) = args.next() {
        if !looks_like_a_flag(&arg) {
            // A part of a secret that was not quoted for the shell must not end up in a log.
            let hidden = after_secret || arg.starts_with('-') && arg.len() > 1;
            let argument = if hidden { MASK.to_owned() } else { show(&arg) };
            return Err(ConfigError::UnexpectedArgument { argument });
        }
        let (flag, inline) = match arg.split_once('=') {
            Some((flag, text)) => (flag, Some(text.to_owned())),
            None => (arg.as_str(), None),
        };
        let from = || Source::Flag(flag.to_owned());
        match flag {
            "--check-config" if inline.is_some() => {
                return Err(ConfigError::NeedlessValue { flag: flag.to_owned() });
            }
            "--check-config" => invocation.check = true,
            "--config" => {
                let file = inline
                    .or_else(|| args.next_if(|next| !next.starts_with("--")))
                    .unwrap_or_default();
                if file.is_empty() {
                    return Err(ConfigError::MissingValue {
                        from: from(),
                        allowed: Kind::File.allowed(),
                    });
                }
                if invocation.file.replace(file).is_some() {
                    return Err(ConfigError::GivenTwice {
                        name: "--config".into(),
                        first: from(),
                        second: from(),
                    });
                }
            }
            _ => {
                let row = KEYS.iter().position(|key| key.flag() == flag);
                let row = row.ok_or_else(|| match unknown_flag(flag, inline.as_deref()) {
                    ConfigError::UnknownKey { nearest: None, .. } if after_secret => ConfigError::UnexpectedArgument {
                        argument: MASK.to_owned(),
                    },
                    error => error,
                })?;
                let key = &KEYS[row];
                let is_value = |next: &String| match key.kind {
                    Kind::Bool => key.kind.parse_text(next).is_ok(),
                    // A key in PEM begins with hyphens, and so may a secret. Only an existing flag
                    // cannot be one.
                    Kind::Secrets => !is_known_flag(next),
                    kind if kind.may_be_secret() => !is_known_flag(next),
                    _ => !next.starts_with("--"),
                };
                let bare = if matches!(key.kind, Kind::Bool) { "true" } else { "" };
                let text = inline
                    .or_else(|| args.next_if(is_value))
                    .unwrap_or_else(|| bare.to_owned());
                if invocation.flags.iter().any(|(other, _)| *other == row) {
                    return Err(ConfigError::GivenTwice {
                        name: key.name.into(),
                        first: from(),
                        second: from(),
                    });
                }
                after_secret = key.kind.may_be_secret() || matches!(key.kind, Kind::Secrets);
                invocation.flags.push((row, text));
            }
        }
    }
    Ok(CommandLine::Run(invocation))
}

/// True for `-x` and `--name`, with or without `=value`. Any other argument that begins with a
/// hyphen is part of a value, such as of a key in PEM.
fn looks_like_a_flag(arg: &str) -> bool {
    let name = arg.split_once('=').map_or(arg, |(name, _)| name);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    arg.starts_with('-') && arg.len() > 1 && !name.starts_with("---") && name.len() <= 64 && name.chars().all(is_plain)
}

fn is_known_flag(arg: &str) -> bool {
    let name = arg.split_once('=').map_or(arg, |(name, _)| name);
    let others = OTHER_FLAGS.iter().flat_map(|(usage, _)| usage.split([' ', ',']));
    KEYS.iter().any(|key| key.flag() == name) || others.filter(|word| word.starts_with('-')).any(|flag| flag == name)
}

fn utf8(args: Vec<OsString>) -> Result<Vec<String>, ConfigError> {
    let text = |(at, arg): (usize, OsString)| {
        arg.into_string().map_err(|arg| {
            let arg = arg.to_string_lossy();
            // The name of a flag may be shown, its value may be a secret.
            let name = match arg.split_once('=') {
                Some((flag, _)) if flag.starts_with("--") => format!("the value of flag {}", flag.escape_debug()),
                _ => format!("argument {}", at + 1),
            };
            ConfigError::NotUtf8 { name }
        })
    };
    args.into_iter().enumerate().map(text).collect()
}

/// Row, name and text of our variables, and the file that `SHARDGATE_CONFIG` names.
type Variables = (Option<String>, Vec<(usize, String, String)>);

fn variables(env: Vec<(OsString, OsString)>) -> Result<Variables, ConfigError> {
    // Sorted, so that the same environment always gets the same error.
    let ours: BTreeMap<String, OsString> = env
        .into_iter()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
        .filter(|(name, _)| name.starts_with(VARIABLE_PREFIX))
        .filter(|(name, _)| !KUBERNETES.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    let mut config = None;
    let mut known = Vec::new();
    for (name, value) in ours {
        let value = value.into_string().map_err(|_| ConfigError::NotUtf8 {
            name: format!("variable {name}"),
        })?;
        if name == CONFIG_VARIABLE {
            if value.is_empty() {
                let allowed = Kind::File.allowed();
                return Err(ConfigError::MissingValue {
                    from: Source::Variable(name),
                    allowed,
                });
            }
            config = Some(value);
        } else if let Some(row) = KEYS.iter().position(|key| key.variable() == name) {
            known.push((row, name, value));
        } else {
            let names = KEYS.iter().map(Key::variable).chain([CONFIG_VARIABLE.to_owned()]);
            let nearest = keys::nearest(&name, names);
            let value = Some(show_unknown(&name, nearest.as_deref(), &value));
            return Err(ConfigError::UnknownKey {
                name: format!("variable {}", name.escape_debug()),
                value,
                nearest,
            });
        }
    }
    Ok((config, known))
}

fn unknown_flag(flag: &str, value: Option<&str>) -> ConfigError {
    let others = OTHER_FLAGS
        .iter()
        .filter_map(|(usage, _)| usage.split([' ', ',']).next())
        .map(str::to_owned);
    let nearest = keys::nearest(flag, KEYS.iter().map(Key::flag).chain(others));
    let value = value.map(|value| show_unknown(flag, nearest.as_deref(), value));
    ConfigError::UnknownKey {
        name: format!("flag {}", flag.escape_debug()),
        value,
        nearest,
    }
}

fn unknown_toml_key(leaf: &Leaf<'_>, from: &Source, written: &str) -> ConfigError {
    let tables = KEYS
        .iter()
        .map(|key| key.table_and_leaf().0)
        .filter(|table| !table.is_empty());
    let is_table = matches!(leaf.value, DeValue::Table(_));
    if !is_table && tables.clone().any(|table| table == leaf.name) {
        let allowed = format!("a table, [{}]", leaf.name);
        let value = MASK.to_owned();
        return ConfigError::BadValue {
            key: leaf.name.clone(),
            from: from.clone(),
            value,
            allowed,
        };
    }
    let nearest = if is_table {
        keys::nearest(&leaf.name, tables.map(str::to_owned))
    } else {
        keys::nearest(&leaf.name, KEYS.iter().map(|key| key.name.to_owned()))
    };
    let text = leaf.value.as_str().unwrap_or(written);
    let value = (!is_table).then(|| show_unknown(&leaf.name, nearest.as_deref(), text));
    let what = if is_table { "table" } else { "key" };
    ConfigError::UnknownKey {
        name: format!("{what} {} ({from})", leaf.name.escape_debug()),
        value,
        nearest,
    }
}

/// The value of a misspelt key, which may be a secret all the same.
fn show_unknown(name: &str, nearest: Option<&str>, value: &str) -> String {
    let secret = |name: &str, words: &[&str]| words.iter().any(|word| name.to_ascii_lowercase().contains(word));
    let of_a_secret = |nearest: &str| {
        let mut keys = KEYS
            .iter()
            .filter(|key| matches!(key.kind, Kind::Secret | Kind::Secrets));
        keys.any(|key| key.name == nearest || key.flag() == nearest || key.variable() == nearest)
    };
    let masked = match nearest {
        _ if secret(name, &["token", "key", "secret", "pass", "cred"]) => true,
        Some(nearest) => of_a_secret(nearest),
        None => secret(name, &["auth", "admin", "cluster"]),
    };
    if masked { MASK.to_owned() } else { show(value) }
}

/// A TOML value that is not a string, as written in the file.
fn show_toml(kind: &Kind, written: &str) -> String {
    if matches!(kind, Kind::Secret | Kind::Secrets) || written.contains("://") {
        MASK.to_owned()
    } else {
        show(written)
    }
}

/// A value of a TOML document under its dotted name.
struct Leaf<'a> {
    name: String,
    value: &'a DeValue<'a>,
    /// Bytes of the document where the name and the value stand.
    at: usize,
    span: std::ops::Range<usize>,
}

/// Collects all values; a table is one only if no key lives in it.
fn flatten<'a>(prefix: &str, table: &'a DeTable<'a>, leaves: &mut Vec<Leaf<'a>>) {
    for (key, value) in table {
        let name = if prefix.is_empty() {
            key.get_ref().to_string()
        } else {
            format!("{prefix}.{}", key.get_ref())
        };
        let holds_keys = KEYS.iter().any(|key| key.table_and_leaf().0 == name);
        match value.get_ref() {
            DeValue::Table(table) if holds_keys => flatten(&name, table, leaves),
            value_ref => leaves.push(Leaf {
                name,
                value: value_ref,
                at: key.span().start,
                span: value.span(),
            }),
        }
    }
}

/// A value that may be read from a file, and that no message shows.
fn read_secrets(key: &Key, texts: Vec<String>, from: &Source) -> Result<Value, ConfigError> {
    let read = texts.iter().map(|text| secrets::resolve(text, key.name, from));
    let items = read.collect::<Result<Vec<String>, _>>()?;
    key.kind.parse_list(items).map_err(|allowed| ConfigError::BadValue {
        key: key.name.to_owned(),
        from: from.clone(),
        value: MASK.to_owned(),
        allowed,
    })
}

/// One secret, or a URL with one in it.
fn read_secret(key: &Key, text: &str, from: &Source) -> Result<Value, ConfigError> {
    let resolved = secrets::resolve(text, key.name, from)?;
    key.kind.parse_text(&resolved).map_err(|allowed| ConfigError::BadValue {
        key: key.name.to_owned(),
        from: from.clone(),
        // The contents of a file are always secret: it was written to hide them.
        value: if text.starts_with('@') {
            format!("{MASK} from {text:?}")
        } else {
            key.kind.show(text)
        },
        allowed,
    })
}
