//! Kinds of values: text or a TOML value in, and a checked [`Value`] or the allowed values out.
//!
//! Pure. Owns how a value is written in all spellings, and which parts of it must not be shown.

use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::bounds::{CPU_MAX, MASK, SHARDS_MAX};
use super::listen::Listen;
use super::origins::OriginPolicy;
use super::patterns::Patterns;
use super::redis_url::{self, RedisTarget};
use super::types::Placement;
use crate::address::networks::Networks;

/// The values that a key takes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number; `unit` is for people.
    Integer { min: u64, max: u64, unit: &'static str },
    /// A number with a unit of time.
    Duration { min: Duration, max: Duration },
    /// Address or name of a host and port, or a Unix socket.
    Listen,
    /// One of these words, in any case.
    Choice(&'static [&'static str]),
    /// One or several of these words.
    Choices(&'static [&'static str]),
    /// Allowed origins.
    Origins,
    /// Patterns of channels.
    Patterns,
    /// Addresses and networks.
    Networks,
    /// CPUs of shards.
    Cpus,
    /// Text of 1 to `max` bytes without control characters.
    Text { max: usize },
    /// Name of a cookie.
    Cookie,
    /// One or several of such texts, each once.
    Texts { max: usize },
    /// Text that is never shown, or `@file`.
    Secret,
    /// One or two such texts, each once.
    Secrets,
    /// Path of a file.
    File,
    /// URL with one of these schemes; a password in it is never shown.
    Url(&'static [&'static str]),
    /// URL of Redis; its credentials are never shown.
    RedisUrl,
}

/// A checked value. No `Debug`: it may be a secret.
#[derive(Clone, PartialEq)]
pub(super) enum Value {
    /// The key was not set and it has no default.
    Unset,
    Bool(bool),
    Integer(u64),
    Duration(Duration),
    Text(String),
    List(Vec<String>),
    Cpus(Placement),
}

/// The allowed values, in words.
type Allowed = String;

