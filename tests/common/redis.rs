//! Real `redis-server` processes: one alone, one with TLS, a master under sentinels, a cluster of six.
//!
//! Each listens on 127.0.0.1 in a directory of its own and keeps nothing on disk unless told to. Ports lie below the range
//! from which the kernel takes the ports of outgoing connections, and are claimed in the abstract socket namespace, so
//! that tests which run at the same time stay apart, also while a server is down between [`Redis::kill`] and
//! [`Redis::restart`].

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{DEADLINE, eventually};

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Simple(String),
    Error(String),
    Int(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Reply>),
}

impl Reply {
    /// The text of a simple string, a bulk string or an error.
    #[track_caller]
    pub fn text(&self) -> String {
        match self {
            Reply::Simple(text) | Reply::Error(text) => text.clone(),
            Reply::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            other => panic!("no text: {other:?}"),
        }
    }

    #[track_caller]
    pub fn int(&self) -> i64 {
        match self {
            Reply::Int(number) => *number,
            other => panic!("no integer: {other:?}"),
        }
    }

    #[track_caller]
    pub fn array(&self) -> &[Reply] {
        match self {
            Reply::Array(items) => items,
            other => panic!("no array: {other:?}"),
        }
    }

    /// The texts of an array, sorted: keys, members, fields.
    #[track_caller]
    pub fn sorted(&self) -> Vec<String> {
        let mut texts: Vec<String> = self.array().iter().map(Reply::text).collect();
        texts.sort_unstable();
        texts
    }

    pub fn is_error(&self) -> bool {
        matches!(self, Reply::Error(_))
    }

    /// Itself, unless it is an error.
    #[track_caller]
    pub fn good(self) -> Reply {
        assert!(!self.is_error(), "{self:?}");
        self
    }
}

/// A connection that waits for each answer.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(port: u16, within: Duration) -> std::io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), within)?;
        stream.set_read_timeout(Some(within))?;
        stream.set_write_timeout(Some(within))?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream: BufReader::new(stream),
        })
    }

    pub fn try_cmd(&mut self, args: &[&str]) -> std::io::Result<Reply> {
        let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
        for arg in args {
            bytes.extend(format!("${}\r\n{arg}\r\n", arg.len()).bytes());
        }
        self.stream.get_mut().write_all(&bytes)?;
        self.read()
    }

    #[track_caller]
    pub fn cmd(&mut self, args: &[&str]) -> Reply {
        self.try_cmd(args).unwrap_or_else(|error| panic!("{args:?}: {error}"))
    }

    fn read(&mut self) -> std::io::Result<Reply> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        let (kind, rest) = line.split_at(1);
        let number = || rest.parse::<i64>().map_err(std::io::Error::other);
        Ok(match kind {
            "+" => Reply::Simple(rest.into()),
            "-" => Reply::Error(rest.into()),
            ":" => Reply::Int(number()?),
            "$" | "*" if rest == "-1" => Reply::Nil,
            "$" => {
                let mut bytes = vec![0; number()? as usize + 2];
                self.stream.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                Reply::Bulk(bytes)
            }
            "*" => {
                let items = (0..number()?).map(|_| self.read()).collect::<Result<_, _>>()?;
                Reply::Array(items)
            }
            _ => return Err(std::io::Error::other(format!("not RESP2: {line}"))),
        })
    }
}

