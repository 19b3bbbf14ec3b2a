//! Why a run is no success, in words.
//!
//! Duty: from the JSON of a report what happened that must not. It reads the JSON and not the
//! report, so that a report of last year has its reasons too. Pure.

use serde_json::Value;

/// Where faults are counted in the JSON, and what they are, the worst first. An object is counts by
/// kind.
const FAULTS: &[(&str, &str)] = &[
    ("/lost", "lost"),
    ("/duplicates", "came twice"),
    ("/reordered", "out of order"),
    ("/corrupted", "damaged"),
    ("/misrouted", "misrouted"),
    ("/unsent", "not sent"),
    ("/acks/missing", "requests without an answer"),
    ("/acks/unexpected", "answers to nothing"),
    ("/mixed/statusWrong", "acks with a wrong status"),
    ("/mixed/presenceWrong", "wrong words about presence"),
    ("/connections/failed", "connections that failed"),
    ("/connections/dropped", "connections that ended unasked"),
    ("/mixed/refused", "attempts to come back that failed"),
    ("/storm/missing", "clients that never came back"),
    ("/subscriptionFailures", "subscriptions that failed"),
    ("/errors", "errors"),
];

/// The reasons; none for a run that is well.
pub(crate) fn reasons(report: &Value) -> Vec<String> {
    if report["ok"].as_bool() == Some(true) {
        return vec![];
    }
    let count = |place: &str| match report.pointer(place) {
        Some(Value::Object(kinds)) => kinds.values().filter_map(Value::as_u64).sum(),
        value => value.and_then(Value::as_u64).unwrap_or(0),
    };
    let mut reasons: Vec<String> = FAULTS
        .iter()
        .map(|(place, what)| (count(place), what))
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if report["drained"].as_bool() == Some(false) {
        reasons.push("something was still under way at the end".to_owned());
    }
    if report.pointer("/storm/cut").and_then(Value::as_u64) == Some(0) {
        reasons.push("nobody was cut off".to_owned());
    }
    if reasons.is_empty() {
        // Such as clients that were told to stay away and should not have been, or the other way
        // round.
        reasons.push("not everybody is where they should be".to_owned());
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_worst_comes_first_and_nothing_is_left_out() {
        let report = json!({
            "ok": false, "lost": 3, "duplicates": 0, "drained": false, "errors": {"rateLimited": 2, "badRequest": 1},
            "acks": {"missing": 1, "unexpected": 0}, "generator": {"limits": ["slow"]},
        });
        let expected = [
            "3 lost",
            "1 requests without an answer",
            "3 errors",
            "something was still under way at the end",
        ];
        assert_eq!(reasons(&report), expected);
    }

    #[test]
    fn a_run_that_is_well_has_none_and_each_other_has_one() {
        assert!(reasons(&json!({"ok": true, "generator": {"limits": ["slow"]}})).is_empty());
        assert_eq!(reasons(&json!({"ok": false})).len(), 1);
        assert_eq!(
            reasons(&json!({"ok": false, "storm": {"cut": 0}})),
            ["nobody was cut off"]
        );
    }
}
