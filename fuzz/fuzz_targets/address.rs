//! Any bytes as what proxies say: the PROXY header is read the same however it arrives, and takes
//! no byte of the client's; by `X-Forwarded-For` nobody is named but who a believed proxy named.

#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use shardgate::address::forwarded;
use shardgate::address::networks::Networks;
use shardgate::address::proxy::{self, HEADER_BYTES_MAX, Header, SIGNATURE};

fuzz_target!(|input: &[u8]| {
    // Half of all inputs would need luck to find the signature.
    match input.split_first() {
        Some((first, rest)) if first % 2 == 0 => header(&[&SIGNATURE, rest].concat()),
        Some((_, rest)) if !rest.is_empty() => header(rest),
        _ => {}
    }
    forwarded_for(input);
    if let Ok(text) = std::str::from_utf8(input) {
        let entries: Vec<String> = text.split(',').map(str::to_owned).collect();
        if let Ok(networks) = Networks::parse(&entries) {
            // Each begins with an address of its own.
            for entry in &entries {
                let address = entry
                    .split('/')
                    .next()
                    .and_then(|address| address.parse::<IpAddr>().ok());
                assert!(networks.contains(address.expect("it was taken")), "{entry}");
            }
        }
    }
});

fn header(bytes: &[u8]) {
    let whole = proxy::read(bytes);
    match whole {
        Header::Complete(len, _) => {
            assert!(len <= bytes.len() && len <= HEADER_BYTES_MAX);
            // What comes behind does not count.
            assert_eq!(proxy::read(&bytes[..len]), whole);
        }
        Header::Partial(more) => assert!(more > 0 && bytes.len() + more <= HEADER_BYTES_MAX),
        Header::Absent => assert_ne!(bytes[0], SIGNATURE[0]),
        Header::Garbage => {}
    }
    // Taking no more than was asked for, step by step, ends the same, at the header's last byte.
    let mut seen = 1;
    loop {
        match proxy::read(&bytes[..seen]) {
            Header::Partial(more) if seen + more <= bytes.len() => seen += more,
            // A byte that is not waited for can still show that it is none.
            Header::Partial(_) => return assert!(matches!(whole, Header::Partial(_) | Header::Garbage)),
            Header::Complete(len, client) => {
                assert_eq!(seen, len);
                return assert_eq!(whole, Header::Complete(len, client));
            }
            end => return assert_eq!(end, whole),
        }
    }
}

fn forwarded_for(input: &[u8]) {
    let is_proxy = |address: IpAddr| address.is_loopback();
    let values: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
    let client = forwarded::client(values.iter().copied(), is_proxy);
    let Some(client) = client else {
        return;
    };
    // What the client writes in front changes nothing, unless all that follows are proxies.
    if !is_proxy(client) {
        let forged = [b"192.0.2.99".as_slice()].into_iter().chain(values.iter().copied());
        assert_eq!(
            forwarded::client(forged.collect::<Vec<_>>().into_iter(), is_proxy),
            Some(client)
        );
    }
    // And a proxy of ours that appends another proxy believes no more than before.
    let longer = values.iter().copied().chain([b"127.0.0.1".as_slice()]);
    assert_eq!(
        forwarded::client(longer.collect::<Vec<_>>().into_iter(), is_proxy),
        Some(client)
    );
}