/// A port that this test alone uses while it holds the claim; its cluster bus port (10,000 above) is free too.
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
    _dir: tempfile::TempDir,
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl Certificates {
    fn make() -> Arc<Certificates> {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
        let dir = tempfile::Builder::new().prefix("shardgate-tls-").tempdir().unwrap();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca_params = CertificateParams::new(Vec::new()).unwrap();
        ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca_params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        ca_params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "shardgate test authority");
        let ca = ca_params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::from_params(&ca_params, &ca_key);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
        let cert = params.signed_by(&key, &issuer).unwrap();
        let write = |name: &str, text: String| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        Arc::new(Certificates {
            ca: write("ca.pem", ca.pem()),
            cert: write("server.pem", cert.pem()),
            key: write("server.key", key.serialize_pem()),
            _dir: dir,
        })
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

    /// Starts one with these lines in `redis.conf`, such as `("requirepass", "x")` or `("appendonly", "yes")`.
    #[track_caller]
    pub fn with_config(config: &[(&str, &str)]) -> Redis {
        Redis::launch(config, None, false)
    }

    /// Starts one that speaks TLS on the port of [`Redis::url`], with a certificate by [`Redis::ca`].
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
                format!("tls-ca-cert-file {}", certificates.ca.display()),
                format!("tls-cert-file {}", certificates.cert.display()),
                format!("tls-key-file {}", certificates.key.display()),
                "tls-auth-clients no".to_owned(),
            ]);
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
            // A server that wants a password, a permission or a master is there; one that loads is not yet.
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
        &self.tls.as_ref().expect("it does not speak TLS").1.ca
    }

    /// What the server wrote to its log.
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

    /// Nobody was denied anything.
    #[track_caller]
    pub fn assert_nothing_denied(&self) {
        let denied = self.cmd(&["ACL", "LOG"]).good();
        assert!(denied.array().is_empty(), "{denied:?}");
    }

    #[track_caller]
    pub fn set_config(&self, name: &str, value: &str) {
        self.cmd(&["CONFIG", "SET", name, value]).good();
    }

    /// Ends all connections of that type (`normal`, `pubsub`, `replica`, `master`) but its own; how many.
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

    /// Starts it again, after a kill if it runs, on the same port and directory. It comes back with what it wrote to disk.
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

/// The user that the README tells operators to make, with this prefix and password instead of those of the README: the
/// command for a server alone, that for a node of a cluster, which comes after, and that for a sentinel.
#[track_caller]
pub fn documented_user(prefix: &str, password: &str) -> [Vec<String>; 3] {
    let readme = include_str!("../../README.md");
    let section = readme.split_once("**Securing Redis.**").expect("a section").1;
    let line = |line: &str| {
        let words = line.strip_prefix("ACL ")?.split(' ');
        let words = words.map(|word| word.replace("shardgate:", prefix).replace("PASSWORD", password));
        Some(std::iter::once("ACL".to_owned()).chain(words).collect())
    };
    let lines: Vec<Vec<String>> = section.lines().filter_map(line).collect();
    lines.try_into().expect("three commands")
}

/// The commands that rules of an access list allow in the end, as [`Redis::commandstats`] calls them.
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

/// How the servers of a system talk, with others and with each other.
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

/// A master, a replica, and three sentinels that watch over them.
pub struct Sentinels {
    /// The master of the beginning first.
    pub nodes: Vec<Redis>,
    pub sentinels: Vec<Redis>,
    setup: Setup,
}

impl Sentinels {
    pub const MASTER: &str = "mymaster";

    /// Starts all, and waits until every sentinel knows the others and the replica.
    #[track_caller]
    pub fn start() -> Sentinels {
        Sentinels::start_with(Setup::default())
    }

