//! Any bytes, cut anywhere: our frame reader says what tungstenite says.
//!
//! Input: one byte for the limit, one for the number of cuts, two for each cut, then the stream.

#![no_main]

#[path = "../../tests/support/frame_oracle.rs"]
#[allow(dead_code, reason = "tests use the rest of it")]
mod frame_oracle;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let [limit, cut_count, rest @ ..] = input else {
        return;
    };
    let limit = [0, 10, 125, 126, 1000, 65_535, 65_536, 1 << 20][usize::from(limit % 8)];
    let (cuts, stream) = rest.split_at(rest.len().min(2 * usize::from(cut_count % 8)));
    let cuts: Vec<usize> = cuts
        .chunks(2)
        .map(|cut| usize::from(cut[0]) << 8 | usize::from(cut[cut.len() - 1]))
        .map(|cut| cut % (stream.len() + 1))
        .collect();
    if let Err(why) = frame_oracle::compare(stream, &cuts, limit) {
        panic!("{why}");
    }
});
