//! The values of flags: text to a value, or the correct form. Pure.

use crate::message::PAYLOAD_BYTES_MIN;

/// CPUs by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CpuList(pub(super) Vec<usize>);

/// Reads a whole number from 1 to `max`.
pub(super) fn count_to(max: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| {
        let n = text.parse().ok().filter(|n| (1..=max).contains(n));
        n.ok_or_else(|| match max {
            usize::MAX => "must be a whole number above 0".to_owned(),
            max => format!("must be 1 to {max}"),
        })
    }
}

pub(super) fn payload_bytes(text: &str) -> Result<usize, String> {
    let n = text.parse().ok().filter(|n| (PAYLOAD_BYTES_MIN..=16 << 20).contains(n));
    n.ok_or_else(|| format!("must be {PAYLOAD_BYTES_MIN} bytes (the numbers) to 16 MiB"))
}

pub(super) fn per_second(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|r: &f64| r.is_finite() && *r > 0.0);
    rate.ok_or_else(|| "must be a number above 0".to_owned())
}

pub(super) fn user_prefix(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.~".contains(c);
    if text.len() > 100 || !text.chars().all(plain) {
        return Err("must be at most 100 letters, digits, - _ . ~".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn cpu_list(text: &str) -> Result<CpuList, String> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last && last < rustix::thread::CpuSet::MAX_CPU).then_some(first..=last)
    };
    let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
    ranges
        .map(|ranges| CpuList(ranges.into_iter().flatten().collect()))
        .ok_or_else(|| "must be like 1 or 0-3,6".to_owned())
}