    #[track_caller]
    pub fn start_with(setup: Setup) -> Sentinels {
        let certificates = setup.certificates();
        let launch = |config: &[(&str, &str)]| Redis::launch(config, certificates.as_ref(), false);
        let mut lines = setup.lines();
        let master = launch(&lines);
        let master_port = master.service_port().to_string();
        let replica_of = format!("127.0.0.1 {master_port}");
        let replica = launch(&[&lines[..], &[("replicaof", &replica_of)]].concat());
        eventually("the replica is in sync", || in_sync(&replica));
        let monitor = format!("monitor {} 127.0.0.1 {master_port} 2", Self::MASTER);
        let down = format!("down-after-milliseconds {} 700", Self::MASTER);
        let timeout = format!("failover-timeout {} 3000", Self::MASTER);
        let mut config = vec![
            ("sentinel", monitor.as_str()),
            ("sentinel", down.as_str()),
            ("sentinel", timeout.as_str()),
        ];
        let auth = setup
            .password
            .map(|password| format!("auth-pass {} {password}", Self::MASTER));
        config.extend(auth.as_deref().map(|auth| ("sentinel", auth)));
        let among = setup.password.map(|password| format!("sentinel-pass {password}"));
        if setup.sentinels_want_it {
            config.extend(among.as_deref().map(|among| ("sentinel", among)));
        }
        lines.retain(|(name, _)| *name == "tls-replication" || *name == "requirepass" && setup.sentinels_want_it);
        config.extend(lines);
        let sentinels: Vec<Redis> = (0..3)
            .map(|_| Redis::launch(&config, certificates.as_ref(), true))
            .collect();
        eventually("every sentinel knows the others and the replica", || {
            sentinels.iter().all(|sentinel| {
                let master = sentinel.cmd(&["SENTINEL", "MASTER", Self::MASTER]);
                let texts: Vec<String> = master.array().iter().map(Reply::text).collect();
                let is = |name: &str, value: &str| texts.chunks(2).any(|pair| pair == [name, value]);
                is("num-other-sentinels", "2") && is("num-slaves", "1") && is("flags", "master")
            })
        });
        Sentinels {
            nodes: vec![master, replica],
            sentinels,
            setup,
        }
    }

    /// With the password.
    pub fn url(&self) -> String {
        format!("{}/{}", self.setup.url("sentinel", &self.sentinels), Self::MASTER)
    }

    /// [`Sentinels::url`] with these credentials.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        let url = self.setup.url_as(user, password, "sentinel", &self.sentinels);
        format!("{url}/{}", Self::MASTER)
    }

    /// The port of the master, as the first sentinel that runs says.
    #[track_caller]
    pub fn master_addr(&self) -> u16 {
        let sentinel = self.sentinels.iter().find(|s| s.is_running()).expect("no sentinel");
        let answer = sentinel.cmd(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::MASTER]);
        answer.array()[1].text().parse().unwrap()
    }

    /// The master, as the first sentinel that runs says.
    #[track_caller]
    pub fn master(&self) -> &Redis {
        let port = self.master_addr();
        self.nodes.iter().find(|node| node.service_port() == port).unwrap()
    }

    /// Kills the master; its index in `nodes`.
    #[track_caller]
    pub fn kill_master(&mut self) -> usize {
        let port = self.master_addr();
        let at = self.nodes.iter().position(|node| node.service_port() == port).unwrap();
        self.nodes[at].kill();
        at
    }

    /// Waits until a node that runs is the master by its own word and by that of every sentinel that runs.
    #[track_caller]
    pub fn wait_for_master(&self) {
        eventually("a node took over", || {
            let running = self.sentinels.iter().filter(|s| s.is_running());
            let mut ports: Vec<u16> = running
                .map(|sentinel| {
                    let answer = sentinel.cmd(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::MASTER]);
                    answer.array()[1].text().parse().unwrap()
                })
                .collect();
            ports.dedup();
            // While they disagree, it is none of the nodes.
            let node = self.nodes.iter().find(|node| ports == [node.service_port()]);
            node.is_some_and(|node| node.is_running() && node.info("replication", "role").as_deref() == Some("master"))
        });
    }
}

/// Whether a replica has all that its master has.
fn in_sync(replica: &Redis) -> bool {
    replica.info("replication", "master_link_status").as_deref() == Some("up")
}

/// Three masters with a replica each.
pub struct Cluster {
    /// At first 0 to 2 are masters, and 3 to 5 their replicas in this order.
    pub nodes: Vec<Redis>,
    ids: Vec<String>,
    setup: Setup,
}

impl Cluster {
    pub const SLOTS: u16 = 16_384;

