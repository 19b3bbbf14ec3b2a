//! Claims and time; signatures are the `jws` room's to test.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::{AuthConfig, Config, CredentialSource};
use crate::jws::{Algorithm, KeySet, SigningKey};

const SECRET: &str = "a secret of the tests";
/// Unix milliseconds.
const NOW: u64 = 1_700_000_000_000;

fn config() -> AuthConfig {
    AuthConfig {
        source: CredentialSource::Key(SECRET.to_owned().into()),
        algorithms: vec![Algorithm::Hs256],
        ..Config::default().auth
    }
}

fn verifier(config: &AuthConfig) -> Verifier {
    Verifier::new(config, None).unwrap().unwrap()
}

fn sign(claims: &str) -> String {
    let key = SigningKey::new(Algorithm::Hs256, SECRET).unwrap();
    key.sign(claims, None).unwrap()
}

fn verify(claims: &str) -> Result<Identity, TokenError> {
    verifier(&config()).verify(&sign(claims), NOW)
}

fn verify_with(change: impl FnOnce(&mut AuthConfig), claims: &str) -> Result<String, TokenError> {
    let mut config = config();
    change(&mut config);
    verifier(&config)
        .verify(&sign(claims), NOW)
        .map(|identity| identity.user)
}

#[test]
fn the_user_is_sub() {
    for user in ["alice", "ä€😀", "*", "{user}", &"x".repeat(128)] {
        let claims = serde_json::json!({"sub": user}).to_string();
        assert_eq!(verify(&claims).unwrap().user, user);
    }
    for odd in [" ", "alice ", "al\u{200b}ice", "\u{202e}ecila"] {
        let claims = serde_json::json!({"sub": odd}).to_string();
        assert_eq!(verify(&claims), Err(TokenError::Claims), "{odd:?}");
        let any = |config: &mut AuthConfig| config.any_user_id = true;
        assert_eq!(verify_with(any, &claims).as_deref(), Ok(odd));
    }
    for claims in [
        "{}",
        r#"{"sub":""}"#,
        r#"{"sub":null}"#,
        r#"{"sub":5}"#,
        r#"{"sub":["alice"]}"#,
        r#"{"sub":"a\nb"}"#,
        r#"{"sub":"alice","sub":"bob"}"#,
        r#"{"sub":"alice","role":1,"role":2}"#,
        r#"["sub"]"#,
        "alice",
        &serde_json::json!({"sub": "x".repeat(129)}).to_string(),
    ] {
        assert_eq!(verify(claims), Err(TokenError::Claims), "{claims}");
    }
}

#[test]
fn development_mode_has_no_verifier() {
    assert!(Verifier::new(&Config::default().auth, None).unwrap().is_none());
}

