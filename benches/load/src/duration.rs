//! Times as people write them. Pure.

use std::time::Duration;

/// Reads `10s`, `500ms`, `2m`, or bare seconds.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.find(|c: char| c.is_ascii_alphabetic()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let factor = match unit {
        "ms" => Some(0.001),
        "s" => Some(1.0),
        "m" => Some(60.0),
        "h" => Some(3600.0),
        _ => None,
    };
    factor
        .zip(number.parse::<f64>().ok())
        .and_then(|(factor, number)| Duration::try_from_secs_f64(number * factor).ok())
        .filter(|d| d.as_secs() < 30 * 86_400)
        .ok_or_else(|| "must be a time like 10s, 500ms, 2m, or seconds".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, ms) in [
            ("10s", 10_000),
            ("500ms", 500),
            ("2m", 120_000),
            ("3", 3_000),
            ("0.5", 500),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert!(["", "s", "-1", "1y", "1e30"].iter().all(|text| parse(text).is_err()));
    }
}