impl Kind {
    /// Reads a value from a flag or a variable, where lists are comma-separated.
    pub(super) fn parse_text(&self, text: &str) -> Result<Value, Allowed> {
        if text.is_empty() {
            return Err(self.allowed());
        }
        match *self {
            Kind::Bool => match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Ok(Value::Bool(true)),
                "false" | "0" | "no" | "off" => Ok(Value::Bool(false)),
                _ => Err(self.allowed()),
            },
            Kind::Integer { min, max, .. } => match text.parse::<u64>() {
                // `parse` takes a leading plus, which TOML prints back differently: digits only.
                Ok(n) if (min..=max).contains(&n) && !text.starts_with('+') => Ok(Value::Integer(n)),
                _ => Err(self.allowed()),
            },
            Kind::Duration { min, max } => match parse_duration(text) {
                Ok(time) if (min..=max).contains(&time) => Ok(Value::Duration(time)),
                Ok(_) => Err(self.allowed()),
                Err(hint) => Err(format!("{}{hint}", self.allowed())),
            },
            Kind::Listen => match Listen::parse(text) {
                Some(listen) => Ok(Value::Text(listen.to_string())),
                None => Err(self.allowed()),
            },
            Kind::Choice(words) => choose(words, text).map(Value::Text).ok_or_else(|| self.allowed()),
            Kind::Choices(_) | Kind::Origins | Kind::Patterns | Kind::Networks | Kind::Texts { .. } | Kind::Secrets => {
                self.parse_list(text.split(',').map(|item| item.trim().to_owned()).collect())
            }
            Kind::Cpus => parse_cpus(text)
                .map(Value::Cpus)
                .map_err(|hint| format!("{}{hint}", self.allowed())),
            Kind::Text { max } if !is_text(text, max) => Err(self.allowed()),
            Kind::Cookie if !is_cookie_name(text) => Err(self.allowed()),
            // A zero byte ends a path for the kernel.
            Kind::File if text.contains('\0') => Err(self.allowed()),
            Kind::Url(_) | Kind::RedisUrl if text.contains(MASK) => Err(format!(
                "{}; *** stands for what is hidden where it is printed: write it out",
                self.allowed()
            )),
            Kind::Url(schemes) => match text.split_once("://") {
                Some((scheme, rest)) if schemes.contains(&scheme) && !rest.is_empty() => Ok(Value::Text(text.into())),
                _ => Err(self.allowed()),
            },
            Kind::RedisUrl => match RedisTarget::parse(text) {
                Ok(_) => Ok(Value::Text(text.to_owned())),
                Err(why) => Err(format!("{}; {why}", self.allowed())),
            },
            Kind::Text { .. } | Kind::Cookie | Kind::Secret | Kind::File => Ok(Value::Text(text.to_owned())),
        }
    }

    /// Reads a value from TOML: booleans and whole numbers bare, lists as arrays or one string, the
    /// rest as strings.
    pub(super) fn parse_toml(&self, value: &DeValue<'_>) -> Result<Value, Allowed> {
        let refused = || format!("{}, in TOML {}", self.allowed(), self.toml_type());
        match (self, value) {
            (Kind::Bool, DeValue::Boolean(yes)) => Ok(Value::Bool(*yes)),
            (Kind::Integer { .. }, DeValue::Integer(n)) => {
                let n = u64::from_str_radix(n.as_str(), n.radix()).map_err(|_| self.allowed())?;
                self.parse_text(&n.to_string())
            }
            (Kind::Bool | Kind::Integer { .. }, _) => Err(refused()),
            // Read as text for the sake of the hint about units.
            (Kind::Duration { .. }, DeValue::Integer(n)) => self.parse_text(n.as_str()),
            (Kind::Cpus, DeValue::Array(items)) => {
                let items: Option<Vec<_>> = items.iter().map(word_of).collect();
                self.parse_text(&items.ok_or_else(refused)?.join(","))
            }
            (kind, DeValue::Array(items)) if kind.is_list() => {
                let items = items.iter().map(|item| item.get_ref().as_str().map(str::to_owned));
                self.parse_list(items.collect::<Option<_>>().ok_or_else(refused)?)
            }
            (kind, DeValue::String(text)) if kind.is_list() => self.parse_list(vec![text.clone().into_owned()]),
            (_, DeValue::String(text)) => self.parse_text(text),
            _ => Err(refused()),
        }
    }

    pub(super) fn parse_list(&self, items: Vec<String>) -> Result<Value, Allowed> {
        match self {
            Kind::Choices(words) => {
                let chosen: Option<Vec<_>> = items.iter().map(|item| choose(words, item)).collect();
                chosen
                    .filter(|chosen| !chosen.is_empty())
                    .map(Value::List)
                    .ok_or_else(|| self.allowed())
            }
            Kind::Origins => match OriginPolicy::parse(&items) {
                // An empty array is the way to write the default in TOML.
                Ok(_) if items.is_empty() => Ok(Value::Unset),
                Ok(_) => Ok(Value::List(items)),
                Err(why) => Err(format!("{}; {why}", self.allowed())),
            },
            Kind::Patterns => match Patterns::parse(&items) {
                // An empty array stays one: it permits nobody where the default permits everybody.
                Ok(_) => Ok(Value::List(items)),
                Err(why) => Err(format!("{}; {why}", self.allowed())),
            },
            Kind::Networks => match Networks::parse(&items) {
                Ok(_) if items.is_empty() => Ok(Value::Unset),
                Ok(_) => Ok(Value::List(items)),
                Err(why) => Err(format!("{}; {why}", self.allowed())),
            },
            Kind::Texts { max } => {
                let good = items.iter().all(|item| is_text(item, *max));
                let once = items.iter().enumerate().all(|(at, item)| !items[..at].contains(item));
                match items.is_empty() {
                    true => Ok(Value::Unset),
                    false if good && once => Ok(Value::List(items)),
                    false => Err(self.allowed()),
                }
            }
            Kind::Secrets => {
                let good = items.iter().all(|item| !item.is_empty());
                match items.as_slice() {
                    [] => Ok(Value::Unset),
                    [_] if good => Ok(Value::List(items)),
                    [first, second] if good && first != second => Ok(Value::List(items)),
                    _ => Err(self.allowed()),
                }
            }
            _ => unreachable!("only kinds of lists get here"),
        }
    }

    /// The allowed values, in words.
    pub(super) fn allowed(&self) -> String {
        match *self {
            Kind::Bool => "true or false".into(),
            Kind::Integer { min, max, unit: "" } => format!("a whole number from {min} to {max}"),
            Kind::Integer { min, max, unit } => format!("a whole number of {unit} from {min} to {max}"),
            Kind::Duration { min, max } => format!(
                "a time with its unit, such as 25s, 500ms, 2m or 1h, from {} to {}",
                write_duration(min),
                write_duration(max)
            ),
            Kind::Listen => "IP address and port, such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080, a host's name and port, such as \
                             localhost:8080, or a Unix socket, such as unix:/run/shardgate/shardgate.sock"
                .into(),
            Kind::Choice(words) => words.join(", "),
            Kind::Choices(words) => format!("one or more of {}", words.join(", ")),
            Kind::Origins => "origins such as https://app.example.com, https://*.example.com, null or *".into(),
            Kind::Patterns => "patterns such as news, room:*, inbox:{user} or *".into(),
            Kind::Networks => "addresses and networks such as 192.0.2.1, 10.0.0.0/8 or 2001:db8::/32, or unix:".into(),
            Kind::Cpus => {
                format!("CPU numbers from 0 to {CPU_MAX} such as 0-3,8-11, each once, or none for no pinning")
            }
            Kind::Text { max } => format!("text of 1 to {max} bytes without control characters"),
            Kind::Cookie => "1 to 256 letters, digits and any of !#$%&'*+-.^_`|~ (RFC 6265)".into(),
            Kind::Texts { max } => {
                format!("one or more texts of 1 to {max} bytes without control characters, each once")
            }
            Kind::Secret => "text, or @FILE to read it from a file".into(),
            Kind::Secrets => "one or two different texts, each of them text, or @FILE to read it from a file".into(),
            Kind::File => "the path of a file".into(),
            Kind::RedisUrl => format!(
                "a URL that begins with {}://, such as redis://user:password@host:6379/0, redis-cluster://host,host, \
                 redis-sentinel://host,host/master or unix:///path?db=0, or @FILE to read it from a file",
                redis_url::SCHEMES.join("://, ")
            ),
            Kind::Url(schemes) => format!(
                "a URL that begins with {}://, or @FILE to read it from a file",
                schemes.join("://, ")
            ),
        }
    }

    /// Stands for the value in `--help`.
    pub(super) fn metavar(&self) -> &'static str {
        match self {
            Kind::Bool => "",
            Kind::Integer { unit: "bytes", .. } => "BYTES",
            Kind::Integer { .. } => "N",
            Kind::Duration { .. } => "TIME",
            Kind::Listen => "ADDRESS",
            Kind::Choice(_) => "WORD",
            Kind::Choices(_) | Kind::Origins | Kind::Patterns | Kind::Networks | Kind::Texts { .. } | Kind::Secrets => {
                "LIST"
            }
            Kind::Cpus => "CPUS",
            Kind::Text { .. } | Kind::Cookie | Kind::Secret => "TEXT",
            Kind::File => "FILE",
            Kind::Url(_) | Kind::RedisUrl => "URL",
        }
    }

    /// True for kinds that `@FILE` may stand for: secrets, and URLs, which may hold some.
    pub(super) fn may_be_secret(&self) -> bool {
        matches!(self, Kind::Secret | Kind::Url(_) | Kind::RedisUrl)
    }

    fn is_list(&self) -> bool {
        matches!(
            self,
            Kind::Choices(_) | Kind::Origins | Kind::Patterns | Kind::Networks | Kind::Texts { .. } | Kind::Secrets
        )
    }

    fn toml_type(&self) -> &'static str {
        match self {
            Kind::Bool => "without quotes",
            Kind::Integer { .. } => "without quotes or a decimal point",
            _ if self.is_list() => "an array of strings",
            _ => "a string in quotes",
        }
    }

    /// Text of such a value as errors and listings may show it: escaped, secrets masked.
    pub(super) fn show(&self, text: &str) -> String {
        match self {
            Kind::Secret | Kind::Secrets => MASK.to_owned(),
            // Without a scheme there is no telling where a password begins.
            Kind::Url(_) | Kind::RedisUrl if text.contains('@') && !text.contains("://") => MASK.to_owned(),
            _ => show(text),
        }
    }

    /// True for lists whose empty array in TOML means that the key is not set.
    pub(super) fn may_be_empty(&self) -> bool {
        matches!(
            self,
            Kind::Origins | Kind::Networks | Kind::Texts { .. } | Kind::Secrets
        )
    }

    /// The value as TOML, secrets masked.
    pub(super) fn write_toml(&self, value: &Value) -> String {
        let quoted = write_text;
        match (self, value) {
            (_, Value::Unset) => String::new(),
            (_, Value::Bool(yes)) => yes.to_string(),
            (_, Value::Integer(n)) => n.to_string(),
            (_, Value::Duration(time)) => quoted(&write_duration(*time)),
            (_, Value::Cpus(placement)) => quoted(&write_cpus(placement)),
            (Kind::Secrets, Value::List(items)) => write_list(&vec![MASK.to_owned(); items.len()]),
            (_, Value::List(items)) => write_list(items),
            (Kind::Secret, Value::Text(_)) => quoted(MASK),
            (Kind::Url(_) | Kind::RedisUrl, Value::Text(text)) => quoted(&mask_url(text)),
            (_, Value::Text(text)) => quoted(text),
        }
    }
}

