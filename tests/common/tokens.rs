//! Tokens as an issuer makes them, and gateways that take them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use shardgate::jws::{Algorithm, SigningKey};

use super::{Client, Gateway};

pub const SECRET: &str = include_str!("../keys/secret.txt");

/// The file with the public key for this algorithm, or the secret, as `@FILE`.
pub fn key_file(algorithm: Algorithm) -> String {
    format!("@{}", path(algorithm, ".pub.pem"))
}

/// The file with the private key, or the secret.
pub fn private_key_file(algorithm: Algorithm) -> String {
    path(algorithm, ".pem")
}

fn path(algorithm: Algorithm, ending: &str) -> String {
    let name = match algorithm.name() {
        "ES256" => format!("p256{ending}"),
        "ES384" => format!("p384{ending}"),
        "EdDSA" => format!("ed25519{ending}"),
        name if name.starts_with("HS") => "secret.txt".to_owned(),
        _ => format!("rsa{ending}"),
    };
    format!("{}/tests/keys/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Unix time from now, seconds.
pub fn from_now(time: Duration) -> f64 {
    (SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + time).as_secs_f64()
}

/// A token with these claims, signed with our private key for the algorithm.
pub fn sign(algorithm: Algorithm, claims: &Value, kid: Option<&str>) -> String {
    let key = std::fs::read_to_string(private_key_file(algorithm)).unwrap();
    let key = SigningKey::new(algorithm, &key).unwrap();
    key.sign(&claims.to_string(), kid).unwrap()
}

/// A token of HS256 for this user, for ever.
pub fn token(user: &str) -> String {
    claims(&json!({"sub": user}))
}

/// A token of HS256 with these claims.
pub fn claims(claims: &Value) -> String {
    sign(Algorithm::Hs256, claims, None)
}

/// A gateway that takes tokens of HS256.
#[track_caller]
pub fn gateway(engine: &str, args: &[&str]) -> Gateway {
    let secret = format!("--auth-key={SECRET}");
    Gateway::start(&[&["--engine", engine, "--auth-algorithm=HS256", &secret], args].concat())
}

/// A connection with this token in the query, after its `welcome`.
#[track_caller]
pub fn connect(gateway: &Gateway, token: &str) -> (Client, Value) {
    let mut client = gateway.upgrade(&format!("/ws?token={token}"));
    let welcome = client.recv_json();
    assert_eq!(welcome["type"], "welcome", "{welcome}");
    (client, welcome)
}
