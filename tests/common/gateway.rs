//! One gateway as a child process.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::{Client, Response};
use super::{DEADLINE, eventually};

pub(super) const PROGRAM: &str = env!("CARGO_BIN_EXE_shardgate");

/// Arguments with which a drain lasts as long as a test needs it: see [`Gateway::crowd`].
pub const SLOW_DRAIN: [&str; 4] = ["--drain-timeout", "1h", "--drain-per-second", "1"];

/// The child's stderr so far.
#[derive(Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Default)]
struct LogState {
    lines: Vec<String>,
    ended: bool,
}

impl Log {
    fn follow(self: Arc<Self>, from: impl Read + Send + 'static) -> JoinHandle<()> {
        std::thread::spawn(move || {
            for line in BufReader::new(from).lines() {
                let Ok(line) = line else { break };
                self.state.lock().unwrap().lines.push(line);
                self.changed.notify_all();
            }
            self.state.lock().unwrap().ended = true;
            self.changed.notify_all();
        })
    }

    /// The first line after the first `skip` ones that contains `text`; `None` once no further line
    /// can come.
    fn wait_for(&self, skip: usize, text: &str) -> Option<String> {
        let until = Instant::now() + DEADLINE;
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(line) = state.lines.iter().skip(skip).find(|line| line.contains(text)) {
                return Some(line.clone());
            }
            let left = until.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    fn text(&self) -> String {
        self.state.lock().unwrap().lines.join("\n")
    }
}

/// A program of this project that sees none of our own variables.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SHARDGATE_") {
            command.env_remove(name);
        }
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// How a run ended that was not meant to last.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the gateway with exactly these arguments to its end.
#[track_caller]
pub fn run_to_exit(args: &[&str]) -> Ended {
    let mut command = command(PROGRAM);
    command.args(args);
    run_command(command)
}

/// Runs any command to its end. One that does not end is killed, and the test fails.
#[track_caller]
pub fn run_command(mut command: Command) -> Ended {
    let mut child = command.spawn().unwrap();
    let log = Arc::new(Log::default());
    let errors = Arc::clone(&log).follow(child.stderr.take().unwrap());
    let mut stdout = child.stdout.take().unwrap();
    let output = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stdout.read_to_string(&mut text);
        text
    });
    let status = wait(&mut child);
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let stdout = output.join().unwrap();
    errors.join().unwrap();
    let status = status.unwrap_or_else(|| panic!("still runs: {command:?}\n{}", log.text()));
    Ended {
        code: status.code(),
        stdout,
        stderr: log.text(),
    }
}

fn wait(child: &mut Child) -> Option<ExitStatus> {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > until {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether this kernel has what the ring engine needs.
pub fn has_ring() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let mut command = command(PROGRAM);
        command.args([
            "--listen",
            "127.0.0.1:0",
            "--engine",
            "ring",
            "--shards",
            "1",
            "--cpus",
            "none",
        ]);
        match Gateway::try_spawn(command) {
            Ok(_) => true,
            Err(ended) if ended.stderr.contains("ring engine cannot run here") => {
                eprintln!("SKIPPED: {}", ended.stderr);
                false
            }
            Err(ended) => panic!("{ended:?}"),
        }
    })
}

/// A gateway that is ready. Dropping it kills and reaps it, and shows its log if the test failed.
pub struct Gateway {
    child: Child,
    pub addr: SocketAddr,
    pub id: String,
    log: Arc<Log>,
    log_reader: Option<JoinHandle<()>>,
    reaped: bool,
    /// The clients' TLS, if they use it.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

impl Gateway {
    /// Starts a gateway with these arguments, besides a port of the kernel's choice and two shards
    /// that are not pinned.
    #[track_caller]
    pub fn start(args: &[&str]) -> Gateway {
        Gateway::start_with_env(args, &[])
    }

    #[track_caller]
    pub fn start_with_env(args: &[&str], env: &[(&str, &str)]) -> Gateway {
        let mut command = command(PROGRAM);
        for (flag, value) in [("--listen", "127.0.0.1:0"), ("--shards", "2"), ("--cpus", "none")] {
            if !args.contains(&flag) {
                command.args([flag, value]);
            }
        }
        command.args(args).envs(env.iter().copied());
        Gateway::try_spawn(command).unwrap_or_else(|ended| panic!("did not start with {args:?}: {ended:#?}"))
    }

    /// Starts a gateway that listens at this address, with its log elsewhere: only its answers show
    /// that it is there.
    #[track_caller]
    pub fn spawn_unheard(mut command: Command, stderr: Stdio, addr: SocketAddr) -> Gateway {
        let child = command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        let gateway = Gateway {
            child,
            addr,
            id: String::new(),
            log: Arc::default(),
            log_reader: None,
            reaped: false,
            tls: None,
        };
        eventually("it listens", || std::net::TcpStream::connect(addr).is_ok());
        gateway
    }

