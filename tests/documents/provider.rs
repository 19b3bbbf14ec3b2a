//! `https://id.example.com`, the identity provider of the documents and examples. It serves keys
//! and signs tokens with them, inside a namespace, where that name can be ours.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use shardgate::jws::Algorithm;

use crate::common::{Authority, authority, eventually, tokens};

pub(crate) const HOST: &str = "id.example.com";
/// An address of the loopback network, so that port 443 of the others is free for gateways and
/// proxies.
pub(crate) const ADDRESS: &str = "127.0.0.9";

/// Serves `/jwks.json` until it is dropped.
pub(crate) struct Provider {
    server: Child,
    pub(crate) authority: Authority,
}

impl Provider {
    /// Starts on port 443 of this namespace. Gateways trust it by `SSL_CERT_FILE`.
    pub(crate) fn start() -> Provider {
        let authority = Authority::new();
        let pair = authority.sign_with("id", |params| {
            params.subject_alt_names = vec![rcgen::SanType::DnsName(HOST.try_into().unwrap())];
        });
        let keys = json!({"keys": [rsa("provider-rsa"), p256("provider-p256")]});
        std::fs::write(authority.dir.path().join("jwks.json"), keys.to_string()).unwrap();
        let server = Command::new("openssl")
            .args([
                "s_server",
                "-quiet",
                "-WWW",
                "-accept",
                "127.0.0.9:443",
                "-cert",
                pair.cert(),
                "-key",
                pair.key(),
            ])
            .current_dir(authority.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the identity provider listens", || {
            std::net::TcpStream::connect((ADDRESS, 443)).is_ok()
        });
        Provider { server, authority }
    }

    /// The variable that makes a program trust the provider.
    pub(crate) fn trust(&self) -> (&'static str, PathBuf) {
        ("SSL_CERT_FILE", PathBuf::from(authority::text(&self.authority.ca)))
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A token of the provider for this user of `chat`.
pub(crate) fn token(algorithm: Algorithm, user: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let claims = json!({
        "sub": user,
        "iss": "https://id.example.com/",
        "aud": "chat",
        "exp": (now + Duration::from_secs(600)).as_secs(),
    });
    let kid = if algorithm == Algorithm::Es256 {
        "provider-p256"
    } else {
        "provider-rsa"
    };
    tokens::sign(algorithm, &claims, Some(kid))
}

fn der(algorithm: Algorithm) -> Vec<u8> {
    let pem = std::fs::read_to_string(&tokens::key_file(algorithm)[1..]).unwrap();
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    STANDARD.decode(base64).unwrap()
}

/// The modulus of 2,048 bits stands before the exponent, which ends the key and is five bytes with
/// its head.
fn rsa(kid: &str) -> Value {
    let der = der(Algorithm::Rs256);
    assert!(der.ends_with(&[2, 3, 1, 0, 1]), "the exponent is 65537");
    let modulus = URL_SAFE_NO_PAD.encode(&der[der.len() - 261..der.len() - 5]);
    json!({"kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256", "n": modulus, "e": "AQAB"})
}

/// The point stands last in the key.
fn p256(kid: &str) -> Value {
    let der = der(Algorithm::Es256);
    let last = |from: usize, to: usize| URL_SAFE_NO_PAD.encode(&der[der.len() - from..der.len() - to]);
    json!({"kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "alg": "ES256", "x": last(64, 32), "y": last(32, 0)})
}
