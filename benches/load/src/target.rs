//! Where the gateways are, and who connects to which.
//!
//! Duty: the words of `--url` to [`Targets`]. The rule: user i connects to target `i % n`. So
//! connections are spread evenly. Users with neighbouring numbers, as the two of a `direct` pair,
//! are never on the same target when there are several. Pure but for the resolver.

use std::net::SocketAddr;

use crate::dialect::Dialect;
use crate::resolve::resolve;

/// One gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) url: String,
    /// Host and port, for the `Host` header.
    pub(crate) host: String,
    /// The path, and the query if there is one.
    pub(crate) path: String,
    pub(crate) address: SocketAddr,
    /// `wss://`
    pub(crate) tls: bool,
    /// The protocol, by the scheme.
    pub(crate) dialect: Dialect,
}

/// All gateways of a run, in the order of the command line. Not empty, once the command line is
/// checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Targets(Vec<Target>);

impl Targets {
    /// Reads the values of all `--url` flags; one value may hold several, with commas between them.
    ///
    /// # Errors
    /// The faulty target and its fault, as one line.
    pub(crate) fn parse(values: &[String]) -> Result<Self, String> {
        let urls: Vec<&str> = values.iter().flat_map(|value| value.split(',')).collect();
        let first = urls
            .first()
            .ok_or("--url is missing: where is the server? (--url ws://127.0.0.1:8080/ws)")?;
        let scheme = |url: &str| url.split_once("://").map(|(scheme, _)| scheme.to_owned());
        if let Some(other) = urls.iter().find(|url| {
            let (one, other) = (scheme(first), scheme(url));
            one.is_some() && other.is_some() && one != other
        }) {
            return Err(format!(
                "--url {first} and --url {other} have different schemes: one run measures one kind of listener"
            ));
        }
        let mut targets: Vec<Target> = vec![];
        for url in urls {
            let say = |why: String| format!("--url {url}: {why}");
            if url.is_empty() {
                return Err(say(
                    "nothing where an address should be (write a comma in a path as %2C)".to_owned(),
                ));
            }
            let target = parse_url(url).map_err(say)?;
            if targets.iter().any(|t| t.host == target.host && t.path == target.path) {
                return Err(say("is there twice; give every gateway once".to_owned()));
            }
            targets.push(target);
        }
        Ok(Self(targets))
    }

    /// The gateway of user number `user`.
    pub(crate) fn of(&self, user: usize) -> &Target {
        &self.0[user % self.0.len()]
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them, as `--url` takes them.
    pub(crate) fn urls(&self) -> String {
        self.0.iter().map(|target| &*target.url).collect::<Vec<_>>().join(",")
    }

    /// The protocol of all targets.
    pub(crate) fn dialect(&self) -> Dialect {
        self.0.first().map_or_else(Dialect::default, |target| target.dialect)
    }

    /// Whether all speak TLS; else none does.
    pub(crate) fn are_tls(&self) -> bool {
        self.0.iter().all(|target| target.tls)
    }

    /// Whether all are on 127.0.0.0/8, where source addresses can be chosen freely.
    pub(crate) fn are_loopback(&self) -> bool {
        self.0
            .iter()
            .all(|t| t.address.is_ipv4() && t.address.ip().is_loopback())
    }
}

fn parse_url(url: &str) -> Result<Target, String> {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let dialect = Dialect::from_scheme(scheme).ok_or("must be like ws://127.0.0.1:8080/ws")?;
    let tls = scheme == "wss";
    let (host, path) = match rest.find(['/', '?']) {
        Some(at) => rest.split_at(at),
        None => (rest, "/ws"),
    };
    let path = if path.starts_with('?') {
        format!("/{path}")
    } else {
        path.to_owned()
    };
    if !path.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("the path has characters that need %-encoding".to_owned());
    }
    Ok(Target {
        url: url.to_owned(),
        host: host.to_owned(),
        path,
        address: resolve(host, if tls { 443 } else { 80 })?,
        tls,
        dialect,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(values: &[&str]) -> Result<Targets, String> {
        Targets::parse(&values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn several_flags_and_commas_are_one_list() {
        let list = targets(&["ws://127.0.0.1:1/ws,ws://127.0.0.1:2", "ws://[::1]:3?a=b"]).unwrap();
        assert_eq!(list.len(), 3);
        assert_eq!(list.urls(), "ws://127.0.0.1:1/ws,ws://127.0.0.1:2,ws://[::1]:3?a=b");
        let places: Vec<_> = (0..4)
            .map(|user| (&*list.of(user).host, &*list.of(user).path))
            .collect();
        assert_eq!(
            places,
            [
                ("127.0.0.1:1", "/ws"),
                ("127.0.0.1:2", "/ws"),
                ("[::1]:3", "/?a=b"),
                ("127.0.0.1:1", "/ws")
            ]
        );
        assert!(!list.are_loopback(), "127.0.0.0/8 only");
        assert_eq!(list.of(2).address.port(), 3);
        assert!(!list.are_tls() && targets(&["wss://127.0.0.1:1"]).unwrap().are_tls());
    }

    #[test]
    fn pairs_are_apart_and_everything_is_even() {
        for n in 2..8 {
            let values: Vec<String> = (1..=n).map(|port| format!("ws://127.0.0.1:{port}/ws")).collect();
            let list = Targets::parse(&values).unwrap();
            let mut users = vec![0; n + 1];
            for user in 0..n * 20 {
                assert_ne!(
                    list.of(user & !1),
                    list.of(user | 1),
                    "the pair of {user} with {n} gateways"
                );
                users[usize::from(list.of(user).address.port())] += 1;
            }
            assert!(users[1..].iter().all(|count| *count == 20), "{users:?}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (values, part) in [
            (&[][..], "--url is missing"),
            (&["ws://127.0.0.1:1/ws,"], "%2C"),
            (&["127.0.0.1:1"], "must be like ws://"),
            (&["ws://127.0.0.1:1/ws", "http://127.0.0.1:2/ws"], "different schemes"),
            (&["ws://127.0.0.1:1/ws,wss://127.0.0.1:2/ws"], "different schemes"),
            (&["ws://127.0.0.1:1/ws", "ws://127.0.0.1:1"], "twice"),
            (&["ws://127.0.0.1:99999/ws"], "cannot resolve 127.0.0.1:99999"),
        ] {
            let why = targets(values).err().unwrap_or_default();
            assert!(why.contains(part), "{values:?} -> {why:?}");
        }
    }
}
