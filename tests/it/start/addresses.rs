//! Where a gateway listens: ports and Unix sockets that are taken, forbidden, or claimed by several
//! at once.

use std::net::{SocketAddr, TcpListener};

use super::{PROGRAM, Starting, as_user, assert_refused, nobody};
use crate::common;
use crate::common::Gateway;
use crate::common::admin::TOKEN;
use crate::common::gateway::{command, run_command, run_to_exit};

#[test]
fn a_port_that_another_gateway_has() {
    for engine in ["epoll", "auto"] {
        let gateway = Gateway::start(&["--engine", engine]);
        let addr = gateway.addr.to_string();
        let ended = run_to_exit(&["--listen", &addr, "--engine", engine]);
        assert_refused(&ended, 1, &[&addr, "in use", "--listen"]);
        // The first one did not notice, and its port is free when it is gone.
        gateway.connect("alice").close();
        drop(gateway);
        let again = Gateway::start(&["--listen", &addr, "--engine", engine]);
        assert_eq!(again.addr.to_string(), addr);
        let ended = run_to_exit(&["--listen", &addr]);
        assert_refused(&ended, 1, &[&addr, "in use"]);
    }
}

#[test]
fn a_port_that_another_program_has() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = other.local_addr().unwrap().to_string();
    assert_refused(&run_to_exit(&["--listen", &addr]), 1, &[&addr, "in use", "--listen"]);
}

#[test]
fn an_address_of_another_host() {
    let ended = run_to_exit(&["--listen", "203.0.113.1:8080", "--insecure"]);
    assert_refused(
        &ended,
        1,
        &[
            "203.0.113.1:8080",
            "cannot listen",
            "no interface of this host has that address",
        ],
    );
}

/// A port that only root may have.
#[test]
fn a_port_below_1024() {
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if rustix::process::geteuid().is_root() && first.trim() != "0" {
        let place = tempfile::tempdir().unwrap();
        let mut sh = as_user(nobody(), &place, "");
        sh.args(["--listen", "127.0.0.1:80"]);
        assert_refused(
            &run_command(sh),
            1,
            &["cannot listen on 127.0.0.1:80", "CAP_NET_BIND_SERVICE"],
        );
    }
}

