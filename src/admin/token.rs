//! The admin token: a request that shows it is authorized.

use subtle::ConstantTimeEq;

/// True if `authorization`, the value of the one header of that name, is `Bearer` and this token.
/// The time of the comparison reveals nothing about the token but its length.
pub fn is_shown(token: &str, authorization: Option<&[u8]>) -> bool {
    const SCHEME: &[u8] = b"bearer ";
    let Some((scheme, shown)) = authorization.and_then(|value| value.split_at_checked(SCHEME.len())) else {
        return false;
    };
    scheme.eq_ignore_ascii_case(SCHEME) && shown.trim_ascii().ct_eq(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::is_shown;

    #[test]
    fn only_the_token_itself_will_do() {
        let shown = |value: &str| is_shown("0123456789abcdef", Some(value.as_bytes()));
        assert!(shown("Bearer 0123456789abcdef") && shown("bearer  0123456789abcdef "));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "0123456789abcdef",
            "Basic 0123456789abcdef",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdeF",
            "Bearer 0123456789abcdef0",
            "Bearer: 0123456789abcdef",
        ] {
            assert!(!shown(wrong), "{wrong}");
        }
        assert!(!is_shown("0123456789abcdef", None));
    }
}
