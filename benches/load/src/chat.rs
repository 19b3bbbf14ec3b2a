//! The users' actions in `mixed`: a file in TOML, checked.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::duration;

/// The scenario without `--scenario`.
const DEFAULT: &str = include_str!("../../scenarios/chat.toml");

/// A user's next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Message,
    Publish,
    Presence,
    Subscribe,
    Unsubscribe,
    Leave,
    Vanish,
}

impl Action {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Publish => "publish",
            Self::Presence => "presence",
            Self::Subscribe => "subscribe",
            Self::Unsubscribe => "unsubscribe",
            Self::Leave => "leave",
            Self::Vanish => "vanish",
        }
    }
}

/// A scenario file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Chat {
    /// Actions per second.
    pub(crate) rate: f64,
    pub(crate) contacts: usize,
    pub(crate) users_per_channel: usize,
    pub(crate) channels_per_user: usize,
    #[serde(deserialize_with = "time")]
    pub(crate) away_least: Duration,
    #[serde(deserialize_with = "time")]
    pub(crate) away_most: Duration,
    weights: Weights,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Weights {
    message: u32,
    publish: u32,
    presence: u32,
    subscribe: u32,
    unsubscribe: u32,
    leave: u32,
    vanish: u32,
}

impl Weights {
    fn all(&self) -> [(Action, u32); 7] {
        [
            (Action::Message, self.message),
            (Action::Publish, self.publish),
            (Action::Presence, self.presence),
            (Action::Subscribe, self.subscribe),
            (Action::Unsubscribe, self.unsubscribe),
            (Action::Leave, self.leave),
            (Action::Vanish, self.vanish),
        ]
    }
}

impl Default for Chat {
    fn default() -> Self {
        Self::parse(DEFAULT).expect("the scenario that is built in is valid")
    }
}

impl Chat {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The fault as one line.
    pub(crate) fn read(file: &Path) -> Result<Self, String> {
        let say = |why: String| format!("--scenario {}: {why}", file.display());
        let text = std::fs::read_to_string(file).map_err(|error| say(error.to_string()))?;
        Self::parse(&text).map_err(say)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let chat: Self = toml::from_str(text).map_err(|error| error.to_string().trim_end().replace('\n', " "))?;
        let weights = chat
            .weights
            .all()
            .map(|(_, weight)| u64::from(weight))
            .iter()
            .sum::<u64>();
        let wrong = [
            (
                !(chat.rate.is_finite() && chat.rate > 0.0),
                "rate must be a number above 0",
            ),
            (chat.contacts == 0, "contacts must be 1 or more"),
            (chat.users_per_channel == 0, "users_per_channel must be 1 or more"),
            (chat.away_most < chat.away_least, "away_most is less than away_least"),
            (weights == 0, "all weights are 0: nothing would ever happen"),
        ];
        match wrong.iter().find(|(is_wrong, _)| *is_wrong) {
            Some((_, why)) => Err((*why).to_owned()),
            None => Ok(chat),
        }
    }

    /// The next action.
    pub(crate) fn draw(&self, random: &mut fastrand::Rng) -> Action {
        let all = self.weights.all();
        let mut left = random.u64(0..all.iter().map(|(_, weight)| u64::from(*weight)).sum());
        for (action, weight) in all {
            match left.checked_sub(weight.into()) {
                None => return action,
                Some(rest) => left = rest,
            }
        }
        Action::Message
    }
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    duration::parse(&text).map_err(|why| serde::de::Error::custom(format!("{text:?} {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_come_as_often_as_they_weigh() {
        let (chat, mut random) = (Chat::default(), fastrand::Rng::with_seed(1));
        let mut drawn = std::collections::HashMap::new();
        for _ in 0..100_000 {
            *drawn.entry(chat.draw(&mut random).name()).or_insert(0u32) += 1;
        }
        for (action, weight) in chat.weights.all() {
            let (drawn, expected) = (drawn[action.name()], weight * 1000);
            assert!(
                drawn.abs_diff(expected) < expected / 5,
                "{action:?}: {drawn} of {expected}"
            );
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, part) in [
            ("rate = 1000", "rate = 0", "rate must"),
            ("contacts = 5", "contacts = 0", "contacts must"),
            ("contacts = 5", "", "contacts"),
            ("away_most = \"5s\"", "away_most = \"0.5s\"", "less than"),
            ("away_most = \"5s\"", "away_most = \"5y\"", "10s"),
            ("publish = 15", "pubish = 15", "pubish"),
        ] {
            let why = Chat::parse(&DEFAULT.replace(from, to)).unwrap_err();
            assert!(why.contains(part), "{to}: {why}");
        }
        let (head, _) = DEFAULT.split_once("[weights]").unwrap();
        assert!(
            Chat::parse(&format!("{head}[weights]"))
                .unwrap_err()
                .contains("weights")
        );
    }
}
