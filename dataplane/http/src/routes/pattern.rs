//! Does a text match an expression as a whole? In time linear in the text, without memory of its own.
//!
//! Expressions become complete automata off the packet path: a match is one step per byte, ends at the first byte after which
//! nothing can match any more, takes no lock and allocates nothing, so that workers share one. What an automaton would need
//! beyond [`STATES_BYTES`] is refused when it is built. Expressions are about bytes: `.` is one byte but `\n`, and `\w`, `\d`,
//! `\s`, `\b` and `(?i)` mean ASCII.

use std::fmt;

use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::primitives::StateID;
use regex_automata::util::{start, syntax};
use regex_automata::{Anchored, MatchKind};

/// Longest expression.
pub const PATTERN_BYTES: usize = 1_024;
/// Most memory of an expression's automaton.
pub const STATES_BYTES: usize = 1 << 20;
/// Most memory that building it may take.
const BUILDING_BYTES: usize = 8 << 20;
/// Deepest nesting of an expression.
const DEPTH: u32 = 32;

/// An expression, built.
#[derive(Clone)]
pub(super) struct Pattern {
    states: dense::DFA<Vec<u32>>,
    start: StateID,
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({} bytes)", self.states.memory_usage())
    }
}

impl Pattern {
    /// Builds it, or says what is wrong with it.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        if text.len() > PATTERN_BYTES {
            return Err(format!("it has {} bytes, at most {PATTERN_BYTES} are allowed", text.len()));
        }
        let states = dense::Config::new()
            // all ways to match are followed to the text's end, where one of them must match
            .match_kind(MatchKind::All)
            .start_kind(StartKind::Anchored)
            .accelerate(false)
            .dfa_size_limit(Some(STATES_BYTES))
            .determinize_size_limit(Some(BUILDING_BYTES));
        let states = dense::Builder::new()
            .configure(states)
            .syntax(syntax::Config::new().unicode(false).utf8(false).nest_limit(DEPTH))
            .thompson(thompson::Config::new().utf8(false).nfa_size_limit(Some(STATES_BYTES)))
            .build(text)
            .map_err(|error| explained(&error))?;
        let start = states
            .start_state(&start::Config::new().anchored(Anchored::Yes))
            .map_err(|error| error.to_string())?;
        Ok(Self { states, start })
    }

    /// Whether all of the text matches.
    #[inline]
    pub(super) fn matches(&self, text: &[u8]) -> bool {
        let mut state = self.start;
        for byte in text {
            state = self.states.next_state(state, *byte);
            if self.states.is_special_state(state)
                && (self.states.is_dead_state(state) || self.states.is_quit_state(state))
            {
                return false;
            }
        }
        // matches are told one step late (regex-automata, "Automaton")
        self.states.is_match_state(self.states.next_eoi_state(state))
    }

    /// What every text that matches begins with, at most so many bytes: to be compared before.
    pub(super) fn beginning(&self, most: usize) -> Vec<u8> {
        let mut beginning = Vec::new();
        let mut state = self.start;
        while beginning.len() < most && !self.states.is_match_state(self.states.next_eoi_state(state)) {
            let alive = |byte: &u8| !self.states.is_dead_state(self.states.next_state(state, *byte));
            let mut bytes = (0..=u8::MAX).filter(alive);
            let (Some(byte), None) = (bytes.next(), bytes.next()) else { break };
            beginning.push(byte);
            state = self.states.next_state(state, byte);
        }
        beginning
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.states.memory_usage()
    }
}

/// The innermost error: what is wrong in the expression, rather than that something is.
fn explained(error: &dense::BuildError) -> String {
    let mut innermost: &dyn std::error::Error = error;
    let mut is_too_large = error.is_size_limit_exceeded();
    while let Some(source) = innermost.source() {
        innermost = source;
        let building = innermost.downcast_ref::<thompson::BuildError>();
        is_too_large |= building.is_some_and(|error| error.size_limit().is_some());
    }
    if is_too_large {
        let most = STATES_BYTES >> 10;
        return format!("its automaton needs more than {most} KiB; shorten repetitions and classes");
    }
    // the parser draws the expression with a caret in several lines; the last one says why
    let text = innermost.to_string();
    text.lines().last().map_or_else(|| text.clone(), |line| line.trim_start_matches("error: ").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Pattern::new(pattern).unwrap().matches(text.as_bytes())
    }

    #[test]
    fn the_whole_text_is_asked() {
        for (pattern, text, expected) in [
            ("/v[0-9]+", "/v12", true),
            ("/v[0-9]+", "/v12/", false),
            ("/v[0-9]+", "x/v12", false),
            // alternatives are not torn apart by the anchors
            ("/a|/b", "/a", true),
            ("/a|/b", "/b", true),
            ("/a|/b", "/a/b", false),
            ("a)|(b", "", false),
            // the longer of two ways counts though the shorter one is preferred
            ("/a|/ab", "/ab", true),
            ("/a+?", "/aaa", true),
            ("", "", true),
            ("", "x", false),
            (".*", "", true),
            ("(?i)/Shop", "/sHOP", true),
            ("^/x$", "/x", true),
            (r"/\w+\b", "/word", true),
            (r"/[^/]+/edit", "/\u{fc}ber/edit", true),
            ("/über", "/über", true),
        ] {
            match Pattern::new(pattern) {
                Ok(built) => assert_eq!(built.matches(text.as_bytes()), expected, "{pattern} on {text}"),
                Err(_) => assert_eq!(pattern, "a)|(b"),
            }
        }
        assert!(Pattern::new(r"/[^/]+").unwrap().matches(b"/\xff\xfe"));
        assert!(matches(r"/\d{1,9}", "/123456789"));
    }

    #[test]
    fn beginnings_are_what_all_matches_share() {
        for (pattern, expected) in [
            ("/users/[0-9]+/avatar", "/users/"),
            ("/users|/u/x", "/u"),
            ("/a(/.*)?", "/a"),
            ("/ab*", "/a"),
            ("/a{3}.", "/aaa"),
            (r"/v1\.json", "/v1.jso"),
            ("(?i)/A", "/"),
            (".*", ""),
            ("", ""),
            ("[^\\x00-\\xff]", ""),
        ] {
            let beginning = Pattern::new(pattern).unwrap().beginning(7);
            assert_eq!(String::from_utf8(beginning).unwrap(), expected, "{pattern}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert!(Pattern::new("/(").unwrap_err().contains("unclosed group"), "{:?}", Pattern::new("/("));
        assert!(Pattern::new(&"a".repeat(1_025)).unwrap_err().contains("1025 bytes"));
        for large in ["(a|b)*a(a|b){20}", "(x{50}){50}{50}", r"(?u)\w{90}"] {
            let refusal = Pattern::new(large).unwrap_err();
            assert!(refusal.contains("1024 KiB"), "{large}: {refusal}");
        }
        assert!(Pattern::new(&"(".repeat(200)).is_err());
        assert!(Pattern::new(r"(a)\1").is_err());
    }
}
