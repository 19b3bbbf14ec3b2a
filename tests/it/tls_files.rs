//! The files of TLS: good ones are taken while the gateway runs, bad ones change nothing, or keep
//! it from starting.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::authority::{Authority, Secure, replace, text};
use common::{Client, eventually, run_to_exit};
use libc::SIGHUP;

on_both_engines! { sighup_brings_the_new_certificate, a_changed_file_is_enough }

fn sighup_brings_the_new_certificate(engine: &str) {
    let it = Secure::start(engine, &["--echo"]);
    let mut old: Vec<Client> = (0..4).map(|_| it.gateway.upgrade("/echo")).collect();
    let seen = it.certificate();
    assert_eq!(seen, it.pair.certificate());
    let reload = |text: &str| {
        let lines = it.gateway.log_lines();
        it.gateway.signal(SIGHUP);
        it.gateway.wait_for_log_after(lines, text)
    };
    // One of a pair; nothing at all; no file.
    let newer = it.authority.sign("newer");
    replace(&it.pair.cert, &newer.cert);
    let said = reload("TLS not changed");
    assert!(said.contains("does not belong to"), "{said}");
    std::fs::write(&it.pair.cert, "half a file").unwrap();
    let said = reload("TLS not changed");
    assert!(said.contains("has no certificate in PEM"), "{said}");
    std::fs::remove_file(&it.pair.cert).unwrap();
    let said = reload("TLS not changed");
    assert!(said.contains("cannot read tls.cert"), "{said}");
    assert_eq!(it.certificate(), seen);
    // A certificate that no client would accept.
    for (years, why) in [(2000..2001, "has expired"), (3000..3001, "is not valid yet")] {
        it.pair.replace_with(&it.authority.sign_with("other", |params| {
            params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
            params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        }));
        let said = reload("TLS not changed");
        assert!(said.contains(why), "{said}");
        assert_eq!(it.certificate(), seen);
    }
    it.pair.replace_with(&newer);
    reload("new connections get the certificate");
    eventually("on every shard", || {
        (0..8).all(|_| it.certificate() == newer.certificate())
    });
    for client in &mut old {
        client.send_text("still here");
        assert_eq!(client.recv_text(), "still here");
    }
}

fn a_changed_file_is_enough(engine: &str) {
    let it = Secure::start(engine, &["--echo"]);
    let mut old = it.gateway.upgrade("/echo");
    let seen = it.certificate();
    let newer = it.authority.sign("newer");
    let lines = it.gateway.log_lines();
    // The gateway looks between the two: the pair does not match for a while.
    replace(&it.pair.cert, &newer.cert);
    it.gateway.wait_for_log_after(lines, "does not belong to");
    assert_eq!(it.certificate(), seen);
    replace(&it.pair.key, &newer.key);
    it.gateway
        .wait_for_log_after(lines, "new connections get the certificate");
    eventually("on every shard", || {
        (0..8).all(|_| it.certificate() == newer.certificate())
    });
    assert_eq!(
        it.gateway.log().matches("TLS not changed").count(),
        1,
        "one line, not one for each look"
    );
    old.send_text("still here");
    assert_eq!(old.recv_text(), "still here");
}

#[test]
fn files_that_are_no_good_keep_it_from_starting() {
    let authority = Authority::new();
    let (one, other) = (authority.sign("one"), authority.sign("other"));
    let empty = authority.dir.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    for (cert, key, ca, parts) in [
        (
            "/nowhere/cert.pem",
            one.key(),
            None,
            &["tls.cert", "/nowhere/cert.pem", "No such file"][..],
        ),
        (
            one.cert(),
            text(&empty),
            None,
            &["tls.key", "empty.pem", "no private key in PEM"],
        ),
        (text(&empty), one.key(), None, &["tls.cert", "no certificate in PEM"]),
        (one.cert(), one.cert(), None, &["tls.key", "no private key in PEM"]),
        (
            one.cert(),
            other.key(),
            None,
            &["does not belong to tls.cert", "give the key"],
        ),
        (
            one.cert(),
            one.key(),
            Some(text(&empty)),
            &["tls.client_ca", "no certificate in PEM"],
        ),
    ] {
        let mut args = vec![
            "--listen=127.0.0.1:0",
            "--shards=1",
            "--cpus=none",
            "--tls-cert",
            cert,
            "--tls-key",
            key,
        ];
        args.extend(ca.iter().flat_map(|ca| ["--tls-client-ca", *ca]));
        for (check, code) in [(&[][..], 1), (&["--check-config"][..], 2)] {
            let ended = run_to_exit(&[&args, check].concat());
            assert_eq!(ended.code, Some(code), "{ended:?}");
            for part in parts {
                assert!(ended.stderr.contains(part), "no {part:?} in {}", ended.stderr);
            }
        }
    }
    let good = run_to_exit(&["--tls-cert", one.cert(), "--tls-key", one.key(), "--check-config"]);
    assert_eq!(good.code, Some(0), "{good:?}");
    for alone in [
        ["--tls-cert", one.cert()],
        ["--tls-key", one.key()],
        ["--tls-client-ca", text(&authority.ca)],
    ] {
        let ended = run_to_exit(&alone);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains("contradicts"), "{}", ended.stderr);
    }
}
