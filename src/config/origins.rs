//! Which web pages may open a connection: the `Origin` header against the key `origins`.
//!
//! Pure. A browser sends cookies and can reach a loopback address from any page. This check is what
//! keeps a foreign page from acting as the user. When in doubt, the origin is refused.
//!
//! An origin is scheme, host and port (RFC 6454):
//!
//! - Scheme and host are compared in ASCII lower case.
//! - A port that is the scheme's default equals none.
//! - A trailing dot in a host is another host, as it is for browsers.
//! - An international name counts in punycode only, the way browsers send it.

use std::net::Ipv6Addr;

use crate::address::local::is_local_host;

/// Decides on `Origin` headers; replaced as a whole on reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginPolicy {
    rules: Vec<Rule>,
    over_tls: bool,
    /// Without rules pages of this machine may connect as well, whatever their port.
    local: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    /// `*`
    Any,
    /// `null`: sandboxed frames, local files, some redirects.
    Null,
    Exact(Origin),
    /// `https://*.example.com`; the host is what comes after the star, with its dot:
    /// `.example.com`.
    Under(Origin),
}

/// A parsed origin; `port` is `None` only for a scheme whose default port we do not know.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

/// An entry of `origins` that is no origin.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{origin:?} {why}")]
pub struct OriginError {
    /// The entry.
    pub origin: String,
    /// The error in it.
    pub why: &'static str,
}

impl OriginPolicy {
    /// Reads the values of the key `origins`; an empty list means same origin only.
    ///
    /// # Errors
    /// The first entry that no browser could ever match, or a wildcard where none is allowed.
    pub fn parse(origins: &[String]) -> Result<OriginPolicy, OriginError> {
        let rule = |origin: &String| {
            Rule::parse(origin).map_err(|why| OriginError {
                origin: origin.chars().take(200).collect(),
                why,
            })
        };
        Ok(OriginPolicy {
            rules: origins.iter().map(rule).collect::<Result<_, _>>()?,
            over_tls: false,
            local: false,
        })
    }

    /// The policy for connections over TLS, or for plain ones. A page that came in plain text may
    /// have been forged on the way, so over TLS it is not of the same origin. Without TLS the
    /// scheme means nothing: a proxy may add TLS in front.
    #[must_use]
    pub fn over_tls(self, over_tls: bool) -> OriginPolicy {
        OriginPolicy { over_tls, ..self }
    }

    /// The same in development mode, or not. There a page of a loopback address or of `localhost`
    /// may connect without being listed: the developer's own server has another port.
    #[must_use]
    pub fn in_development(self, local: bool) -> OriginPolicy {
        OriginPolicy { local, ..self }
    }

    /// Whether a request with this `Origin` header may connect; `host` is its `Host` header.
    ///
    /// A request without `Origin` comes from no browser and is not asked about here.
    #[must_use]
    pub fn allows(&self, origin: &str, host: Option<&str>) -> bool {
        let parsed = Origin::parse(origin).ok();
        if self.rules.is_empty() {
            let own = |(origin, host): (Origin, &str)| origin.is_of(host) && (!self.over_tls || origin.is_secure());
            let is_local = |origin: &Origin| self.local && origin.is_local();
            return parsed.as_ref().is_some_and(is_local) || parsed.zip(host).is_some_and(own);
        }
        self.rules.iter().any(|rule| match (rule, &parsed) {
            (Rule::Any, _) => true,
            (Rule::Null, _) => origin == "null",
            (Rule::Exact(allowed), Some(origin)) => allowed == origin,
            (Rule::Under(parent), Some(origin)) => origin.is_under(parent),
            (_, None) => false,
        })
    }
}