    /// Starts all, and waits until all say that all is well and the replicas are in sync.
    #[track_caller]
    pub fn start() -> Cluster {
        Cluster::start_with(Setup::default())
    }

    #[track_caller]
    pub fn start_with(setup: Setup) -> Cluster {
        let mut config = vec![
            ("cluster-enabled", "yes"),
            ("cluster-config-file", "nodes.conf"),
            ("cluster-node-timeout", "1000"),
            ("cluster-replica-validity-factor", "0"),
            ("cluster-allow-replica-migration", "no"),
        ];
        config.extend(setup.lines());
        if setup.tls {
            config.push(("tls-cluster", "yes"));
        }
        let certificates = setup.certificates();
        let nodes: Vec<Redis> = (0..6)
            .map(|_| Redis::launch(&config, certificates.as_ref(), false))
            .collect();
        let ids: Vec<String> = nodes.iter().map(|node| node.cmd(&["CLUSTER", "MYID"]).text()).collect();
        for (n, master) in nodes[..3].iter().enumerate() {
            let edge = |n: usize| n as u16 * (Self::SLOTS / 3 + 1);
            let (first, last) = (edge(n), edge(n + 1).min(Self::SLOTS) - 1);
            master
                .cmd(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()])
                .good();
        }
        for (n, node) in nodes.iter().enumerate() {
            node.cmd(&["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()]).good();
        }
        // Everybody greets everybody: gossip would do the rest, but only in its time.
        for (n, node) in nodes.iter().enumerate() {
            for other in &nodes[n + 1..] {
                node.cmd(&["CLUSTER", "MEET", "127.0.0.1", &other.service_port().to_string()])
                    .good();
            }
        }
        let cluster = Cluster { nodes, ids, setup };
        eventually("all nodes know each other", || {
            cluster.nodes.iter().all(|node| {
                let known = node.cmd(&["CLUSTER", "NODES"]).text();
                cluster.ids.iter().all(|id| known.contains(id.as_str()))
                    && !known.contains("handshake")
                    && !known.contains("noaddr")
            })
        });
        for (n, replica) in cluster.nodes[3..].iter().enumerate() {
            replica.cmd(&["CLUSTER", "REPLICATE", &cluster.ids[n]]).good();
        }
        cluster.wait_until_ok();
        eventually("the replicas are in sync", || cluster.nodes[3..].iter().all(in_sync));
        eventually("everybody knows who replicates whom", || {
            cluster.nodes.iter().all(|node| {
                let known = node.cmd(&["CLUSTER", "NODES"]).text();
                known.matches(" slave ").count() + known.matches(",slave ").count() == 3
            })
        });
        cluster
    }

    /// With the password.
    pub fn url(&self) -> String {
        self.setup.url("cluster", &self.nodes)
    }

    /// [`Cluster::url`] with these credentials.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        self.setup.url_as(user, password, "cluster", &self.nodes)
    }

    /// Waits until every node that runs says that all slots are served.
    #[track_caller]
    pub fn wait_until_ok(&self) {
        eventually("cluster_state:ok everywhere", || {
            self.running()
                .all(|node| field(&node.cmd(&["CLUSTER", "INFO"]).text(), "cluster_state").as_deref() == Some("ok"))
        });
    }

    fn running(&self) -> impl Iterator<Item = &Redis> {
        self.nodes.iter().filter(|node| node.is_running())
    }