/// A string in TOML.
pub(super) fn write_text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// CPUs of shards as `cpus` writes them.
pub(super) fn write_assignment(cpus: &[Option<usize>]) -> String {
    match cpus.iter().copied().collect::<Option<Vec<usize>>>() {
        Some(cpus) => write_cpus(&Placement::Cpus(cpus)),
        None => write_cpus(&Placement::Unpinned),
    }
}

/// An array of strings in TOML.
fn write_list(items: &[String]) -> String {
    let quoted = items.iter().map(|item| write_text(item));
    format!("[{}]", quoted.collect::<Vec<_>>().join(", "))
}

/// Text of unknown kind as it may be shown: escaped, shortened, passwords in URLs masked.
pub(super) fn show(text: &str) -> String {
    // Longer values are known by their beginning; a terminal full of one is no help.
    const SHOWN_CHARS_MAX: usize = 200;
    let masked = mask_url(text);
    match masked.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{:?}...", &masked[..end]),
        None => format!("{masked:?}"),
    }
}

/// Hides the parts before an `@` and, in a URL, after a `?`: passwords and keys live there.
pub(super) fn mask_url(text: &str) -> String {
    let Some(start) = text.find("://").map(|at| at + 3) else {
        return text.to_owned();
    };
    let rest = &text[start..];
    let rest = rest
        .rfind('@')
        .map_or_else(|| rest.to_owned(), |at| format!("{MASK}{}", &rest[at..]));
    let rest = rest
        .find('?')
        .map_or(rest.clone(), |at| format!("{}?{MASK}", &rest[..at]));
    format!("{}{rest}", &text[..start])
}

