//! The names that a user may use. Names of channels are checked by the keys `channels.subscribe`
//! and `channels.publish`, those of other users by `messages.send` and `messages.presence`.
//!
//! Pure. In a pattern, `*` stands for any run of characters, also for none and across any
//! separator. `{user}` stands for the id of the user whose permission is checked. All else stands
//! for itself, byte by byte. There is no way to write a literal `*`, `{` or `}`.
//!
//! Invariant: an id never widens a pattern. Users may choose their ids, so `{user}` is compared as
//! it is. It is never written into a pattern, where an id such as `*` would match everybody's.

/// The longest pattern, bytes; as long as the longest name of a channel.
pub const PATTERN_BYTES_MAX: usize = 255;

/// Stands for the user's id.
const USER: &str = "{user}";

/// Decides on names; if empty, no name is allowed. Replaced as a whole on reload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Patterns {
    patterns: Vec<Pattern>,
}

/// No two `Any` stand side by side, and no literal is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    /// `*`
    Any,
    /// `{user}`
    User,
}

/// A text that is no pattern.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{pattern:?} {why}")]
pub struct PatternError {
    /// The text; a long one is shortened.
    pub pattern: String,
    /// The error in it, and what to write instead.
    pub why: &'static str,
}

impl Patterns {
    /// Reads patterns; an empty list allows nothing.
    ///
    /// # Errors
    /// The first text that is no pattern.
    pub fn parse(patterns: &[String]) -> Result<Patterns, PatternError> {
        let pattern = |pattern: &String| {
            Pattern::parse(pattern).map_err(|why| PatternError {
                pattern: pattern.chars().take(200).collect(),
                why,
            })
        };
        Ok(Patterns {
            patterns: patterns.iter().map(pattern).collect::<Result<_, _>>()?,
        })
    }

    /// Every name, for every user.
    #[must_use]
    pub fn any() -> Patterns {
        Patterns {
            patterns: vec![Pattern { parts: vec![Part::Any] }],
        }
    }

