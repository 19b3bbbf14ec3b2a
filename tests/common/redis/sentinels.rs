//! A master, its replica, and three sentinels.

use super::*;

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

    /// These sentinels forget the master and name another server, which runs beside it.
    #[track_caller]
    pub fn name_master(&self, sentinels: &[Redis], other: &Redis) {
        for sentinel in sentinels {
            sentinel.cmd(&["SENTINEL", "REMOVE", Self::MASTER]).good();
            let port = other.service_port().to_string();
            sentinel
                .cmd(&["SENTINEL", "MONITOR", Self::MASTER, "127.0.0.1", &port, "2"])
                .good();
        }
    }

    /// The port of the master, by the first running sentinel.
    #[track_caller]
    pub fn master_addr(&self) -> u16 {
        let sentinel = self.sentinels.iter().find(|s| s.is_running()).expect("no sentinel");
        let answer = sentinel.cmd(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::MASTER]);
        answer.array()[1].text().parse().unwrap()
    }

    /// The master, by the first running sentinel.
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

    /// Waits until a node that runs is the master by its own word and by that of every sentinel
    /// that runs.
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
pub(super) fn in_sync(replica: &Redis) -> bool {
    replica.info("replication", "master_link_status").as_deref() == Some("up")
}
