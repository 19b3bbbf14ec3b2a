//! Real `redis-server` processes: one alone, one with TLS, a master under sentinels, a cluster of
//! six.
//!
//! Each listens on 127.0.0.1 in a directory of its own and keeps nothing on disk unless told to.
//! Ports lie below the range from which the kernel takes the ports of outgoing connections. They
//! are claimed in the abstract socket namespace, so that tests which run at the same time stay
//! apart. A claim also holds while a server is down between [`Redis::kill`] and [`Redis::restart`].

mod cluster;
mod door;
mod resp;
mod sentinels;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::authority::{Authority, Pair};
use super::{DEADLINE, eventually};
pub use cluster::Cluster;
pub use door::ListenerKind;
pub use resp::{Connection, Reply};
pub use sentinels::Sentinels;

/// A port that this test alone uses while it holds the claim; its cluster bus port (10,000 above)
/// is free too.
struct Port {
    number: u16,
    _claim: UnixListener,
}

impl Port {
    fn free() -> Port {
        for _ in 0..1000 {
            let number = fastrand::u16(11_000..22_000);
            let name = UnixAddr::from_abstract_name(format!("shardgate-test-redis-{number}")).unwrap();
            let Ok(claim) = UnixListener::bind_addr(&name) else {
                continue;
            };
            let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
            if free(number) && free(number + 10_000) {
                return Port { number, _claim: claim };
            }
        }
        panic!("no free port");
    }
}

/// A certificate authority and the certificate of servers on this host.
struct Certificates {
    authority: Authority,
    server: Pair,
}

impl Certificates {
    fn make() -> Arc<Certificates> {
        let authority = Authority::new();
        let server = authority.sign("server");
        Arc::new(Certificates { authority, server })
    }
}

/// One `redis-server`. Dropping it kills and reaps it.
pub struct Redis {
    port: Port,
    tls: Option<(Port, Arc<Certificates>)>,
    dir: tempfile::TempDir,
    password: Option<String>,
    sentinel: bool,
    child: Option<Child>,
}

impl Redis {
    #[track_caller]
    pub fn start() -> Redis {
        Redis::with_config(&[])
    }

    /// Starts one with these lines in `redis.conf`, such as `("requirepass", "x")` or
    /// `("appendonly", "yes")`.
    #[track_caller]
    pub fn with_config(config: &[(&str, &str)]) -> Redis {
        Redis::launch(config, None, false)
    }

    /// Starts one that speaks TLS on the port of [`Redis::url`], with a certificate by
    /// [`Redis::ca`].
    #[track_caller]
    pub fn start_tls() -> Redis {
        Redis::start_tls_with_config(&[])
    }

    #[track_caller]
    pub fn start_tls_with_config(config: &[(&str, &str)]) -> Redis {
        Redis::launch(config, Some(&Certificates::make()), false)
    }

    /// A server that does not run yet: [`Redis::restart`] starts it.
    #[track_caller]
    pub fn not_yet(config: &[(&str, &str)]) -> Redis {
        let redis = Redis::start_with(config, None, false);
        redis.write_config(config);
        redis
    }

    fn start_with(config: &[(&str, &str)], tls: Option<&Arc<Certificates>>, sentinel: bool) -> Redis {
        let dir = tempfile::Builder::new().prefix("shardgate-redis-").tempdir().unwrap();
        let password = config.iter().find(|(name, _)| *name == "requirepass");
        Redis {
            port: Port::free(),
            tls: tls.map(|certificates| (Port::free(), Arc::clone(certificates))),
            password: password.map(|(_, password)| (*password).to_owned()),
            dir,
            sentinel,
            child: None,
        }
    }

    #[track_caller]
    fn launch(config: &[(&str, &str)], tls: Option<&Arc<Certificates>>, sentinel: bool) -> Redis {
        for _ in 0..10 {
            let mut redis = Redis::start_with(config, tls, sentinel);
            redis.write_config(config);
            if redis.spawn() {
                return redis;
            }
            let log = redis.log();
            assert!(log.contains("in use"), "redis-server did not start:\n{log}");
        }
        panic!("every port was taken meanwhile");
    }

