//! Any text as a token, as claims, as a JWKS, and as a key: nothing panics, nothing verifies that
//! was not signed, and claims that were are read or refused.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use shardgate::auth::Verifier;
use shardgate::config::{AuthConfig, Config, CredentialSource};
use shardgate::ids::is_valid_user_id;
use shardgate::jws::{Algorithm, KeySet, Signed, SigningKey, VerifyingKey};

const SECRET: &str = "a secret that nobody guesses";
const NOW_MS: u64 = 1_700_000_000_000;

static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    let config = AuthConfig {
        source: CredentialSource::Key(SECRET.to_owned().into()),
        algorithms: vec![Algorithm::Hs256],
        ..Config::default().auth
    };
    Verifier::new(&config, None).expect("a key").expect("tokens")
});

fuzz_target!(|input: &[u8]| {
    let _ = KeySet::from_jwks(input, &[Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa]);
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let _ = Signed::parse(text);
    for algorithm in [Algorithm::Rs256, Algorithm::Es384, Algorithm::EdDsa] {
        let _ = VerifyingKey::configured(text, &[algorithm]);
    }
    assert!(VERIFIER.verify(text, NOW_MS).is_err(), "nobody signed this");
    let signed = SigningKey::new(Algorithm::Hs256, SECRET).and_then(|key| key.sign(text, None));
    if let Ok(identity) = VERIFIER.verify(&signed.expect("signed"), NOW_MS) {
        assert!(is_valid_user_id(&identity.user));
        assert!(!identity.grant.is_expired(NOW_MS));
        assert!(identity.grant.connections != Some(0));
    }
});
