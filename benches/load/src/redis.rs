//! The work of Redis, by its own account.
//!
//! Duty: `INFO all` over a plain connection at a few moments of a run, and the difference of two
//! such answers. The client here knows only the two replies of the protocol that this needs.
//! Blocking, with a time limit; owned by the coordinator. Our own `INFO` is not counted.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::resolve::resolve;

const PORT: u16 = 6379;
/// A server that takes longer for one answer is overloaded beyond measuring.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// `INFO all` is some 10 KiB.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Where Redis is, and how to be let in.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// As it is shown: without user and password.
    pub(crate) host: String,
    address: SocketAddr,
    /// The words behind `AUTH`: a password, or user and password.
    credentials: Vec<String>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)
    }
}

/// Redis at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    run_id: String,
    calls: BTreeMap<String, u64>,
    cpu_ns: u64,
    /// How many of the `info` calls are ours.
    asked: u64,
}

/// The work between two moments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spent {
    /// Commands carried out, by name in lower case; none that is 0.
    pub(crate) calls: BTreeMap<String, u64>,
    pub(crate) cpu_ns: u64,
}

impl Server {
    /// Reads `HOST:PORT` or `redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]`; `INFO` is the same in
    /// every database.
    ///
    /// # Errors
    /// The fault.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let rest = match text.split_once("://") {
            None => text,
            Some(("redis", rest)) => rest,
            Some(("rediss", _)) => return Err("no TLS here: give the plain port".to_owned()),
            Some(_) => return Err(HELP.to_owned()),
        };
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, rest),
        };
        let host = place.split(['/', '?']).next().unwrap_or_default();
        if host.is_empty() || host.starts_with(':') {
            return Err(HELP.to_owned());
        }
        let credentials = match login.map(|login| login.split_once(':').unwrap_or(("", login))) {
            None => vec![],
            Some(("", password)) => vec![percent_decode(password)?],
            Some((user, password)) => vec![percent_decode(user)?, percent_decode(password)?],
        };
        Ok(Self {
            host: host.to_owned(),
            address: resolve(host, PORT)?,
            credentials,
        })
    }
}

const HELP: &str = "must be like 127.0.0.1:6379 or redis://:PASSWORD@HOST:PORT";

fn percent_decode(text: &str) -> Result<String, String> {
    let mut bytes = vec![];
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'%').then(|| tail.get(..2)).flatten();
        let code = escaped.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match (first, code) {
            (b'%', None) => return Err("a % in user or password is written %25".to_owned()),
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| "user and password must be UTF-8".to_owned())
}

/// A connection to Redis.
#[derive(Debug)]
pub(crate) struct Client {
    server: Server,
    stream: BufReader<TcpStream>,
    asked: u64,
}

impl Client {
    /// Connects, logs in, and tries one sample, so that what is missing is known before the run.
    ///
    /// # Errors
    /// As one line, with what to do.
    pub(crate) fn connect(server: &Server) -> Result<Self, String> {
        let open = || {
            let stream = TcpStream::connect_timeout(&server.address, ANSWER_TIME_MAX)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
            stream.set_write_timeout(Some(ANSWER_TIME_MAX))?;
            Ok(stream)
        };
        let stream = open().map_err(|error: std::io::Error| format!("--redis {}: {error}", server.host))?;
        let mut client = Self {
            server: server.clone(),
            stream: BufReader::new(stream),
            asked: 0,
        };
        if !server.credentials.is_empty() {
            let mut words = vec!["AUTH"];
            words.extend(server.credentials.iter().map(|word| &**word));
            client.ask(&words)?;
        }
        client.sample()?;
        Ok(client)
    }

    /// Asks for everything that Redis counts.
    ///
    /// # Errors
    /// The connection is gone, or the answer is not what Redis says.
    pub(crate) fn sample(&mut self) -> Result<Sample, String> {
        let text = self.ask(&["INFO", "all"])?;
        let mut sample =
            parse_info(&text).ok_or_else(|| format!("--redis {}: INFO is not as expected", self.server.host))?;
        // An answer does not count the question that it answers.
        sample.asked = self.asked;
        self.asked += 1;
        Ok(sample)
    }

    fn ask(&mut self, words: &[&str]) -> Result<String, String> {
        let say = |why: &dyn fmt::Display| format!("--redis {}: {why}", self.server.host);
        let reply = exchange(&mut self.stream, words).map_err(|error| say(&error))?;
        reply.map_err(|refusal| {
            if refusal.starts_with("NOAUTH") {
                say(&"it wants a password: --redis redis://:PASSWORD@HOST:PORT")
            } else {
                say(&refusal)
            }
        })
    }
}

/// Sends one command and reads its reply: text, or the server's refusal.
fn exchange(stream: &mut BufReader<TcpStream>, words: &[&str]) -> std::io::Result<Result<String, String>> {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request += &format!("${}\r\n{word}\r\n", word.len());
    }
    stream.get_mut().write_all(request.as_bytes())?;
    read_reply(stream)
}

fn read_reply(input: &mut impl BufRead) -> std::io::Result<Result<String, String>> {
    let strange = || std::io::Error::other("the answer is not Redis' protocol");
    let mut line = String::new();
    input.take(1024).read_line(&mut line)?;
    let line = match line.strip_suffix("\r\n") {
        Some(line) => line,
        None if line.is_empty() => return Err(std::io::ErrorKind::UnexpectedEof.into()),
        None => return Err(strange()),
    };
    match line.split_at_checked(1) {
        Some(("+", text)) => Ok(Ok(text.to_owned())),
        Some(("-", text)) => Ok(Err(text.to_owned())),
        Some(("$", length)) => {
            let length: usize = length.parse().map_err(|_| strange())?;
            if length > ANSWER_BYTES_MAX {
                return Err(strange());
            }
            let mut bytes = vec![0; length + 2];
            input.read_exact(&mut bytes)?;
            bytes.truncate(length);
            Ok(Ok(String::from_utf8(bytes).map_err(|_| strange())?))
        }
        _ => Err(strange()),
    }
}