    fn write_config(&self, config: &[(&str, &str)]) {
        let mut lines = vec![
            "bind 127.0.0.1".to_owned(),
            format!("port {}", self.port()),
            format!("dir {}", self.dir.path().display()),
            format!("logfile {}", self.dir.path().join("log").display()),
        ];
        if !self.sentinel {
            let own = [
                ("save", "\"\""),
                ("appendonly", "no"),
                ("enable-debug-command", "yes"),
                ("repl-diskless-sync-delay", "0"),
                ("repl-ping-replica-period", "1"),
            ];
            let own = own.iter().filter(|(name, _)| config.iter().all(|(n, _)| n != name));
            lines.extend(own.map(|(name, value)| format!("{name} {value}")));
        }
        if let Some((port, certificates)) = &self.tls {
            lines.extend([
                format!("tls-port {}", port.number),
                format!("tls-ca-cert-file {}", certificates.authority.ca.display()),
                format!("tls-cert-file {}", certificates.server.cert.display()),
                format!("tls-key-file {}", certificates.server.key.display()),
            ]);
            if config.iter().all(|(name, _)| *name != "tls-auth-clients") {
                lines.push("tls-auth-clients no".to_owned());
            }
        }
        lines.extend(config.iter().map(|(name, value)| format!("{name} {value}")));
        lines.push(String::new());
        std::fs::write(self.dir.path().join("redis.conf"), lines.join("\n")).unwrap();
    }

    /// Starts the process; whether it lived long enough to answer.
    #[track_caller]
    fn spawn(&mut self) -> bool {
        assert!(self.child.is_none(), "it runs");
        let mut command = Command::new("redis-server");
        command.arg(self.dir.path().join("redis.conf"));
        if self.sentinel {
            command.arg("--sentinel");
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("redis-server (package redis-server): {error}"));
        self.child = Some(child);
        let until = Instant::now() + DEADLINE;
        loop {
            let answer = self.try_cmd(&["PING"], Duration::from_secs(1));
            // A server that wants a password, a permission or a master is there; one that loads is
            // not yet.
            if answer.is_ok_and(|answer| !answer.is_error() || !answer.text().starts_with("LOADING")) {
                return true;
            }
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                self.child = None;
                return false;
            }
            assert!(Instant::now() < until, "redis-server never answered:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// The port that speaks plain RESP, also on a server with TLS.
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// The port that everybody but the tests uses: that with TLS, if there is one.
    pub fn service_port(&self) -> u16 {
        self.tls.as_ref().map_or(self.port.number, |(port, _)| port.number)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `redis://…`, or `rediss://…` where it speaks TLS; without the password.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "rediss" } else { "redis" };
        format!("{scheme}://127.0.0.1:{}", self.service_port())
    }

    /// [`Redis::url`] with these credentials.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        self.url().replace("://", &format!("://{user}:{password}@"))
    }

    /// [`Redis::url`] with the password of `requirepass`.
    #[track_caller]
    pub fn url_with_password(&self) -> String {
        self.url_as("", self.password.as_deref().expect("no requirepass"))
    }

    /// The file with the certificate of the authority.
    #[track_caller]
    pub fn ca(&self) -> &Path {
        &self.tls.as_ref().expect("it does not speak TLS").1.authority.ca
    }

    /// A certificate by that authority and its key.
    #[track_caller]
    pub fn pair(&self) -> (&Path, &Path) {
        let server = &self.tls.as_ref().expect("it does not speak TLS").1.server;
        (&server.cert, &server.key)
    }

