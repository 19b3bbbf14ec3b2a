//! One server over TLS.

use shardgate::config::RedisTarget;

use crate::common::Redis;
use crate::store::*;

fn target(redis: &Redis, ca: Option<&std::path::Path>) -> RedisTarget {
    let mut target = RedisTarget::parse(&redis.url()).unwrap();
    assert!(target.tls);
    target.ca = ca.map(Into::into);
    target
}

#[test]
fn a_server_with_a_certificate_by_the_given_authority() {
    let redis = Redis::start_tls();
    on_control_thread(async {
        let mut store = Store::at(target(&redis, Some(redis.ca())));
        store.until_connected().await;
        every_operation(&mut store).await;
    });
}

#[test]
fn a_server_with_a_certificate_by_anybody_is_refused() {
    let redis = Redis::start_tls();
    on_control_thread(async {
        let cause = Store::at(target(&redis, None)).until_lost().await;
        assert!(cause.to_lowercase().contains("certificate"), "{cause}");
        let missing = std::path::Path::new("/nowhere/ca.pem");
        let cause = Store::at(target(&redis, Some(missing))).until_lost().await;
        assert!(
            cause.contains("redis.ca") && cause.contains("/nowhere/ca.pem"),
            "{cause}"
        );
    });
}