    /// Whether this user may use this name.
    #[must_use]
    pub fn allows(&self, user: &str, name: &str) -> bool {
        let (user, name) = (user.as_bytes(), name.as_bytes());
        self.patterns.iter().any(|pattern| pattern.matches(user, name))
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Pattern, &'static str> {
        if text.is_empty() {
            return Err("is empty: write a name, or * for every one");
        }
        if text.len() > PATTERN_BYTES_MAX {
            return Err("is longer than 255 bytes: write * in place of a part of it");
        }
        if text.chars().any(char::is_control) {
            return Err("has a control character, and no name has one: remove it");
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(['*', '{', '}']) {
            let (literal, special) = rest.split_at(at);
            if !literal.is_empty() {
                parts.push(Part::Literal(literal.to_owned()));
            }
            rest = if let Some(after) = special.strip_prefix('*') {
                if parts.last() != Some(&Part::Any) {
                    parts.push(Part::Any);
                }
                after
            } else if let Some(after) = special.strip_prefix(USER) {
                parts.push(Part::User);
                after
            } else if special.starts_with('}') {
                return Err("has a } without its {: write {user} for the user's id");
            } else if special.contains('}') {
                return Err("has something else than user in braces: did you mean {user}? There is no other");
            } else {
                return Err("has a { without its }: write {user} for the user's id");
            };
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.to_owned()));
        }
        Ok(Pattern { parts })
    }

    /// Each star takes as little as it can, and only the last one met is ever made to take more.
    /// The parts between stars have a fixed text. So the first position where one fits leaves the
    /// most to those behind it.
    ///
    /// A star is made to take more at most once per byte of the name. Each try compares at most the
    /// bytes that are left of it. That is n² byte comparisons at worst, and n where the text after
    /// a star rarely begins in vain.
    fn matches(&self, user: &[u8], channel: &[u8]) -> bool {
        let (mut at, mut rest) = (0, channel);
        // The part after the last star met, and the rest of the name when it was tried last.
        let mut last_star = None;
        loop {
            let fits = match self.parts.get(at) {
                Some(Part::Any) if at + 1 == self.parts.len() => return true,
                Some(Part::Any) => {
                    last_star = Some((at + 1, rest));
                    Some(rest)
                }
                Some(Part::Literal(text)) => rest.strip_prefix(text.as_bytes()),
                Some(Part::User) => rest.strip_prefix(user),
                None if rest.is_empty() => return true,
                None => None,
            };
            if let Some(left) = fits {
                (at, rest) = (at + 1, left);
                continue;
            }
            let Some((after, [_, shorter @ ..])) = last_star else {
                return false;
            };
            last_star = Some((after, shorter));
            (at, rest) = (after, shorter);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn patterns(patterns: &[&str]) -> Patterns {
        Patterns::parse(&patterns.iter().map(|pattern| (*pattern).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn allows(pattern: &str, user: &str, channel: &str) -> bool {
        patterns(&[pattern]).allows(user, channel)
    }

    fn refusal(pattern: &str) -> PatternError {
        Patterns::parse(&[pattern.to_owned()]).unwrap_err()
    }

    #[test]
    fn a_plain_pattern_is_one_channel() {
        assert!(allows("news", "alice", "news"));
        for other in ["", "new", "newss", "News", "xnews", "news ", "*"] {
            assert!(!allows("news", "alice", other), "{other:?}");
        }
    }

    #[test]
    fn a_star_is_any_run_of_characters() {
        for channel in ["room:", "room:1", "room:1:2/3.4", "room:*", "room:ü"] {
            assert!(allows("room:*", "alice", channel), "{channel:?}");
        }
        assert!(!allows("room:*", "alice", "room"));
        assert!(!allows("room:*", "alice", "a room:1"));
        assert!(allows("*:log", "alice", ":log:log"));
        assert!(allows("a*b*c", "alice", "abbcbc"));
        assert!(!allows("a*b*c", "alice", "acb"));
        // The end of what the first star leaves may not be counted twice.
        assert!(!allows("ab*ba", "alice", "aba"));
        assert!(allows("**", "alice", ""));
        assert_eq!(patterns(&["**"]), Patterns::any());
    }

    #[test]
    fn the_users_id_is_compared_as_it_is() {
        assert!(allows("inbox:{user}", "alice", "inbox:alice"));
        assert!(!allows("inbox:{user}", "alice", "inbox:bob"));
        assert!(!allows("inbox:{user}", "alice", "inbox:{user}"));
        assert!(!allows("inbox:{user}", "alice", "inbox:alice2"));
        assert!(allows("{user}-{user}", "al", "al-al"));
        assert!(!allows("{user}-{user}", "al", "al-bo"));
        assert!(allows("dm:*:{user}:*", "bo", "dm:bob:bo:bo"));
        assert!(allows("*{user}", "aab", "aaab"));
    }

    #[test]
    fn an_id_never_widens_a_pattern() {
        for user in ["*", "**", "{user}", "a*", "*:x", "{", "}"] {
            assert!(!allows("inbox:{user}", user, "inbox:alice"), "{user:?}");
            assert!(!allows("inbox:{user}", user, "inbox:a:x"), "{user:?}");
            assert!(!allows("inbox:{user}:*", user, "inbox:alice:x"), "{user:?}");
            assert!(allows("inbox:{user}", user, &format!("inbox:{user}")), "{user:?}");
        }
    }

    #[test]
    fn one_pattern_of_several_is_enough_and_none_is_nobody() {
        let some = patterns(&["news", "inbox:{user}"]);
        assert!(some.allows("alice", "news") && some.allows("alice", "inbox:alice"));
        assert!(!some.allows("alice", "room"));
        assert_eq!(Patterns::parse(&[]), Ok(Patterns::default()));
        assert!(!Patterns::default().allows("alice", "news"));
        assert!(!Patterns::default().allows("alice", ""));
        assert!(Patterns::any().allows("alice", "news"));
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_the_remedy() {
        let long = "x".repeat(PATTERN_BYTES_MAX + 1);
        for (pattern, remedy) in [
            ("", "or * for every one"),
            ("{usr}", "did you mean {user}?"),
            ("{User}", "did you mean {user}?"),
            ("{ user }", "did you mean {user}?"),
            ("{}", "did you mean {user}?"),
            ("{{user}}", "did you mean {user}?"),
            ("inbox:{user", "{ without its }"),
            ("{user}:{", "{ without its }"),
            ("inbox:user}", "} without its {"),
            ("a\nb", "control character"),
            ("a\u{85}b", "control character"),
            (&long, "255 bytes"),
        ] {
            let error = refusal(pattern);
            assert!(error.why.contains(remedy), "{error}");
            assert!(
                !error.to_string().contains('\n') && error.to_string().len() < 400,
                "{error}"
            );
        }
        assert!(refusal(&long).why.contains(&PATTERN_BYTES_MAX.to_string()));
        assert!(allows(&long[1..], "alice", &long[1..]));
    }

    /// Every star and every id begins in vain at every byte; an exponential search would not end.
    #[test]
    fn the_worst_case_ends() {
        let channel = "a".repeat(PATTERN_BYTES_MAX);
        assert!(!allows(&format!("{}b", "*a".repeat(127)), "alice", &channel));
        assert!(!allows(&format!("{}b", "*{user}".repeat(36)), "aaa", &channel));
        assert!(!allows(&format!("*{}b", "{user}".repeat(42)), "a", &channel));
        // An empty id, which no session has, takes nothing and so must not be tried for ever.
        assert!(!allows(&format!("{}b", "*{user}".repeat(36)), "", &channel));
    }

    /// A literal translation of the documentation, at any cost.
    fn naive(pattern: &[u8], user: &[u8], channel: &[u8]) -> bool {
        if let Some(pattern) = pattern.strip_prefix(b"*") {
            return (0..=channel.len()).any(|taken| naive(pattern, user, &channel[taken..]));
        }
        if let Some(pattern) = pattern.strip_prefix(USER.as_bytes()) {
            return channel
                .strip_prefix(user)
                .is_some_and(|rest| naive(pattern, user, rest));
        }
        match (pattern, channel) {
            ([], []) => true,
            ([wanted, pattern @ ..], [byte, channel @ ..]) => wanted == byte && naive(pattern, user, channel),
            _ => false,
        }
    }

    /// Pieces that collide often: few letters, and ids that look like patterns.
    fn pieces() -> impl Strategy<Value = Vec<&'static str>> {
        proptest::collection::vec(proptest::sample::select(&["a", "b", "ab", "ü", "*", USER][..]), 1..9)
    }

    fn user() -> impl Strategy<Value = String> {
        "[abü*]{0,3}|\\{user\\}"
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn it_decides_as_the_naive_matcher_does(pieces in pieces(), user in user(), channel in "[abü*]{0,10}") {
            let pattern = pieces.concat();
            let expected = naive(pattern.as_bytes(), user.as_bytes(), channel.as_bytes());
            prop_assert_eq!(allows(&pattern, &user, &channel), expected);
        }

        #[test]
        fn what_is_made_from_a_pattern_matches_it(
            pieces in pieces(),
            user in user(),
            runs in proptest::collection::vec("[abü*]{0,3}", 8),
        ) {
            let mut runs = runs.iter();
            let channel: String = pieces
                .iter()
                .map(|piece| match *piece {
                    "*" => runs.next().unwrap(),
                    USER => user.as_str(),
                    literal => literal,
                })
                .collect();
            prop_assert!(allows(&pieces.concat(), &user, &channel), "{channel:?}");
        }

        #[test]
        fn an_id_stands_for_itself_only(user in any::<String>(), channel in any::<String>()) {
            prop_assert_eq!(allows("{user}", &user, &channel), user == channel);
            let own = allows("{user}", &user, &user);
            prop_assert!(own);
            let below = channel.strip_prefix(&user).is_some_and(|rest| rest.starts_with(':'));
            prop_assert_eq!(allows("{user}:*", &user, &channel), below);
        }

        #[test]
        fn nothing_panics(pattern in any::<String>(), user in any::<String>(), channel in any::<String>()) {
            if let Ok(patterns) = Patterns::parse(&[pattern]) {
                let _ = patterns.allows(&user, &channel);
            }
        }
    }
}