    /// Starts any command that becomes a gateway.
    pub fn try_spawn(mut command: Command) -> Result<Gateway, Ended> {
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let log = Arc::new(Log::default());
        let log_reader = Arc::clone(&log).follow(child.stderr.take().unwrap());
        let ready = log.wait_for(0, "Ready");
        let listening = log.wait_for(0, " listening on ");
        let (Some(_), Some(line)) = (ready, listening) else {
            let status = wait(&mut child);
            let _ = child.kill();
            let _ = child.wait();
            log_reader.join().unwrap();
            return Err(Ended {
                code: status.and_then(|status| status.code()),
                stdout: String::new(),
                stderr: log.text(),
            });
        };
        let (before, addr) = line.rsplit_once(" listening on ").unwrap();
        let id = before.rsplit_once("gateway ").unwrap().1.to_owned();
        Ok(Gateway {
            // None on a Unix socket.
            addr: addr.trim().parse().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0))),
            id,
            child,
            log,
            log_reader: Some(log_reader),
            reaped: false,
            tls: None,
        })
    }

    /// A new connection as this user, after its `welcome`.
    #[track_caller]
    pub fn connect(&self, user: &str) -> Client {
        let mut client = self.upgrade(&format!("/ws?user={}", super::url_encode(user)));
        let welcome = client.recv_json();
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        assert_eq!(welcome["userId"], user, "{welcome}");
        client
    }

    /// With [`SLOW_DRAIN`]: so many clients that a drain notifies before later ones, one a second.
    /// While they are there, the drain goes on and no other client gets notice.
    #[track_caller]
    pub fn crowd(&self, seconds: usize) -> Vec<Client> {
        (0..seconds).map(|n| self.connect(&format!("crowd{n}"))).collect()
    }

    /// A new WebSocket at this path, after its `101`.
    #[track_caller]
    pub fn upgrade(&self, path: &str) -> Client {
        let mut client = self.tcp();
        client.send_upgrade(path, "");
        let answer = client.read_head();
        assert_eq!(answer.status, 101, "{answer:?}");
        client
    }

    /// A new silent connection.
    #[track_caller]
    pub fn tcp(&self) -> Client {
        let client = Client::connect(self.addr);
        match &self.tls {
            None => client,
            Some(tls) => client.over_tls(Arc::clone(tls)),
        }
    }

    /// The answer to one handshake that may be refused.
    #[track_caller]
    pub fn try_upgrade(&self, path: &str, extra_fields: &str) -> Response {
        let mut client = self.tcp();
        client.send_upgrade(path, extra_fields);
        client.read_response()
    }

    /// One GET on a connection of its own.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path)
    }

    #[track_caller]
    pub fn request(&self, method: &str, path: &str) -> Response {
        let mut client = self.tcp();
        client.send_raw(
            format!(
                "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
                self.addr
            )
            .as_bytes(),
        );
        if method == "HEAD" {
            client.read_head()
        } else {
            client.read_response()
        }
    }

    /// `/stats` or `/metrics`, with all that happened before this call.
    #[track_caller]
    pub fn numbers(&self, path: &str) -> Response {
        super::numbers_from_now_on(|| self.get(path))
    }

    #[track_caller]
    pub fn stats(&self) -> Value {
        let answer = self.numbers("/stats");
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str(&answer.body).unwrap()
    }

    /// The sum over all shards of the samples of one metric that have all these labels.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.numbers("/metrics").body;
        let mut found = false;
        let mut sum = 0.0;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (metric, inside) = series.split_once('{').unwrap_or((series, ""));
            if metric == name && labels.iter().all(|label| inside.contains(label)) {
                found = true;
                sum += value.parse::<f64>().unwrap();
            }
        }
        assert!(found, "no {name} with {labels:?} in\n{text}");
        sum
    }

    /// Waits until no client is connected and the tables are empty.
    #[track_caller]
    pub fn wait_until_empty(&self) {
        eventually("0 connections and 0 users", || {
            let stats = self.stats();
            stats["connections"] == 0 && stats["users"] == 0
        });
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: i32) {
        assert!(!self.reaped);
        // SAFETY: kill takes no pointers; the child is not reaped yet, so the id is its own.
        let result = unsafe { libc::kill(self.child.id() as i32, signal) };
        assert_eq!(result, 0);
    }

    /// Kills it as a crash does, without any goodbye.
    pub fn kill(&mut self) {
        if !self.reaped {
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.reaped = true;
        }
    }

    pub fn is_running(&mut self) -> bool {
        let ended = self.child.try_wait().unwrap().is_some();
        self.reaped |= ended;
        !ended
    }

    /// How many lines the log has, for [`Gateway::wait_for_log_after`].
    pub fn log_lines(&self) -> usize {
        self.log.state.lock().unwrap().lines.len()
    }

    #[track_caller]
    pub fn wait_for_log(&self, text: &str) -> String {
        self.wait_for_log_after(0, text)
    }

    #[track_caller]
    pub fn wait_for_log_after(&self, lines: usize, text: &str) -> String {
        self.log
            .wait_for(lines, text)
            .unwrap_or_else(|| panic!("never logged: {text:?}\n{}", self.log.text()))
    }

    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits for its end; the exit code.
    #[track_caller]
    pub fn wait_for_exit(&mut self) -> i32 {
        let status = wait(&mut self.child).unwrap_or_else(|| panic!("still runs\n{}", self.log.text()));
        self.reaped = true;
        status.code().unwrap_or_else(|| panic!("{status}\n{}", self.log.text()))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
        if let Some(reader) = self.log_reader.take() {
            let _ = reader.join();
        }
        let log = self.log.text();
        if std::thread::panicking() {
            eprintln!("--- log of the gateway ---\n{log}\n---");
        } else {
            // Debug builds check invariants; a panic of a shard must not go unseen.
            assert!(!log.contains("panicked at"), "the gateway panicked:\n{log}");
        }
    }
}