fn is_text(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// A token of RFC 9110.
fn is_cookie_name(text: &str) -> bool {
    let is_tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    (1..=256).contains(&text.len()) && text.bytes().all(is_tchar)
}

fn choose(words: &[&str], text: &str) -> Option<String> {
    words
        .iter()
        .find(|word| word.eq_ignore_ascii_case(text))
        .map(|word| (*word).to_owned())
}

/// A CPU in an array may be a number or a range in quotes.
fn word_of(item: &Spanned<DeValue<'_>>) -> Option<String> {
    match item.get_ref() {
        DeValue::Integer(n) if n.radix() == 10 => Some(n.as_str().to_owned()),
        DeValue::String(text) => Some(text.clone().into_owned()),
        _ => None,
    }
}

/// Units of time, shortest first, with their milliseconds.
const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

pub(super) fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "")?;
    if unit.is_empty() {
        return Err(" (a bare number has no unit)");
    }
    let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit).ok_or("")?;
    Ok(Duration::from_millis(number.checked_mul(*millis).ok_or("")?))
}

/// The shortest exact way to write it; configured times are whole milliseconds.
pub(super) fn write_duration(time: Duration) -> String {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".to_owned();
    }
    let exact = UNITS.iter().rev().find(|(_, unit)| millis % unit == 0);
    exact.map_or_else(
        || format!("{millis}ms"),
        |(name, unit)| format!("{}{name}", millis / unit),
    )
}

fn parse_cpus(text: &str) -> Result<Placement, String> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(Placement::Unpinned);
    }
    let number = |text: &str| text.trim().parse::<usize>().ok().filter(|n| *n as u64 <= CPU_MAX);
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(String::new());
        };
        if first > last {
            return Err(format!(" (the range {first}-{last} is backwards)"));
        }
        for cpu in first..=last {
            if cpus.contains(&cpu) {
                return Err(format!(" (CPU {cpu} is listed twice)"));
            }
            cpus.push(cpu);
        }
    }
    if cpus.len() as u64 > SHARDS_MAX {
        return Err(format!(
            " ({} are listed, but a gateway has at most {SHARDS_MAX} shards)",
            cpus.len()
        ));
    }
    Ok(Placement::Cpus(cpus))
}