/// Whoever is on this host can hold the name in which two gateways meet; that keeps nobody out, and
/// is told.
#[test]
fn a_stranger_who_holds_the_name_of_an_address() {
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: no other user to be");
        return;
    }
    let addr = SocketAddr::from(([127, fastrand::u8(1..), fastrand::u8(..), fastrand::u8(1..255)], 8080));
    let mut squatter = command("sleep");
    squatter.arg("600").uid(65534).gid(65534);
    let name = format!("shardgate/listen/{addr}");
    let hold = move || {
        // SAFETY: plain system calls on a descriptor and a struct of this frame; nothing is
        // allocated.
        unsafe {
            let socket = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
            let mut at: libc::sockaddr_un = std::mem::zeroed();
            at.sun_family = libc::AF_UNIX as _;
            for (to, from) in at.sun_path[1..].iter_mut().zip(name.bytes()) {
                *to = from as _;
            }
            let len = size_of::<libc::sa_family_t>() + 1 + name.len();
            if libc::bind(socket, (&raw const at).cast(), len as u32) != 0 || libc::listen(socket, 1) != 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made.
    unsafe { squatter.pre_exec(hold) };
    let squatter = Starting::spawn(squatter);
    let pid = squatter.child.as_ref().unwrap().id();
    let folder = tempfile::tempdir().unwrap();
    let addr = addr.to_string();
    let env = [("RUNTIME_DIRECTORY", folder.path().to_str().unwrap())];
    let gateway = Gateway::start_with_env(&["--listen", &addr], &env);
    gateway.wait_for_log(&format!("process {pid} (sleep) of user 65534 holds"));
    gateway.connect("alice").close();
    // A second gateway is kept off all the same.
    let mut second = command(PROGRAM);
    second.args(["--listen", &addr]).envs(env);
    let words = [&addr, "in use by process", &gateway.pid().to_string()];
    assert_refused(&run_command(second), 1, &words.map(|word| word as &str));
    drop((gateway, squatter));
}

/// As many as start at the same instant: one serves, all others report that the address is in use.
#[test]
fn of_many_that_start_at_once_one_serves() {
    let addr = SocketAddr::from(([127, fastrand::u8(1..), fastrand::u8(..), fastrand::u8(1..255)], 8080));
    let start = || {
        let mut command = command(PROGRAM);
        command.args(["--listen", &addr.to_string(), "--shards", "1", "--cpus", "none"]);
        Gateway::try_spawn(command)
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut serving = 0;
    for result in &results {
        match result {
            Ok(_) => serving += 1,
            Err(ended) => assert_refused(ended, 1, &[&addr.to_string(), "in use by process"]),
        }
    }
    assert_eq!(serving, 1);
}

/// A proxy on the same host needs no port: the whole gateway on a Unix socket, its shards together.
#[test]
fn clients_come_by_a_unix_socket() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    for engine in ["epoll", "auto"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.sock");
        let listen = format!("unix:{}", path.display());
        let start = || {
            let args = [
                "--listen",
                &listen,
                "--engine",
                engine,
                "--shards",
                "3",
                "--proxies",
                "unix:",
                "--insecure",
            ];
            let mut command = command(PROGRAM);
            command.args(args).args(["--cpus", "none", "--admin-token", TOKEN]);
            command
        };
        let mut gateway = Gateway::try_spawn(start()).unwrap_or_else(|ended| panic!("{ended:#?}"));
        let connect = || {
            let stream = UnixStream::connect(&path).unwrap();
            stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
            stream
        };
        let until = |stream: &mut UnixStream, word: &str| {
            let (mut text, mut piece) = (String::new(), [0; 1024]);
            while !text.contains(word) {
                let len = stream.read(&mut piece).unwrap();
                assert!(len > 0, "{word:?} did not come: {text}");
                text.push_str(&String::from_utf8_lossy(&piece[..len]));
            }
            text
        };
        // Enough for every shard to have some, and users of other shards among them.
        let users: Vec<UnixStream> = (0..24)
            .map(|n| {
                let mut stream = connect();
                let fields = "Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
                let forwarded = if n == 0 { "X-Forwarded-For: 203.0.113.9\r\n" } else { "" };
                write!(stream, "GET /ws?user=user{n} HTTP/1.1\r\n{fields}{forwarded}\r\n").unwrap();
                until(&mut stream, "\"type\":\"welcome\"");
                stream
            })
            .collect();
        let ask = |request: &str| {
            let mut stream = connect();
            write!(
                stream,
                "{request} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
            )
            .unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        };
        assert!(ask("GET /readyz").starts_with("HTTP/1.1 200"));
        let listed = ask("GET /admin/connections?user=user0");
        assert!(listed.contains("\"remoteAddr\":\"203.0.113.9:0\""), "{listed}");
        let listed = ask("GET /admin/connections?user=user1");
        assert!(
            listed.contains("\"userId\":\"user1\"") && listed.contains("\"remoteAddr\":null"),
            "{listed}"
        );
        // No other process gets there, and the first one does not notice.
        let pid = gateway.pid().to_string();
        assert_refused(&run_command(start()), 1, &[&listen, "in use by process", &pid]);
        assert!(ask("GET /livez").starts_with("HTTP/1.1 200"));
        drop(users);
        gateway.signal(libc::SIGTERM);
        assert_eq!(gateway.wait_for_exit(), 0);
        assert!(!path.exists(), "the file goes with the gateway");
        // One that is killed leaves it, and the next one takes it over.
        let mut killed = Gateway::try_spawn(start()).unwrap_or_else(|ended| panic!("{ended:#?}"));
        killed.kill();
        assert!(path.exists());
        let gateway = Gateway::try_spawn(start()).unwrap_or_else(|ended| panic!("{ended:#?}"));
        assert!(ask("GET /livez").starts_with("HTTP/1.1 200"));
        drop(gateway);
    }
}

/// A name is looked up once, at the start.
#[test]
fn clients_come_to_a_name() {
    let gateway = Gateway::start(&["--listen", "localhost:0"]);
    assert!(gateway.addr.ip().is_loopback() && gateway.addr.port() != 0);
    gateway.connect("alice").close();
    let ended = run_to_exit(&["--listen", "no-such-host.invalid:8080", "--insecure"]);
    assert_refused(&ended, 1, &["listen names no-such-host.invalid", "give an IP address"]);
    assert_refused(
        &run_to_exit(&["--listen", "gateway.example:8080"]),
        2,
        &["gateway.example:8080", "development mode", "--insecure"],
    );
}