    /// The slot of a key or a sharded channel.
    pub fn slot_of(key: &str) -> u16 {
        let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
        let hashed = tag.map(|(tag, _)| tag).filter(|tag| !tag.is_empty()).unwrap_or(key);
        let crc = hashed.bytes().fold(0u16, |crc, byte| {
            (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 }
            })
        });
        crc % Self::SLOTS
    }

    /// Who serves a slot, by their own word; the one with the highest epoch, should two say so.
    fn owner_now(&self, slot: u16) -> Option<usize> {
        let mut best = None;
        for (n, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.is_running()) {
            let Ok(known) = node.try_cmd(&["CLUSTER", "NODES"], Duration::from_secs(2)) else {
                continue;
            };
            let known = known.text();
            // id addr flags master ping pong epoch link slots…
            let own = known.lines().find(|line| line.contains("myself")).unwrap();
            let words: Vec<&str> = own.split(' ').collect();
            let serves = words[8..].iter().filter(|word| !word.starts_with('[')).any(|word| {
                let (first, last) = word.split_once('-').unwrap_or((word, word));
                (first.parse().unwrap()..=last.parse().unwrap()).contains(&slot)
            });
            let epoch: u64 = words[6].parse().unwrap();
            if serves && words[2].contains("master") && best.is_none_or(|(_, other)| epoch > other) {
                best = Some((n, epoch));
            }
        }
        best.map(|(n, _)| n)
    }

    /// The index in `nodes` of who serves a slot.
    #[track_caller]
    pub fn owner_of(&self, slot: u16) -> usize {
        self.owner_now(slot).unwrap_or_else(|| panic!("nobody serves {slot}"))
    }

    /// A master other than this one.
    #[track_caller]
    pub fn another_master(&self, than: usize) -> usize {
        let is_master = |n: usize| self.nodes[n].info("replication", "role").as_deref() == Some("master");
        (0..self.nodes.len())
            .find(|&n| n != than && self.nodes[n].is_running() && is_master(n))
            .expect("no other master")
    }

    /// The first half of a migration: whoever asks `from` for a key of the slot that is not there is sent to `to` (ASK).
    #[track_caller]
    pub fn begin_migration(&self, slot: u16, from: usize, to: usize) {
        let slot = slot.to_string();
        self.nodes[to]
            .cmd(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.ids[from]])
            .good();
        self.nodes[from]
            .cmd(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.ids[to]])
            .good();
    }

    /// Moves all keys that the slot has now.
    #[track_caller]
    pub fn migrate_keys(&self, slot: u16, from: usize, to: usize) {
        let port = self.nodes[to].port().to_string();
        loop {
            let keys = self.nodes[from].cmd(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "100"]);
            let keys = keys.good().sorted();
            if keys.is_empty() {
                return;
            }
            let mut args = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "REPLACE", "KEYS"];
            args.extend(keys.iter().map(String::as_str));
            self.nodes[from].cmd(&args).good();
        }
    }

    /// The second half: the keys move, and `to` serves the slot.
    #[track_caller]
    pub fn finish_migration(&self, slot: u16, from: usize, to: usize) {
        self.migrate_keys(slot, from, to);
        // The new owner first, so that there is always one; then who else is a master.
        for n in [to, from].into_iter().chain(0..self.nodes.len()) {
            if self.nodes[n].is_running() {
                let args = ["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", &self.ids[to]];
                let answer = self.nodes[n].cmd(&args);
                assert!(
                    !answer.is_error() || answer.text().contains("only with masters"),
                    "{answer:?}"
                );
            }
        }
        eventually("the slot has moved", || self.owner_now(slot) == Some(to));
    }

    #[track_caller]
    pub fn migrate_slot(&self, slot: u16, from: usize, to: usize) {
        self.begin_migration(slot, from, to);
        self.finish_migration(slot, from, to);
    }

    /// Kills who serves this slot, and waits until its replica does and all is well again; the index of the killed one.
    #[track_caller]
    pub fn kill_master_of(&mut self, slot: u16) -> usize {
        let old = self.owner_of(slot);
        self.nodes[old].kill();
        self.wait_for_takeover(slot);
        old
    }

    /// Waits until somebody who runs serves the slot, and all is well.
    #[track_caller]
    pub fn wait_for_takeover(&self, slot: u16) {
        eventually("the replica took over", || self.owner_now(slot).is_some());
        self.wait_until_ok();
    }
}
