//! Any good configuration survives printing and reading; no input panics.

use proptest::prelude::*;

use super::*;
use crate::config::checks::OF_TOKENS;
use crate::config::keys::KEYS;

/// Keys that need the company of others.
const APART: [&str; 14] = [
    "shards",
    "cpus",
    "insecure",
    "proxies",
    "redis.url",
    "redis.ca",
    "redis.cert",
    "redis.key",
    "redis.sentinel_user",
    "auth.key",
    "auth.jwks_url",
    "tls.cert",
    "tls.key",
    "tls.client_ca",
];

/// Good flags of any size, without contradictions.
fn any_flags() -> impl Strategy<Value = Vec<String>> {
    let keys: Vec<&'static Key> = KEYS
        .iter()
        .filter(|key| !APART.contains(&key.name))
        .filter(|key| !OF_TOKENS.contains(&key.name))
        // The mask of a secret does not load.
        .filter(|key| !matches!(key.kind, Kind::Secret | Kind::Secrets))
        .collect();
    let flag = |key: &'static Key| -> BoxedStrategy<String> {
        let value: BoxedStrategy<String> = match key.kind {
            Kind::Bool => any::<bool>().prop_map(|yes| yes.to_string()).boxed(),
            Kind::Integer { min, max, .. } => (min..=max).prop_map(|n| n.to_string()).boxed(),
            Kind::Duration { .. } if key.name == "heartbeat.timeout" => {
                (26_000u64..86_400_000).prop_map(|ms| format!("{ms}ms")).boxed()
            }
            Kind::Duration { .. } if key.name == "heartbeat.interval" => {
                (1u64..26_000).prop_map(|ms| format!("{ms}ms")).boxed()
            }
            // A longer one goes with a limit only.
            Kind::Duration { .. } if key.name == "drain.timeout" => {
                (1u64..=10).prop_map(|minutes| format!("{minutes}m")).boxed()
            }
            Kind::Duration { .. } => (1u64..=1440).prop_map(|minutes| format!("{minutes}m")).boxed(),
            Kind::Listen if key.name == "listen" => any::<(u8, u16)>()
                .prop_map(|(host, port)| format!("127.0.0.{host}:{port}"))
                .boxed(),
            Kind::Choice(words) => proptest::sample::select(words).prop_map(str::to_owned).boxed(),
            Kind::Origins => "https://[a-z]{1,9}\\.example(,http://\\*\\.[a-z]{1,9}\\.test:80)?(,null)?".boxed(),
            Kind::Patterns => "[a-z]{1,9}(:\\*)?(,\\{user\\}/[ä-ü]{1,9})?(,\\*)?".boxed(),
            Kind::Networks => "192\\.0\\.2\\.[1-9](,10\\.0\\.0\\.0/8)?(,2001:db8::/32)?".boxed(),
            Kind::Text { .. } => "[ !-~ä-ü]{1,60}".boxed(),
            Kind::Listen => "(unix:[a-z/. ä]{1,30}|\\[::1\\]:9[0-9]{3})".boxed(),
            Kind::Cookie => "[a-zA-Z0-9_.!#-]{1,60}".boxed(),
            _ => unreachable!("{} stands apart", key.name),
        };
        let flag = key.flag();
        value.prop_map(move |value| format!("{flag}={value}")).boxed()
    };
    let cpus = prop_oneof![
        Just(vec![]),
        (1usize..9, 0usize..900)
            .prop_map(|(shards, cpu)| vec![format!("--shards={shards}"), format!("--cpus={cpu}-{}", cpu + 9)]),
        (1usize..=256).prop_map(|shards| vec![format!("--shards={shards}"), "--cpus=none".to_owned()]),
        Just(vec!["--cpus=7,3-4,0".to_owned()]),
    ];
    // No credentials: those are masked, and so printed as a comment.
    let redis = prop_oneof![
        Just(vec![]),
        "--redis-url=rediss?://([a-z]{1,9}|\\[::1\\])(:[1-9][0-9]{0,3})?(/[0-9]{0,2})?".prop_map(|url| vec![url]),
        "--redis-url=rediss-sentinel://[a-z]{1,9},[a-z]{1,9}/[a-z]{1,9}"
            .prop_map(|url| vec![url, "--redis-ca=/a b.pem".to_owned()]),
    ];
    // Likewise no secret: a URL will do.
    let auth = prop_oneof![
        Just(vec![]),
        "(--auth-audience=[a-z]{1,9}(,[A-Z]{1,9})?|--auth-issuer=https://[a-z]{1,9}/|--auth-require-exp)".prop_map(
            |more| vec![
                "--auth-jwks-url=https://host/jwks".to_owned(),
                "--auth-algorithm=RS256,EdDSA".to_owned(),
                more
            ]
        ),
    ];
    let tls = prop_oneof![
        Just(vec![]),
        Just(vec!["--tls-cert=/a b.pem".to_owned(), "--tls-key=ä.pem".to_owned()]),
        "[a-z]{1,9}".prop_map(|name| ["cert", "key", "client-ca"]
            .map(|key| format!("--tls-{key}=/{name}"))
            .to_vec()),
    ];
    let count = keys.len();
    let rest = proptest::sample::subsequence(keys, 0..=count);
    let rest = rest.prop_flat_map(move |keys| keys.into_iter().map(flag).collect::<Vec<_>>());
    (rest, cpus, redis, auth, tls, any::<bool>()).prop_map(|(rest, cpus, redis, auth, tls, insecure)| {
        let insecure = insecure.then(|| "--insecure".to_owned());
        rest.into_iter()
            .chain(cpus)
            .chain(redis)
            .chain(auth)
            .chain(tls)
            .chain(insecure)
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_check_config_prints_gives_the_same_configuration(flags in any_flags()) {
        let mut args: Vec<&str> = flags.iter().map(String::as_str).collect();
        if !flags.iter().any(|flag| flag.starts_with("--gateway-id")) {
            args.push("--gateway-id=fixed");
        }
        let printed = file(&checked(&args, &[]));
        let path = printed.path().to_str().unwrap();
        prop_assert_eq!(run(&args, &[]), run(&["--config", path], &[]));
    }

    #[test]
    fn flags_and_variables_mean_the_same(flags in any_flags()) {
        let mut env: Vec<(String, String)> = flags
            .iter()
            .map(|flag| {
                let (name, value) = flag.trim_start_matches("--").split_once('=').unwrap_or((flag.trim_start_matches("--"), "true"));
                (format!("SHARDGATE_{}", name.replace('-', "_").to_ascii_uppercase()), value.to_owned())
            })
            .collect();
        let mut flags = flags;
        if !flags.iter().any(|flag| flag.starts_with("--gateway-id")) {
            flags.push("--gateway-id=fixed".to_owned());
            env.push(("SHARDGATE_GATEWAY_ID".to_owned(), "fixed".to_owned()));
        }
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        prop_assert_eq!(run(&flags, &[]), run(&[], &env));
    }

    #[test]
    fn no_input_panics(args in proptest::collection::vec("(--)?[a-z=@-]{0,12}", 0..4), toml in any::<String>(), name in "[A-Z_]{0,8}") {
        let _ = load(args, [(format!("SHARDGATE_{name}"), "x")]);
        let _ = settings(&toml);
    }
}