impl Rule {
    fn parse(text: &str) -> Result<Rule, &'static str> {
        match text {
            "*" => return Ok(Rule::Any),
            "null" => return Ok(Rule::Null),
            _ => {}
        }
        let Some((scheme, host)) = text.split_once("://") else {
            return Err("has no scheme: write https://app.example.com");
        };
        let Some(parent) = host.strip_prefix("*.") else {
            if host.contains('*') {
                return Err("has a wildcard that is not the whole first part of a host: write https://*.example.com");
            }
            return Origin::parse(text).map(Rule::Exact);
        };
        let mut parent = Origin::parse(&format!("{scheme}://{parent}"))?;
        if parent.port != default_port(&parent.scheme) {
            return Err("has a wildcard and a port: a wildcard stands for hosts on the default port only");
        }
        // `*.0.0.1` would be every host of 127.0.0.0/8 and many more: certainly a mistake.
        let top = parent.host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
        if top.ends_with(']') || top.parse::<u64>().is_ok() {
            return Err("has a wildcard before an address: a wildcard stands for names");
        }
        parent.host.insert(0, '.');
        Ok(Rule::Under(parent))
    }
}

impl Origin {
    fn parse(text: &str) -> Result<Origin, &'static str> {
        if !text.is_ascii() {
            return Err("is not ASCII: write an international name in punycode, xn--...");
        }
        let (scheme, authority) = text.split_once("://").ok_or("has no scheme")?;
        let mut letters = scheme.bytes();
        let scheme_is_good = letters.next().is_some_and(|first| first.is_ascii_alphabetic())
            && letters.all(|c| c.is_ascii_alphanumeric() || b"+-.".contains(&c));
        if !scheme_is_good {
            return Err("has a scheme that is none");
        }
        let scheme = scheme.to_ascii_lowercase();
        // The one origin without a host; web views of local files send it.
        if scheme == "file" && authority.is_empty() {
            return Ok(Origin {
                scheme,
                host: String::new(),
                port: None,
            });
        }
        let (host, port) = parse_authority(authority)?;
        let port = port.or(default_port(&scheme));
        Ok(Origin { scheme, host, port })
    }

    /// Whether a page of this origin talks to the very host and port that it came from.
    fn is_of(&self, host_header: &str) -> bool {
        // Only web pages have a server of their own; the scheme may differ from ours behind a TLS
        // proxy.
        let Some(default) = default_port(&self.scheme) else {
            return false;
        };
        parse_authority(host_header)
            .is_ok_and(|(host, port)| host == self.host && Some(port.unwrap_or(default)) == self.port)
    }

    /// Whether a server on this machine sent the page.
    fn is_local(&self) -> bool {
        default_port(&self.scheme).is_some() && is_local_host(&self.host)
    }

    fn is_secure(&self) -> bool {
        matches!(&*self.scheme, "https" | "wss")
    }

    /// Whether the host is one or more labels below that of the wildcard.
    fn is_under(&self, parent: &Origin) -> bool {
        // No label is empty in a parsed host, so the part before the suffix is one label or more.
        let below = self.host.strip_suffix(&parent.host);
        self.scheme == parent.scheme && self.port == parent.port && below.is_some_and(|labels| !labels.is_empty())
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

/// Host in its one canonical spelling, and the port if one is written.
fn parse_authority(text: &str) -> Result<(String, Option<u16>), &'static str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or("has an IPv6 address without its ]")?;
            // One address has many spellings; printing the parsed one gives them all the same.
            let address: Ipv6Addr = address.parse().map_err(|_| "has a bad IPv6 address")?;
            let port = match port.strip_prefix(':') {
                None if port.is_empty() => None,
                None => return Err("has something after its IPv6 address that is no port"),
                Some(port) => Some(port),
            };
            (format!("[{address}]"), port)
        }
        None => {
            let (host, port) = text
                .split_once(':')
                .map_or((text, None), |(host, port)| (host, Some(port)));
            if host.contains('@') || port.is_some_and(|port| port.contains('@')) {
                return Err("has a user name: an origin is scheme, host and port only");
            }
            if host.contains(['/', '?', '#']) {
                return Err("has a path: an origin is scheme, host and port only");
            }
            let labels = host.strip_suffix('.').unwrap_or(host);
            let label_is_good = |label: &str| {
                !label.is_empty() && label.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c))
            };
            if !labels.split('.').all(label_is_good) {
                return Err("has a host that is none");
            }
            (host.to_ascii_lowercase(), port)
        }
    };
    let port = match port {
        None => None,
        Some(digits) if digits.contains(['/', '?', '#']) => {
            return Err("has a path: an origin is scheme, host and port only");
        }
        Some(digits) if digits.bytes().all(|c| c.is_ascii_digit()) => {
            Some(digits.parse().map_err(|_| "has a port that is not from 0 to 65535")?)
        }
        Some(_) => return Err("has a port that is no number"),
    };
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(origins: &[&str]) -> OriginPolicy {
        OriginPolicy::parse(&origins.iter().map(|origin| (*origin).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn same_origin(origin: &str, host: &str) -> bool {
        policy(&[]).allows(origin, Some(host))
    }

    #[test]
    fn in_development_pages_of_this_machine_may_connect() {
        let development = policy(&[]).in_development(true);
        for origin in [
            "http://localhost:3000",
            "https://localhost",
            "http://127.0.0.1:5173",
            "http://127.8.0.1",
            "http://[::1]:8080",
            "http://[::ffff:127.0.0.1]",
        ] {
            assert!(development.allows(origin, Some("127.0.0.1:8080")), "{origin}");
            assert!(!policy(&[]).allows(origin, Some("127.0.0.1:8081")), "{origin}");
            let listed = policy(&["https://app.example"]).in_development(true);
            assert!(
                !listed.allows(origin, Some("127.0.0.1:8081")),
                "a list takes the from: {origin}"
            );
        }
        for origin in [
            "null",
            "file://",
            "http://evil.example",
            "http://localhost.evil.example",
            "http://evil.localhost",
            "http://localhost@evil.example",
            "http://0.0.0.0",
            "chrome-extension://localhost",
        ] {
            assert!(!development.allows(origin, Some("127.0.0.1:8080")), "{origin}");
        }
        assert!(development.allows("http://gateway.example", Some("gateway.example")));
    }

    #[test]
    fn same_origin_compares_host_and_port() {
        assert!(same_origin("http://127.0.0.1:8080", "127.0.0.1:8080"));
        assert!(same_origin("http://localhost:8080", "localhost:8080"));
        assert!(!same_origin("http://localhost:8080", "127.0.0.1:8080"));
        assert!(!same_origin("http://localhost:8081", "localhost:8080"));
        assert!(!same_origin("http://localhost", "localhost:8080"));
        assert!(!policy(&[]).allows("http://localhost", None));
        assert!(!same_origin("http://evil.test", ""));
    }

    #[test]
    fn the_default_port_of_the_origins_scheme_may_be_left_out() {
        assert!(same_origin("https://example.com", "example.com"));
        assert!(same_origin("https://example.com", "example.com:443"));
        assert!(same_origin("https://example.com:443", "example.com"));
        assert!(same_origin("http://example.com", "example.com:80"));
        assert!(!same_origin("http://example.com", "example.com:443"));
        assert!(!same_origin("https://example.com", "example.com:80"));
        assert!(!same_origin("https://example.com:80", "example.com"));
    }

    #[test]
    fn over_tls_a_page_in_plain_text_is_another_origin() {
        let tls = policy(&[]).over_tls(true);
        assert!(tls.allows("https://example.com", Some("example.com")));
        assert!(tls.allows("https://example.com:8443", Some("example.com:8443")));
        assert!(!tls.allows("http://example.com", Some("example.com")));
        assert!(!tls.allows("HTTP://example.com:443", Some("example.com:443")));
        assert!(!tls.allows("http://example.com:8443", Some("example.com:8443")));
        // A list can allow it.
        let listed = policy(&["http://example.com"]).over_tls(true);
        assert!(listed.allows("http://example.com", Some("gateway.example.com")));
    }

    #[test]
    fn case_does_not_count_but_a_trailing_dot_does() {
        assert!(same_origin("HTTPS://EXAMPLE.com", "example.COM"));
        assert!(same_origin("https://example.com.", "example.com."));
        assert!(!same_origin("https://example.com.", "example.com"));
        assert!(!policy(&["https://example.com"]).allows("https://example.com.", None));
        assert!(!policy(&["https://*.example.com"]).allows("https://a.example.com.", None));
        assert!(policy(&["https://Example.COM"]).allows("https://example.com", None));
    }

    #[test]
    fn ipv6_literals_have_one_spelling() {
        assert!(same_origin("http://[::1]:8080", "[::1]:8080"));
        assert!(same_origin("http://[0:0:0:0:0:0:0:1]:8080", "[::1]:8080"));
        assert!(same_origin("http://[2001:DB8::1]", "[2001:db8::1]:80"));
        assert!(!same_origin("http://[::1]:8080", "[::2]:8080"));
        assert!(policy(&["https://[2001:db8:0::1]"]).allows("https://[2001:db8::1]:443", None));
        for broken in [
            "http://[::1",
            "http://::1",
            "http://[::1]8080",
            "http://[]",
            "http://[::1%25eth0]",
        ] {
            assert!(!same_origin(broken, broken.trim_start_matches("http://")), "{broken}");
        }
    }

    #[test]
    fn null_is_never_the_same_origin() {
        assert!(!same_origin("null", "null"));
        assert!(!policy(&["https://example.com"]).allows("null", Some("example.com")));
        assert!(policy(&["https://example.com", "null"]).allows("null", None));
        assert!(!policy(&["null"]).allows("NULL", None));
        assert!(policy(&["*"]).allows("null", None));
    }

    #[test]
    fn a_list_replaces_same_origin() {
        let policy = policy(&["https://app.example.com"]);
        assert!(policy.allows("https://app.example.com", Some("gateway.example.com")));
        assert!(policy.allows("https://app.example.com:443", None));
        assert!(!policy.allows("https://gateway.example.com", Some("gateway.example.com")));
        assert!(!policy.allows("http://app.example.com", None));
        assert!(!policy.allows("https://app.example.com:8443", None));
    }

    #[test]
    fn a_wildcard_is_one_or_more_labels_on_the_default_port() {
        let policy = policy(&["https://*.example.com"]);
        assert!(policy.allows("https://a.example.com", None));
        assert!(policy.allows("https://a.b.example.com:443", None));
        assert!(policy.allows("https://A.EXAMPLE.com", None));
        for foreign in [
            "https://example.com",
            "https://.example.com",
            "https://a..example.com",
            "https://evil-example.com",
            "https://evilexample.com",
            "https://example.com.evil.test",
            "https://a.example.com.evil.test",
            "https://a.example.com:8443",
            "https://a.example.com:80",
            "http://a.example.com",
            "http://a.example.com:443",
            "https://evil.test/.example.com",
            "https://evil.test#.example.com",
            "https://evil.test?.example.com",
            "https://evil.test\\.example.com",
            "https://user@a.example.com",
            "https://a.example.com@evil.test",
            "https://evil.test:443@a.example.com",
            "https://evil.test:443/.example.com",
            "https://a.example.com/",
            "https://a.example.com:",
            "https://a.example.com:443x",
            "https://a.example.com:+443",
            "https://a.example.com:65979",
            "https://*.example.com",
            "https://a.example.com https://b.example.com",
            "https://a.example.com,https://b.example.com",
            " https://a.example.com",
            "https://a.example.com\r\n",
            "https:a.example.com",
            "a.example.com",
            "",
        ] {
            assert!(!policy.allows(foreign, Some("a.example.com")), "{foreign:?}");
        }
    }

    #[test]
    fn international_names_count_in_punycode() {
        let policy = policy(&["https://xn--bcher-kva.example"]);
        assert!(policy.allows("https://XN--bcher-kva.example", None));
        assert!(!policy.allows("https://bücher.example", None));
        assert!(!same_origin("https://bücher.example", "bücher.example"));
        // The Kelvin sign becomes an ASCII k in Unicode lower case.
        assert!(!same_origin("https://\u{212a}.example", "k.example"));
    }

    #[test]
    fn other_schemes_match_exactly_and_are_never_the_same_origin() {
        let policy = policy(&["capacitor://localhost", "file://", "chrome-extension://abcdef"]);
        assert!(policy.allows("capacitor://localhost", None));
        assert!(policy.allows("file://", None));
        assert!(policy.allows("chrome-extension://abcdef", None));
        assert!(!policy.allows("chrome-extension://abcdeg", None));
        assert!(!same_origin("capacitor://localhost", "localhost"));
        assert!(!same_origin("file://", ""));
    }

    #[test]
    fn star_allows_everything() {
        for origin in ["https://example.com", "null", "file://", "garbage", ""] {
            assert!(policy(&["*"]).allows(origin, None), "{origin:?}");
        }
    }

    #[test]
    fn entries_that_can_never_match_are_refused() {
        for entry in [
            "",
            "example.com",
            "*.example.com",
            "https://",
            "https://*",
            "https://*.",
            "https://*.*.example.com",
            "https://a.*.example.com",
            "https://a*.example.com",
            "https://*example.com",
            "https://*.example.com:8443",
            "https://*.0.0.1",
            "https://*.127.0.0.1",
            "https://*.[::1]",
            "*://example.com",
            "https://example.com/",
            "https://example.com/app",
            "https://user@example.com",
            "https://user:pass@example.com",
            "https://example.com:99999",
            "https://example.com:x",
            "https://example.com:",
            "https://exa mple.com",
            "https://bücher.example",
            "1http://example.com",
            "NULL",
        ] {
            assert!(OriginPolicy::parse(&[entry.to_owned()]).is_err(), "{entry:?}");
        }
        let error = OriginPolicy::parse(&["https://*.example.com:8443".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("default port"), "{error}");
    }

    fn label() -> impl Strategy<Value = String> {
        "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?"
    }

    fn host() -> impl Strategy<Value = String> {
        proptest::collection::vec(label(), 1..4).prop_map(|labels| labels.join("."))
    }

    proptest! {
        #[test]
        fn nothing_panics(entry in any::<String>(), origin in any::<String>(), host in any::<String>()) {
            let _ = OriginPolicy::parse(&[entry]);
            let _ = policy(&[]).allows(&origin, Some(&host));
            let _ = policy(&["https://*.example.com"]).allows(&origin, Some(&host));
        }

        #[test]
        fn a_page_is_of_its_own_host_in_any_case(host in host(), port in proptest::option::of(any::<u16>()), upper in any::<bool>()) {
            let authority = port.map_or(host.clone(), |port| format!("{host}:{port}"));
            let origin = format!("https://{authority}");
            let origin = if upper { origin.to_ascii_uppercase() } else { origin };
            prop_assert!(same_origin(&origin, &authority));
            prop_assert!(policy(&[&origin]).allows(&origin, None));
            let longer = format!("x{authority}");
            prop_assert!(!same_origin(&origin, &longer));
        }

        #[test]
        fn only_hosts_below_match_a_wildcard(host in host(), prefix in "[a-z0-9.-]{0,12}") {
            let rule = policy(&[&format!("https://*.{host}.test")]);
            let below = prefix.strip_suffix('.').is_some_and(|labels| labels.split('.').all(|label| !label.is_empty()));
            prop_assert_eq!(rule.allows(&format!("https://{prefix}{host}.test"), None), below);
            let continued = format!("https://a.{host}.test.{host}");
            prop_assert!(!rule.allows(&continued, None));
        }

        #[test]
        fn a_foreign_origin_is_refused_however_it_is_dressed(
            inner in "[ -~]{0,24}",
        ) {
            // For any printable text in between, only a host that ends in the suffix may pass.
            let origin = format!("https://evil.test{inner}");
            let allowed = policy(&["https://*.example.com"]).allows(&origin, None);
            let really_below = inner.to_ascii_lowercase().trim_end_matches(":443").ends_with(".example.com")
                && !inner.contains(['/', '?', '#', '@', '\\', ' ', '*']);
            prop_assert!(!allowed || really_below);
        }
    }
}
