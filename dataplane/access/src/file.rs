//! What do the lines of a list file say? One prefix a line, `#` begins a comment; `allow` or `deny` before it where the configuration does
//! not say which.

use std::net::IpAddr;

use crate::build::Prefix;
use crate::list::List;

/// Largest list file.
pub const MAX_FILE_BYTES: usize = 32 << 20;
/// Most prefixes of a list, those of its files included.
pub const MAX_PREFIXES: usize = 500_000;
/// Most faults that are told of one file.
const MOST_FAULTS: usize = 50;
/// Most characters of a line that a message quotes.
const MOST_QUOTED: usize = 60;

/// A prefix of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// From 1.
    pub line: usize,
    /// Whether it is denied.
    pub deny: bool,
    /// As written: host bits may be set.
    pub prefix: (IpAddr, u8),
}

/// A line that is not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

/// A prefix, or an address that stands for itself.
pub fn parse_prefix(text: &str) -> Result<(IpAddr, u8), String> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr =
        address.parse().map_err(|_| format!("\"{}\" is not an IP address", quoted(address)))?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let Some(length) = length else { return Ok((address, bits)) };
    match length.parse::<u8>() {
        Ok(number) if number <= bits && !length.starts_with('+') => Ok((address, number)),
        _ => Err(format!("\"/{}\" is not a prefix length from 0 to {bits}", quoted(length))),
    }
}

fn quoted(text: &str) -> String {
    match text.char_indices().nth(MOST_QUOTED) {
        Some((end, _)) => format!("{}\u{2026}", text.get(..end).unwrap_or("")),
        None => text.to_owned(),
    }
}

/// Reads a file. `deny` says what its prefixes are for; `None`: each line does. The faults are the first ones.
pub fn parse(bytes: &[u8], deny: Option<bool>) -> (Vec<Entry>, Vec<Fault>) {
    let mut entries = Vec::new();
    let mut faults = Vec::new();
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let good = std::str::from_utf8(bytes.get(..error.valid_up_to()).unwrap_or(&[])).unwrap_or("");
            let line = good.matches('\n').count() + 1;
            let column = good.rsplit('\n').next().unwrap_or("").chars().count() + 1;
            faults.push(Fault { line, column, message: "this is not text in UTF-8".to_owned() });
            good
        }
    };
    // some editors begin a file with a mark
    for (at, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        match entry(line, deny) {
            Ok(None) => {}
            Ok(Some((deny, prefix))) => entries.push(Entry { line: at + 1, deny, prefix }),
            Err((from, message)) => {
                if faults.len() < MOST_FAULTS {
                    let column = line.get(..from).unwrap_or("").chars().count() + 1;
                    faults.push(Fault { line: at + 1, column, message });
                }
            }
        }
    }
    (entries, faults)
}

type Found = Option<(bool, (IpAddr, u8))>;

/// What a line says; what is wrong with it begins at a byte.
fn entry(line: &str, deny: Option<bool>) -> Result<Found, (usize, String)> {
    let said = line.split('#').next().unwrap_or("");
    let mut words = said.split_ascii_whitespace();
    let Some(first) = words.next() else { return Ok(None) };
    let at = |word: &str| word.as_ptr() as usize - line.as_ptr() as usize;
    let (word, deny) = match (first, deny) {
        ("allow" | "deny", None) => (words.next(), first == "deny"),
        ("allow" | "deny", Some(deny)) if (first == "deny") == deny => (words.next(), deny),
        ("allow" | "deny", Some(deny)) => {
            let file = if deny { "deny_files" } else { "allow_files" };
            return Err((at(first), format!("\"{first}\" contradicts {file}, which names this file")));
        }
        (_, Some(deny)) => (Some(first), deny),
        (_, None) => {
            return Err((at(first), format!("\"{}\" is neither \"allow\" nor \"deny\"", quoted(first))));
        }
    };
    let Some(word) = word else {
        return Err((said.trim_end().len(), format!("no prefix follows \"{first}\"")));
    };
    let prefix = parse_prefix(word).map_err(|message| (at(word), message))?;
    match words.next() {
        None => Ok(Some((deny, prefix))),
        Some(more) => {
            Err((at(more), format!("\"{}\" follows the prefix; one stands in a line", quoted(more))))
        }
    }
}