#[test]
fn only_the_configured_algorithms() {
    let token = |algorithm| {
        let key = SigningKey::new(algorithm, SECRET).unwrap();
        key.sign(r#"{"sub":"alice"}"#, None).unwrap()
    };
    let verifier = verifier(&config());
    assert!(verifier.verify(&token(Algorithm::Hs256), NOW).is_ok());
    assert_eq!(
        verifier.verify(&token(Algorithm::Hs512), NOW),
        Err(TokenError::Algorithm)
    );
    // {"alg":"none"}, {"sub":"alice"}, with and without something that looks like a signature.
    for signature in ["", "AAAA"] {
        let none = format!("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.{signature}");
        assert_eq!(verifier.verify(&none, NOW), Err(TokenError::Algorithm));
    }
    assert_eq!(verifier.verify("nonsense", NOW), Err(TokenError::Malformed));
    let other = SigningKey::new(Algorithm::Hs256, "another").unwrap();
    let forged = other.sign(r#"{"sub":"alice"}"#, None).unwrap();
    assert_eq!(verifier.verify(&forged, NOW), Err(TokenError::Signature));
}

/// The turn is charged with the cost of its tokens.
#[test]
fn tries_are_few_and_counted() {
    let stranger = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
    let fetched = |count: usize| {
        let json = format!("{{\"keys\":[{}]}}", vec![stranger; count].join(","));
        Arc::new(KeySet::from_jwks(json.as_bytes(), &[Algorithm::Es256]).unwrap())
    };
    let config = AuthConfig {
        source: CredentialSource::Jwks("https://id.example/".into()),
        algorithms: vec![Algorithm::Es256],
        ..config()
    };
    let key = SigningKey::new(Algorithm::Es256, include_str!("../../tests/keys/p256.pem")).unwrap();
    for kid in [None, Some("made up")] {
        let token = key.sign(r#"{"sub":"alice"}"#, kid).unwrap();
        for (keys, tried) in [(1, 1), (4, 4), (9, 4)] {
            let verifier = Verifier::new(&config, Some(&fetched(keys))).unwrap().unwrap();
            let seen = verifier.verify_counting(&token, NOW);
            assert_eq!(
                seen,
                (Err(TokenError::UnknownKey), tried),
                "of {keys}: a new key may be there by now"
            );
        }
    }
    assert_eq!(verifier(&self::config()).verify_counting("nonsense", NOW).1, 0);
    assert_eq!(verifier(&self::config()).verify_counting(&sign("{}"), NOW).1, 1);
}

#[test]
fn a_token_ends_with_exp_and_begins_with_nbf() {
    let expires = |claims: &str| verify(claims).map(|identity| identity.grant.expires_at_ms);
    assert_eq!(expires(r#"{"sub":"a"}"#), Ok(Grant::FOR_EVER));
    assert_eq!(expires(r#"{"sub":"a","exp":1700000001}"#), Ok(NOW + 1000));
    assert_eq!(expires(r#"{"sub":"a","exp":1700000000.5}"#), Ok(NOW + 500));
    assert_eq!(expires(r#"{"sub":"a","exp":1e300}"#), Ok(u64::MAX));
    for exp in ["1700000000", "0", "-1", "-1e300", "1699999999.999"] {
        assert_eq!(
            expires(&format!(r#"{{"sub":"a","exp":{exp}}}"#)),
            Err(TokenError::Expired),
            "{exp}"
        );
    }
    // An unreadable limit must not become no limit.
    for exp in ["null", "\"1800000000\"", "\"\"", "true", "[]", "{}", "1e999"] {
        assert_eq!(
            expires(&format!(r#"{{"sub":"a","exp":{exp}}}"#)),
            Err(TokenError::Claims),
            "{exp}"
        );
        assert_eq!(
            expires(&format!(r#"{{"sub":"a","nbf":{exp}}}"#)),
            Err(TokenError::Claims),
            "{exp}"
        );
    }
    assert!(verify(r#"{"sub":"a","nbf":1700000000}"#).is_ok());
    assert_eq!(
        verify(r#"{"sub":"a","nbf":1700000000.001}"#),
        Err(TokenError::NotYetValid)
    );
}

#[test]
fn leeway_goes_both_ways_and_stays_with_the_connection() {
    let mut config = config();
    config.leeway = Duration::from_secs(10);
    let verifier = verifier(&config);
    let at = |claims: &str| {
        verifier
            .verify(&sign(claims), NOW)
            .map(|identity| identity.grant.expires_at_ms)
    };
    assert_eq!(at(r#"{"sub":"a","exp":1699999991}"#), Ok(NOW + 1000));
    assert_eq!(at(r#"{"sub":"a","exp":1699999990}"#), Err(TokenError::Expired));
    assert!(at(r#"{"sub":"a","nbf":1700000010}"#).is_ok());
    assert_eq!(at(r#"{"sub":"a","nbf":1700000011}"#), Err(TokenError::NotYetValid));
}

#[test]
fn exp_can_be_required() {
    let required = |config: &mut AuthConfig| config.require_exp = true;
    assert_eq!(verify_with(required, r#"{"sub":"a"}"#), Err(TokenError::NoExpiry));
    assert_eq!(
        verify_with(required, r#"{"sub":"a","exp":1}"#),
        Err(TokenError::Expired)
    );
    assert!(verify_with(required, r#"{"sub":"a","exp":1700000001}"#).is_ok());
}

#[test]
fn issuer_and_audience_count_where_they_are_configured() {
    let issuer = |config: &mut AuthConfig| config.issuer = Some("https://id/".into());
    assert!(verify_with(issuer, r#"{"sub":"a","iss":"https://id/"}"#).is_ok());
    assert!(verify_with(|_| {}, r#"{"sub":"a","iss":"anybody","aud":["x"]}"#).is_ok());
    for claims in [
        r#"{"sub":"a"}"#,
        r#"{"sub":"a","iss":"https://id"}"#,
        r#"{"sub":"a","iss":""}"#,
    ] {
        assert_eq!(verify_with(issuer, claims), Err(TokenError::Issuer), "{claims}");
    }
    assert_eq!(
        verify_with(issuer, r#"{"sub":"a","iss":["https://id/"]}"#),
        Err(TokenError::Claims)
    );
    let stale = r#"{"sub":"a","iss":"x","exp":1}"#;
    assert_eq!(
        verify_with(issuer, stale),
        Err(TokenError::Issuer),
        "a new one of theirs is no better"
    );
    let audience = |config: &mut AuthConfig| config.audience = vec!["chat".into(), "news".into()];
    for aud in ["\"chat\"", "[\"news\"]", "[\"x\",\"chat\"]"] {
        assert!(
            verify_with(audience, &format!(r#"{{"sub":"a","aud":{aud}}}"#)).is_ok(),
            "{aud}"
        );
    }
    for aud in ["\"cha\"", "[]", "[\"x\"]", "\"\""] {
        let refused = verify_with(audience, &format!(r#"{{"sub":"a","aud":{aud}}}"#));
        assert_eq!(refused, Err(TokenError::Audience), "{aud}");
    }
    assert_eq!(verify_with(audience, r#"{"sub":"a"}"#), Err(TokenError::Audience));
    for aud in ["null", "1", "[1]", "[\"chat\",1]", "{}"] {
        let refused = verify_with(audience, &format!(r#"{{"sub":"a","aud":{aud}}}"#));
        assert_eq!(refused, Err(TokenError::Claims), "{aud}");
    }
}

#[test]
fn channels_are_what_the_claims_name_and_nothing_else() {
    let granted = |claims: &str| verify(claims).map(|identity| identity.grant.rights.clone());
    assert_eq!(granted(r#"{"sub":"a"}"#), Ok(None));
    assert_eq!(granted(r#"{"sub":"a","sub_channels":[],"pub_channels":[]}"#), Ok(None));
    let both = granted(r#"{"sub":"a","sub_channels":["room:*","dm:{user}"],"pub_channels":["room:1"]}"#);
    let both = both.unwrap().unwrap();
    assert!(both.subscribe.allows("a", "room:2") && both.subscribe.allows("a", "dm:a"));
    assert!(!both.subscribe.allows("a", "dm:b") && !both.publish.allows("a", "room:2"));
    // A text that is no pattern permits nothing, and takes nothing from the other patterns.
    let some = granted(r#"{"sub":"a","sub_channels":["room","","{usr}","*}","a\nb"]}"#)
        .unwrap()
        .unwrap();
    assert!(some.subscribe.allows("a", "room") && !some.subscribe.allows("a", "b"));
    assert_eq!(granted(r#"{"sub":"a","sub_channels":["{","}"]}"#), Ok(None));
    for bad in ["\"*\"", "null", "{}", "[1]", "[null]", "[[\"*\"]]", "true"] {
        for claim in ["sub_channels", "pub_channels", "write_to", "see"] {
            let refused = granted(&format!(r#"{{"sub":"a","{claim}":{bad}}}"#));
            assert_eq!(refused, Err(TokenError::Claims), "{claim} {bad}");
        }
    }
    let many = serde_json::json!({"sub": "a", "sub_channels": vec!["c"; 65]}).to_string();
    assert_eq!(granted(&many), Err(TokenError::Claims));
}

/// An empty list permits no user; without a list the configuration decides.
#[test]
fn users_are_what_the_claims_name_where_there_are_any() {
    let rights = |claims: &str| verify(claims).unwrap().grant.rights.clone();
    let granted = rights(r#"{"sub":"a","write_to":["b*","{user}"],"see":[]}"#).unwrap();
    let write_to = granted.write_to.unwrap();
    assert!(write_to.allows("a", "bob") && write_to.allows("a", "a") && !write_to.allows("a", "c"));
    assert!(!granted.see.unwrap().allows("a", "a"));
    let only_see = rights(r#"{"sub":"a","see":["*"],"sub_channels":[]}"#).unwrap();
    assert!(only_see.write_to.is_none() && only_see.see.unwrap().allows("a", "x"));
    // A text that is no pattern permits nothing.
    let nobody = rights(r#"{"sub":"a","write_to":["{"]}"#).unwrap();
    assert!(!nobody.write_to.unwrap().allows("a", "{"));
}

#[test]
fn connections_are_one_or_more() {
    let connections = |value: &str| {
        let identity = verify(&format!(r#"{{"sub":"a","connections":{value}}}"#))?;
        Ok(identity.grant.connections)
    };
    assert_eq!(connections("1"), Ok(Some(1)));
    assert_eq!(connections("4294967295"), Ok(Some(u32::MAX)));
    for bad in ["0", "-1", "1.5", "\"1\"", "null", "4294967296", "[]"] {
        assert_eq!(connections(bad), Err(TokenError::Claims), "{bad}");
    }
}

#[test]
fn nothing_shows_a_token() {
    let token = Token(sign(r#"{"sub":"alice"}"#));
    assert_eq!(format!("{token:?}"), "Token(***)");
}

#[test]
fn identical_tokens_are_known_until_they_expire() {
    let mut cache = Cache::default();
    let token = |n: u32| Token(format!("token {n}"));
    let identity = verify(r#"{"sub":"a","exp":1700000001}"#).unwrap();
    cache.insert(&token(1), identity.clone());
    assert_eq!(cache.get(&token(1), NOW), Some(&identity));
    assert_eq!(cache.get(&token(2), NOW), None);
    assert_eq!(cache.get(&token(1), NOW + 1000), None);
    for n in 0..20_000 {
        cache.insert(&token(n), identity.clone());
    }
    assert!(cache.len() <= 8 * 1024);
    assert!(cache.get(&token(19_999), NOW).is_some() && cache.get(&token(0), NOW).is_none());
    cache.clear();
    assert!(cache.is_empty());
}

/// 48 bytes with the counters of the `Arc`, for each connection with a token.
#[test]
fn a_grant_is_small() {
    assert!(size_of::<Grant>() <= 32, "{}", size_of::<Grant>());
}

proptest! {
    #[test]
    fn any_claims_are_read_or_refused(claims in "\\{(\"(sub|exp|nbf|aud|iss|connections|sub_channels|write_to|see)\":(null|1|-1|\"a\"|\\[\"\\*\"\\]|\\{\\}),?){0,6}\\}") {
        if let Ok(identity) = verify(&claims) {
            prop_assert!(crate::ids::is_valid_user_id(&identity.user));
            prop_assert!(!identity.grant.is_expired(NOW));
            prop_assert!(!claims.contains("null"));
        }
    }

    #[test]
    fn no_change_of_a_token_verifies(position: prop::sample::Index, letter in "[A-Za-z0-9_-]") {
        let token = sign(r#"{"sub":"alice"}"#);
        let at = position.index(token.len());
        let mut changed = token.clone();
        changed.replace_range(at..=at, &letter);
        prop_assume!(changed != token);
        prop_assert!(verifier(&config()).verify(&changed, NOW).is_err());
    }
}