/// The answer to `INFO all`; `None` if what we need is not in it.
fn parse_info(text: &str) -> Option<Sample> {
    let mut sample = Sample::default();
    let (mut user, mut system) = (None, None);
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        if let Some(name) = key.strip_prefix("cmdstat_") {
            let calls = value.split(',').find_map(|field| field.strip_prefix("calls="))?;
            sample.calls.insert(name.to_owned(), calls.parse().ok()?);
        }
        match key {
            "run_id" => value.clone_into(&mut sample.run_id),
            "used_cpu_user" => user = value.parse::<f64>().ok(),
            "used_cpu_sys" => system = value.parse::<f64>().ok(),
            _ => {}
        }
    }
    sample.cpu_ns = ((user? + system?) * 1e9) as u64;
    Some(sample)
}

impl Sample {
    /// The work since `before`; `None` if Redis was restarted or its counters reset meanwhile.
    pub(crate) fn since(&self, before: &Self) -> Option<Spent> {
        if self.run_id != before.run_id {
            return None;
        }
        let mut calls = BTreeMap::new();
        for (name, count) in &self.calls {
            let mut count = count.checked_sub(before.calls.get(name).copied().unwrap_or(0))?;
            if name == "info" {
                count = count.checked_sub(self.asked - before.asked)?;
            }
            if count > 0 {
                calls.insert(name.clone(), count);
            }
        }
        before
            .calls
            .keys()
            .all(|name| self.calls.contains_key(name))
            .then_some(Spent {
                calls,
                cpu_ns: self.cpu_ns.checked_sub(before.cpu_ns)?,
            })
    }
}

impl Spent {
    /// Commands of all names.
    pub(crate) fn total(&self) -> u64 {
        self.calls.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_credentials_are_read() {
        let read = |text: &str| Server::parse(text).map(|s| (s.host, s.address.port(), s.credentials.join("|")));
        let ok = |host: &str, port, words: &str| Ok((host.to_owned(), port, words.to_owned()));
        assert_eq!(read("127.0.0.1:7000"), ok("127.0.0.1:7000", 7000, ""));
        assert_eq!(read("127.0.0.1"), ok("127.0.0.1", PORT, ""));
        assert_eq!(read("[::1]:7"), ok("[::1]:7", 7, ""));
        assert_eq!(read("redis://127.0.0.1:7/3"), ok("127.0.0.1:7", 7, ""));
        assert_eq!(read("redis://:p%40ss@127.0.0.1:7"), ok("127.0.0.1:7", 7, "p@ss"));
        assert_eq!(read("redis://me:a:b@127.0.0.1"), ok("127.0.0.1", PORT, "me|a:b"));
        for (text, part) in [
            ("", "must be like"),
            (":7000", "must be like"),
            ("http://127.0.0.1:1", "must be like"),
            ("rediss://127.0.0.1:1", "no TLS"),
            ("redis://:a%zz@127.0.0.1:1", "%25"),
            ("127.0.0.1:70000", "cannot resolve"),
        ] {
            let why = read(text).err().unwrap_or_default();
            assert!(why.contains(part), "{text:?} -> {why:?}");
        }
        let secret = Server::parse("redis://:secret@127.0.0.1:7").unwrap();
        assert_eq!(format!("{secret:?}"), "127.0.0.1:7");
    }

    #[test]
    fn replies_are_read_and_nonsense_is_refused() {
        let read = |bytes: &str| read_reply(&mut bytes.as_bytes()).map_err(|error| error.kind());
        assert_eq!(read("+OK\r\n"), Ok(Ok("OK".to_owned())));
        assert_eq!(read("-NOAUTH no\r\n"), Ok(Err("NOAUTH no".to_owned())));
        assert_eq!(read("$4\r\na\r\nb\r\n"), Ok(Ok("a\r\nb".to_owned())));
        for bytes in [
            "",
            "$4\r\na",
            "HTTP/1.1 400 Bad Request\r\n",
            "+OK",
            "$-1\r\n",
            "$99999999999\r\n",
            ":1\r\n",
        ] {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
    }

    fn info(run: &str, publish: u64, asked: u64, cpu: &str) -> Sample {
        let text = format!(
            "# Server\r\nrun_id:{run}\r\n# CPU\r\nused_cpu_sys:{cpu}\r\nused_cpu_user:0.500000\r\nused_cpu_sys_children:9\r\n\
             # Commandstats\r\ncmdstat_publish:calls={publish},usec=9,usec_per_call=1.00,rejected_calls=0,failed_calls=0\r\n\
             cmdstat_config|get:calls=3,usec=1\r\ncmdstat_info:calls={},usec=1\r\n",
            asked + 7
        );
        Sample {
            asked,
            ..parse_info(&text).unwrap()
        }
    }

    #[test]
    fn the_difference_of_two_moments() {
        let (before, after) = (info("a", 10, 1, "1.000000"), info("a", 25, 3, "1.250000"));
        let spent = after.since(&before).unwrap();
        // Neither our own questions nor what did not happen.
        assert_eq!(spent.calls, BTreeMap::from([("publish".to_owned(), 15)]));
        assert_eq!((spent.total(), spent.cpu_ns), (15, 250_000_000));
        assert_eq!(info("b", 25, 3, "1.25").since(&before), None, "restarted");
        assert_eq!(info("a", 5, 3, "1.25").since(&before), None, "reset");
        assert_eq!(parse_info("# nothing\r\n"), None);
    }
}