/// What any file may do to its reader: for fuzzing. Whatever is understood makes a list that agrees with its prefixes.
pub fn fuzz(bytes: &[u8]) {
    for deny in [None, Some(false), Some(true)] {
        let (entries, faults) = parse(bytes, deny);
        assert!(faults.len() <= MOST_FAULTS + 1, "too many faults are told");
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
        assert!(faults.iter().all(|fault| (1..=lines).contains(&fault.line) && fault.column >= 1), "a place");
        let prefixes: Vec<_> = entries
            .iter()
            .take(64)
            .map(|entry| (Prefix::new(entry.prefix.0, entry.prefix.1), entry.deny))
            .collect();
        let Ok(list) = List::build(&prefixes, false) else { continue };
        for (prefix, _) in &prefixes {
            // of two for one prefix the later decides
            let of = |wanted: &Prefix| prefixes.iter().rev().find(|(other, _)| other == wanted);
            let around = prefixes.iter().filter(|(other, _)| other.contains(prefix.network));
            let longest = around.max_by_key(|(other, _)| other.length).and_then(|(longest, _)| of(longest));
            assert_eq!(Some(list.denies_address(prefix.network)), longest.map(|(_, deny)| *deny), "{prefix}");
        }
    }
}

/// Files to begin from.
pub fn seeds() -> Vec<Vec<u8>> {
    let files = [
        "# clients\nallow 198.18.0.0/16\ndeny 198.18.7.0/24 # some\ndeny 2001:db8::/32\n",
        "198.18.0.0/16\r\n198.18.7.1\n\n2001:db8::1/128\n::/0\n0.0.0.0/0\n",
        "deny\nallow 1/2/3\ndeny ::/129 ::\n",
    ];
    files.map(|file| file.as_bytes().to_vec()).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str, deny: Option<bool>) -> Vec<(usize, bool, String)> {
        let (entries, faults) = parse(text.as_bytes(), deny);
        assert_eq!(faults, []);
        let told = |entry: Entry| format!("{}/{}", entry.prefix.0, entry.prefix.1);
        entries.into_iter().map(|entry| (entry.line, entry.deny, told(entry))).collect()
    }

    #[test]
    fn prefixes_comments_and_words_are_read() {
        let text =
            "\u{feff}# a list\n\nallow 198.18.0.0/16\r\n  deny\t198.18.7.1 # one host\ndeny 2001:db8::/32";
        let expected = [(3, false, "198.18.0.0/16"), (4, true, "198.18.7.1/32"), (5, true, "2001:db8::/32")];
        assert_eq!(entries(text, None), expected.map(|(line, deny, text)| (line, deny, text.to_owned())));
        assert_eq!(entries("198.18.0.0/16\n", Some(true)), [(1, true, "198.18.0.0/16".to_owned())]);
        assert_eq!(entries("allow ::/0", Some(false)), [(1, false, "::/0".to_owned())]);
        assert_eq!(entries("", None), []);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, deny, line, column, part) in [
            ("allow 198.18.0.0/16\n  nonsense", None, 2, 3, "neither \"allow\" nor \"deny\""),
            ("198.18.0.0/16", None, 1, 1, "neither"),
            ("198.18.0.0/33", Some(true), 1, 1, "prefix length from 0 to 32"),
            ("198.18.0/16", Some(true), 1, 1, "\"198.18.0\" is not an IP address"),
            ("deny 2001:db8::/129", None, 1, 6, "0 to 128"),
            ("deny 198.18.0.0/+1", None, 1, 6, "/+1"),
            ("deny", None, 1, 5, "no prefix follows"),
            ("deny ::/0 ::/1", None, 1, 11, "follows the prefix"),
            ("allow ::/0", Some(true), 1, 1, "contradicts deny_files"),
        ] {
            let (_, faults) = parse(text.as_bytes(), deny);
            let Some(fault) = faults.first() else { panic!("{text}: nothing is wrong") };
            assert_eq!((fault.line, fault.column), (line, column), "{text}: {}", fault.message);
            assert!(fault.message.contains(part), "{text}: {}", fault.message);
        }
        let (entries, faults) = parse(b"allow ::/0\nallow \xff", None);
        assert_eq!((entries.len(), faults[0].line, faults[0].column), (1, 2, 7));
        let (_, faults) = parse("x\n".repeat(1_000).as_bytes(), None);
        assert_eq!(faults.len(), MOST_FAULTS);
    }
}