    /// The server's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn try_connection(&self, within: Duration) -> std::io::Result<Connection> {
        let mut connection = Connection::open(self.port(), within)?;
        if let Some(password) = &self.password {
            connection.try_cmd(&["AUTH", password])?;
        }
        Ok(connection)
    }

    #[track_caller]
    pub fn connection(&self) -> Connection {
        self.try_connection(DEADLINE)
            .unwrap_or_else(|error| panic!("redis-server on port {}: {error}\n{}", self.port(), self.log()))
    }

    pub fn try_cmd(&self, args: &[&str], within: Duration) -> std::io::Result<Reply> {
        self.try_connection(within)?.try_cmd(args)
    }

    /// One command on a connection of its own. An error is a [`Reply`] too.
    #[track_caller]
    pub fn cmd(&self, args: &[&str]) -> Reply {
        self.connection().cmd(args)
    }

    /// One line of `INFO`.
    #[track_caller]
    pub fn info(&self, section: &str, name: &str) -> Option<String> {
        field(&self.cmd(&["INFO", section]).good().text(), name)
    }

    /// All keys that begin so, sorted. `prefix` must not contain glob characters.
    #[track_caller]
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        self.cmd(&["KEYS", &format!("{prefix}*")]).good().sorted()
    }

    /// How often each command was called; a subcommand is `config|get`.
    #[track_caller]
    pub fn commandstats(&self) -> BTreeMap<String, u64> {
        let text = self.cmd(&["INFO", "commandstats"]).good().text();
        let line = |line: &str| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
        };
        text.lines().filter_map(line).collect()
    }

    /// Carries out a command that must not fail, in words of its own.
    #[track_caller]
    pub fn carry_out(&self, words: &[String]) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.cmd(&words).good();
    }

    /// No command was denied to any user.
    #[track_caller]
    pub fn assert_nothing_denied(&self) {
        let denied = self.cmd(&["ACL", "LOG"]).good();
        assert!(denied.array().is_empty(), "{denied:?}");
    }

    #[track_caller]
    pub fn set_config(&self, name: &str, value: &str) {
        self.cmd(&["CONFIG", "SET", name, value]).good();
    }

    /// Ends all connections of that type (`normal`, `pubsub`, `replica`, `master`) but its own; how
    /// many.
    #[track_caller]
    pub fn client_kill(&self, kind: &str) -> i64 {
        self.cmd(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"])
            .good()
            .int()
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Kills it as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again, after a kill if it runs, on the same port and directory. It comes back with
    /// its data on disk.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.spawn(), "redis-server did not start again:\n{}", self.log());
    }

    /// Stops the process where it stands: connections stay, nothing answers.
    #[track_caller]
    pub fn pause(&self) {
        self.signal(libc::SIGSTOP);
    }

    #[track_caller]
    pub fn resume(&self) {
        self.signal(libc::SIGCONT);
    }

    #[track_caller]
    fn signal(&self, signal: i32) {
        let id = self.child.as_ref().expect("it does not run").id();
        // SAFETY: kill takes no pointers; the child is not reaped yet, so the id is its own.
        assert_eq!(unsafe { libc::kill(id as i32, signal) }, 0);
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(15)..];
            eprintln!(
                "--- end of the log of redis {} ---\n{}\n---",
                self.port(),
                tail.join("\n")
            );
        }
    }
}

/// The user that `docs/cluster.md` tells operators to make, with this prefix and password instead
/// of those shown there. The commands are that for a server alone, the later one for a node of a
/// cluster, and that for a sentinel.
#[track_caller]
pub fn documented_user(prefix: &str, password: &str) -> [Vec<String>; 3] {
    let document = include_str!("../../../docs/cluster.md");
    let section = document.split_once("\n## Securing Redis\n").expect("a section").1;
    let line = |line: &str| {
        let words = line.strip_prefix("ACL ")?.split(' ');
        let words = words.map(|word| word.replace("shardgate:", prefix).replace("PASSWORD", password));
        Some(std::iter::once("ACL".to_owned()).chain(words).collect())
    };
    let lines: Vec<Vec<String>> = section.lines().filter_map(line).collect();
    lines.try_into().expect("three commands")
}

/// The commands that rules of an access list allow in the end, as [`Redis::commandstats`] calls
/// them.
pub fn allowed(rules: &[Vec<String>]) -> std::collections::BTreeSet<String> {
    let mut allowed = std::collections::BTreeSet::new();
    for rule in rules.iter().flatten() {
        if let Some(name) = rule.strip_prefix('+') {
            allowed.insert(name.to_owned());
        } else if let Some(name) = rule.strip_prefix('-') {
            allowed.remove(name);
        }
    }
    allowed
}

/// The value of `name:value` in a text of such lines.
fn field(text: &str, name: &str) -> Option<String> {
    let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned());
    text.lines().find_map(value)
}

/// The servers' connections to others and to each other.
#[derive(Debug, Clone, Copy, Default)]
pub struct Setup {
    /// With certificates by one authority.
    pub tls: bool,
    /// Of the default user, `requirepass`.
    pub password: Option<&'static str>,
    /// Sentinels want the password too.
    pub sentinels_want_it: bool,
}

impl Setup {
    fn certificates(self) -> Option<Arc<Certificates>> {
        self.tls.then(Certificates::make)
    }

    /// Lines for each server.
    fn lines(self) -> Vec<(&'static str, &'static str)> {
        let mut lines = Vec::new();
        if let Some(password) = self.password {
            lines.extend([("requirepass", password), ("masterauth", password)]);
        }
        if self.tls {
            lines.push(("tls-replication", "yes"));
        }
        lines
    }

    /// An address with the right scheme and the password.
    fn url(self, kind: &str, nodes: &[Redis]) -> String {
        let addrs: Vec<String> = nodes
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.service_port()))
            .collect();
        let tls = if self.tls { "s" } else { "" };
        let password = self
            .password
            .map_or_else(String::new, |password| format!(":{password}@"));
        format!("redis{tls}-{kind}://{password}{}", addrs.join(","))
    }

    fn url_as(self, user: &str, password: &str, kind: &str, nodes: &[Redis]) -> String {
        let open = Setup { password: None, ..self };
        open.url(kind, nodes).replace("://", &format!("://{user}:{password}@"))
    }
}
