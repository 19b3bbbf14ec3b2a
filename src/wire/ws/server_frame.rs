//! Frames as the gateway sends them, looked at from outside: is this one that may enter a client's stream?
//!
//! Pure. What other gateways send comes over Redis, where others may write too. A client's stream survives every content, but not
//! bytes that are no frame.

/// True if these bytes are one whole text frame of a server, with an object of this `type` in it as [`super::encode`] writes it:
/// shortest length, no mask, valid UTF-8. The grammar of what is inside is not checked again.
pub fn is_object_frame(frame: &[u8], kind: &str) -> bool {
    let Some((&[first, len], rest)) = frame.split_first_chunk::<2>() else {
        return false;
    };
    let (len, payload) = match len {
        126 => match rest.split_first_chunk::<2>() {
            Some((len, payload)) => (u64::from(u16::from_be_bytes(*len)), payload),
            None => return false,
        },
        127 => match rest.split_first_chunk::<8>() {
            Some((len, payload)) => (u64::from_be_bytes(*len), payload),
            None => return false,
        },
        // The upper bit is for masks, which servers have none of.
        128.. => return false,
        len => (u64::from(len), rest),
    };
    let shortest = match frame.len() - payload.len() {
        2 => true,
        4 => len >= 126,
        _ => len > u64::from(u16::MAX),
    };
    first == 0x81 && shortest && len == payload.len() as u64 && is_object(payload, kind)
}

fn is_object(payload: &[u8], kind: &str) -> bool {
    let inside = payload
        .strip_prefix(br#"{"type":""#)
        .and_then(|rest| rest.strip_prefix(kind.as_bytes()))
        .and_then(|rest| rest.strip_prefix(b"\""));
    inside.is_some_and(|inside| inside.ends_with(b"}")) && std::str::from_utf8(payload).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::wire::json::encode;

    fn message(content: &str) -> Vec<u8> {
        let mut frame = Vec::new();
        let message = encode::Message {
            id: Uuid::nil(),
            from: "alice",
            to: "bob",
            content,
            ts_ms: 7,
        };
        encode::message(&mut frame, &message);
        frame
    }

    #[test]
    fn what_gateways_send_passes() {
        for len in [0, 1, 20, 30, 60, 1_000, 65_400, 65_535, 65_536, 200_000] {
            assert!(
                is_object_frame(&message(&format!("\"{}\"", "é".repeat(len))), "message"),
                "{len}"
            );
        }
        let mut frame = Vec::new();
        encode::broadcast(&mut frame, Uuid::nil(), "{}", 7);
        assert!(is_object_frame(&frame, "broadcast") && !is_object_frame(&frame, "message"));
        let mut frame = Vec::new();
        let publication = encode::Publication {
            id: Uuid::nil(),
            from: "",
            channel: "room",
            content: "1",
            ts_ms: 7,
        };
        encode::publication(&mut frame, &publication);
        assert!(is_object_frame(&frame, "publication"));
    }

    #[test]
    fn what_is_no_frame_does_not() {
        let good = message("1");
        for cut in 0..good.len() {
            assert!(!is_object_frame(&good[..cut], "message"), "{cut}");
        }
        let twice = good.repeat(2);
        let (mut masked, mut closing, mut long, mut invalid) = (good.clone(), good.clone(), good.clone(), good.clone());
        masked[1] |= 0x80;
        closing[0] = 0x88;
        long.splice(1..2, [126, 0, good[1]]);
        let end = invalid.len() - 2;
        invalid[end] = 0xff;
        for bad in [twice, masked, closing, long, invalid, b"frame".to_vec(), vec![0x81, 0]] {
            assert!(!is_object_frame(&bad, "message"), "{bad:?}");
        }
        let mut huge = vec![0x81, 127];
        huge.extend(u64::MAX.to_be_bytes());
        assert!(!is_object_frame(&huge, "message"));
    }

    proptest! {
        /// No byte of the header may be another one.
        #[test]
        fn another_header_is_refused(at in 0usize..2, to in any::<u8>()) {
            let mut frame = message("[1,2,3]");
            prop_assume!(frame[at] != to);
            frame[at] = to;
            prop_assert!(!is_object_frame(&frame, "message"));
        }
    }
}
