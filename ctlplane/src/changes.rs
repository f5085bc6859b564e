//! What is a change of the running configuration, what does it differ from, and what does it move?
//!
//! The running configuration is a text. [`edit`] changes that text, [`difference`] compares two of them in the words of the
//! file, [`blast`] says what the tables that they make would do to traffic.

pub mod blast;
pub mod difference;
pub mod edit;

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Most bytes of a comment and of a command that are kept.
const MOST_WORDS: usize = 1_000;

/// Who asked for a change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Who {
    /// As the kernel told it; absent where the daemon acted by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The user's name on this machine.
    pub name: String,
}

impl Who {
    /// The user with this number, by the name that the system knows.
    pub fn user(uid: u32) -> Self {
        let known = nix::unistd::User::from_uid(uid.into()).ok().flatten();
        let name = known.map_or_else(|| format!("uid {uid}"), |user| shortened(&user.name));
        Self { uid: Some(uid), name }
    }

    /// The daemon.
    pub fn daemon() -> Self {
        Self { uid: None, name: "weir-ctlplane".to_owned() }
    }
}

/// Where a change comes from: what history tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Who asked.
    pub who: Who,
    /// How: the command.
    pub how: String,
    /// In the operator's words.
    pub comment: Option<String>,
}

impl Origin {
    /// A change that somebody asked for.
    pub fn new(who: Who, how: &str, comment: Option<&str>) -> Self {
        let comment = comment.map(shortened).filter(|comment| !comment.is_empty());
        Self { who, how: shortened(how), comment }
    }

    /// A change by the daemon itself.
    pub fn daemon(how: &str) -> Self {
        Self::new(Who::daemon(), how, None)
    }
}

/// Without controls, which would write over a terminal that shows it, and not for ever.
fn shortened(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut length = 0;
    let bounded = clean.take_while(|c| {
        length += c.len_utf8();
        length <= MOST_WORDS
    });
    bounded.collect::<String>().trim().to_owned()
}

/// The wall clock, in Unix milliseconds.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_bounded_and_cannot_move_a_cursor() {
        assert_eq!(shortened(" a\x1b[2Jb\n"), "a [2Jb");
        assert_eq!(shortened(&"\u{e9}".repeat(2_000)).len(), 1_000);
    }

    #[test]
    fn users_have_names() {
        assert_eq!(Who::user(0), Who { uid: Some(0), name: "root".to_owned() });
        assert_eq!(Who::user(4_000_000_000).name, "uid 4000000000");
    }
}