fn write_cpus(placement: &Placement) -> String {
    let cpus = match placement {
        Placement::FirstAllowed => return String::new(),
        Placement::Unpinned => return "none".to_owned(),
        Placement::Cpus(cpus) => cpus,
    };
    // Order matters (shard by shard), so only neighbours that count up become a range.
    let runs = cpus.chunk_by(|a, b| a + 1 == *b);
    let runs = runs.map(|run| match run {
        [first, .., last] => format!("{first}-{last}"),
        run => run.iter().map(usize::to_string).collect(),
    });
    runs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIME: Kind = Kind::Duration {
        min: Duration::ZERO,
        max: Duration::from_secs(86_400),
    };

    fn duration(text: &str) -> Result<Duration, String> {
        match TIME.parse_text(text)? {
            Value::Duration(time) => Ok(time),
            _ => panic!("a duration"),
        }
    }

    fn cpus(text: &str) -> Result<Placement, String> {
        match Kind::Cpus.parse_text(text)? {
            Value::Cpus(placement) => Ok(placement),
            _ => panic!("a placement"),
        }
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("25s"), Ok(Duration::from_secs(25)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        assert!(duration("25").unwrap_err().contains("bare number"));
        for wrong in [
            "",
            "s",
            "1.5s",
            "-1s",
            "+1s",
            " 1s",
            "1 s",
            "1S",
            "1d",
            "1m30s",
            "25h",
            "99999999999999999999s",
        ] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn cpu_lists_keep_their_order_and_name_each_cpu_once() {
        assert_eq!(cpus("0-3,8-9"), Ok(Placement::Cpus(vec![0, 1, 2, 3, 8, 9])));
        assert_eq!(cpus("5, 2"), Ok(Placement::Cpus(vec![5, 2])));
        assert_eq!(cpus("None"), Ok(Placement::Unpinned));
        assert!(cpus("0-3,2").unwrap_err().contains("CPU 2 is listed twice"));
        assert!(cpus("3-0").unwrap_err().contains("backwards"));
        assert!(cpus("0-256").unwrap_err().contains("at most 256"));
        for wrong in [
            "",
            ",",
            "0,",
            "a",
            "1-",
            "-1",
            "0-99999999999",
            "1024",
            "1-2-3",
            "none,1",
        ] {
            assert!(cpus(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn numbers_are_digits_in_range() {
        let kind = Kind::Integer {
            min: 1,
            max: 256,
            unit: "shards",
        };
        assert!(kind.parse_text("256").is_ok());
        for wrong in [
            "0",
            "257",
            "-1",
            "+1",
            "1k",
            "1.0",
            "0x10",
            " 1",
            "99999999999999999999",
        ] {
            let refusal = kind.parse_text(wrong).err().unwrap();
            assert_eq!(refusal, "a whole number of shards from 1 to 256", "{wrong:?}");
        }
    }

    #[test]
    fn passwords_in_urls_are_masked() {
        assert_eq!(mask_url("redis://user:pa@ss/w@host/0"), "redis://***@host/0");
        assert_eq!(mask_url("https://host/keys?api_key=1"), "https://host/keys?***");
        assert_eq!(mask_url("https://app.example.com"), "https://app.example.com");
        assert_eq!(Kind::Secret.show("abc"), MASK);
    }

    #[test]
    fn a_shown_value_is_escaped_and_short() {
        assert_eq!(show("a\n\u{1b}[31m"), "\"a\\n\\u{1b}[31m\"");
        assert!(show(&"ü".repeat(10_000)).len() < 1_000);
    }

    proptest! {
        #[test]
        fn a_duration_reads_back_as_written(millis in 0u64..=86_400_000) {
            let time = Duration::from_millis(millis);
            prop_assert_eq!(duration(&write_duration(time)), Ok(time));
        }

        #[test]
        fn a_cpu_list_reads_back_as_written(
            list in proptest::sample::subsequence((0..64usize).collect::<Vec<_>>(), 1..32).prop_shuffle()
        ) {
            let placement = Placement::Cpus(list);
            prop_assert_eq!(cpus(&write_cpus(&placement)), Ok(placement));
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            for key in crate::config::keys::KEYS {
                let _ = key.kind.parse_text(&text);
                let _ = key.kind.show(&text);
            }
        }
    }
}
