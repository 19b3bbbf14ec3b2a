//! A whole command line at a time.

use super::*;

fn parse_line(line: &str) -> Result<Options, String> {
    parse(line.split_whitespace().map(str::to_owned)).map_err(|error| error.to_string())
}

#[test]
fn a_full_line() {
    let options = parse_line(
        "direct --url=ws://127.0.0.1:9/ws --users 40000 --rate 1e4 --duration 500ms --cpus 1,3-4 --ack --threads 2",
    )
    .unwrap();
    assert_eq!(options.kind, Kind::Direct);
    assert_eq!(
        (options.load.users, options.rate, options.load.ack),
        (40_000, Some(10_000.0), true)
    );
    assert_eq!(
        (options.duration(), options.cpus()),
        (Duration::from_millis(500), &[1, 3, 4][..])
    );
    assert_eq!((options.connect.sources, options.generator.threads), (2, 2));
    assert_eq!(options.targets.urls(), "ws://127.0.0.1:9/ws");
    assert!(options.output.pids.is_empty() && options.output.redis.is_none());
}

#[test]
fn several_gateways() {
    let options = parse_line(
        "direct --url ws://127.0.0.1:9,ws://127.0.0.1:10 --url=ws://127.0.0.1:11 --pid 1,2 --pid 3 --redis 127.0.0.1:6",
    )
    .unwrap();
    assert_eq!((options.targets.len(), options.output.pids), (3, vec![1, 2, 3]));
    assert_eq!(
        options.output.redis.map(|redis| redis.host).as_deref(),
        Some("127.0.0.1:6")
    );
}

#[test]
fn mistakes_are_named() {
    let url = "--url ws://127.0.0.1:9/ws";
    for (line, part) in [
        (String::new(), "direct"),
        ("flood".to_owned(), "idle"),
        ("idle".to_owned(), "--url"),
        (format!("direct {url} --usres 2"), "--users"),
        (format!("direct {url} --users 3"), "multiple of 2"),
        (format!("direct {url} --users 0"), "1 to"),
        (format!("direct {url} --payload 10"), "28"),
        (format!("direct {url} --duration ten"), "10s"),
        (format!("direct {url} --ack=1"), "unexpected value"),
        (format!("direct {url} --rate"), "a value is required"),
        (format!("direct {url} --cpus 3-1"), "0-3,6"),
        (format!("idle {url} --rate 5"), "idle"),
        (format!("direct {url} --rate 5 --in-flight 2"), "cannot be used with"),
        (format!("storm {url} --in-flight 2"), "--rate"),
        (format!("storm {url} --cut drain"), "--admin-token"),
        (format!("storm {url} --admin-token t"), "--cut drain"),
        (format!("direct {url} --calm 1s"), "storm only"),
        (format!("direct {url} --scenario x"), "mixed only"),
        (format!("mixed {url} --scenario /nowhere/x"), "/nowhere/x"),
        (format!("fanout {url} --processes 2 --in-flight 1"), "say --threads"),
        (format!("idle {url} --users 10 --warmup-connections 10"), "less than"),
        (format!("direct {url} --channels 2"), "fanout only"),
        (format!("fanout {url} --publishers 0"), "1 to"),
        (format!("fanout {url} --per-user 2"), "only 1 channels"),
        (
            format!("fanout {url} --users 3 --channels 7 --per-user 2"),
            "without a subscriber",
        ),
        (
            format!("fanout {url} --users 100000 --publishers 200"),
            "20000000: at most",
        ),
        ("idle --url http://127.0.0.1/ws".to_owned(), "ws://"),
        ("idle --url wss://127.0.0.1/ws".to_owned(), "--insecure-tls"),
        (format!("idle {url} --insecure-tls"), "wss://"),
        ("idle --url ws://10.0.0.1:9/ws --sources 2".to_owned(), "127.0.0.0/8"),
        (
            format!("idle {url} --url ws://10.0.0.1:9/ws --sources 2"),
            "127.0.0.0/8",
        ),
        (format!("idle {url},wss://127.0.0.1:10/ws"), "different schemes"),
        (format!("idle {url},ws://127.0.0.1:10 --users 1"), "2 gateways"),
        (format!("idle {url},ws://127.0.0.1:10 --pid 7"), "one per --url"),
        (format!("idle {url} --pid 7,8 --pid 7"), "--pid 7 is there twice"),
        (format!("idle {url} --pid 7,x"), "invalid digit"),
        (format!("idle {url} --redis redis://:secret@:1"), "must be like"),
        (format!("idle {url} --redis rediss://127.0.0.1:1"), "no TLS"),
        (
            format!("idle {url} --redis 127.0.0.1:1 --redis 127.0.0.1:2"),
            "multiple times",
        ),
    ] {
        let why = parse_line(&line).err().unwrap_or_default();
        assert!(why.contains(part), "{line:?} -> {why:?}");
    }
}

#[test]
fn publishers_are_connections_besides_the_users() {
    let line = "fanout --url ws://127.0.0.1:9 --users 20000 --publishers 4 --channels 20001 --per-user 2";
    let options = parse_line(line).unwrap();
    assert_eq!((options.connections(), options.connect.sources), (20_004, 2));
    assert_eq!((options.channels, options.per_user), (20_001, 2));
    let options = parse_line("direct --url ws://127.0.0.1:9").unwrap();
    assert_eq!((options.connections(), options.publishers), (100, 0));
}

#[test]
fn load_is_an_open_loop_unless_something_else_is_asked_for() {
    let rate = |line: &str| {
        let options = parse_line(&format!("{line} --url ws://127.0.0.1:9")).unwrap();
        (options.rate, options.in_flight())
    };
    assert_eq!(rate("direct"), (Some(1000.0), 1));
    assert_eq!(rate("fanout --rate 7"), (Some(7.0), 1));
    assert_eq!(rate("direct --in-flight 8"), (None, 8));
    assert_eq!(rate("mixed").0, Some(Chat::default().rate));
    assert_eq!((rate("storm").0, rate("idle").0), (Some(RATE_BESIDE_STORM), None));
}

#[test]
fn every_user_is_in_one_part() {
    for (line, workers) in [
        ("direct --users 10 --threads 2 --processes 2", 4),
        ("storm --users 100 --pairs 3 --processes 3", 3),
        ("direct --users 4 --threads 3 --processes 3", 2),
        ("idle --users 7 --threads 4 --processes 2", 4),
        ("fanout --users 10 --publishers 3 --threads 2 --processes 2", 4),
        ("fanout --users 2 --publishers 5 --threads 8", 5),
    ] {
        let mut options = parse_line(&format!("{line} --url ws://127.0.0.1:9")).unwrap();
        assert_eq!(options.workers(), workers, "{line}");
        let (mut next, mut own) = (0, 0);
        for process in 0..options.generator.processes {
            options.generator.process = process;
            own += options.own_connections();
            for worker in options.own_workers() {
                let (first, count) = options.part(worker);
                assert_eq!(first, next, "{line}");
                assert!(count > 0 && count.is_multiple_of(options.kind.unit()));
                next += count;
            }
        }
        assert_eq!((next, own), (options.connections(), options.connections()), "{line}");
    }
}
