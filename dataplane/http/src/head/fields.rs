//! Which fields does a head have?

use arrayvec::ArrayVec;

use super::{Limits, Refusal, Span};
use crate::name::{self, Known, class};
use crate::scan;

/// Fields that a head may have at most, whatever the limits say; listeners allow requests fewer.
pub const MAX_FIELDS: usize = 256;

/// A field of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name, as it was sent.
    pub name: Span,
    /// Its value, without white space around.
    pub value: Span,
    /// Which it is.
    pub known: Known,
    /// Whether it is only for us: `Connection` names it, or it is one of those that never go on.
    pub is_hop: bool,
}

impl Field {
    /// The offset behind the field's line, where the line is `name: value` without further white space; then it can be copied as
    /// it is.
    #[inline(always)]
    pub fn plain_end(&self, head: &[u8]) -> Option<usize> {
        let end = self.value.end();
        let plain = self.value.start as usize == self.name.end() + 2
            && head.get(self.name.end() + 1) == Some(&b' ')
            && head.get(end) == Some(&b'\r');
        plain.then_some(end + 2)
    }
}

/// The fields of a head, in order.
#[derive(Clone, Debug)]
pub struct Fields {
    list: ArrayVec<Field, MAX_FIELDS>,
    /// Set of the known fields that are there.
    present: u64,
    /// Set of those that are there more than once.
    repeated: u64,
    /// Where a known field was seen last.
    places: [u8; 64],
}

impl Default for Fields {
    fn default() -> Self {
        Self { list: ArrayVec::new(), present: 0, repeated: 0, places: [0; 64] }
    }
}

impl Fields {
    /// All of them, in order.
    #[inline]
    pub fn iter(&self) -> core::slice::Iter<'_, Field> {
        self.list.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether this one is there.
    #[inline(always)]
    pub fn has(&self, known: Known) -> bool {
        self.present & known.bit() != 0
    }

    /// Whether this one is there more than once.
    #[inline(always)]
    pub fn is_repeated(&self, known: Known) -> bool {
        self.repeated & known.bit() != 0
    }

    /// This one; the last where there are several.
    #[inline]
    pub fn find(&self, known: Known) -> Option<&Field> {
        if !self.has(known) {
            return None;
        }
        self.places.get(known as usize).and_then(|&place| self.list.get(place as usize))
    }

    /// The value of this one, empty where it isn't there.
    #[inline]
    pub fn value<'a>(&self, known: Known, head: &'a [u8]) -> &'a [u8] {
        self.find(known).map_or(&[], |field| field.value.of(head))
    }

    /// The values of all fields of a name, whatever its case.
    pub fn named<'a>(&'a self, head: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let same = move |field: &&Field| {
            field.name.len as usize == name.len() && field.name.of(head).eq_ignore_ascii_case(name)
        };
        self.iter().filter(same).map(move |field| field.value.of(head))
    }

    /// The first field of a name, whatever its case, that says something.
    pub fn first_named(&self, head: &[u8], name: &[u8]) -> Option<&Field> {
        self.iter().find(|field| {
            field.name.len as usize == name.len()
                && !field.value.is_empty()
                && field.name.of(head).eq_ignore_ascii_case(name)
        })
    }

    /// Parses the lines from `at` on, to behind the empty one; `None`: they are not all there.
    #[inline]
    pub(super) fn parse(
        &mut self,
        bytes: &[u8],
        mut at: usize,
        limits: &Limits,
    ) -> Result<Option<usize>, Refusal> {
        self.list.clear();
        self.present = 0;
        self.repeated = 0;
        let most = (limits.headers as usize).min(MAX_FIELDS);
        loop {
            let Some(name_end) = name_end(bytes, at)? else { return end(bytes, at) };
            let (name_end, seen) = name_end;
            let Some(value) = value_start(bytes, name_end + 1) else { return Ok(None) };
            let Some(stop) = scan::control(bytes, value) else { return Ok(None) };
            let Some(next) = line_end(bytes, stop)? else { return Ok(None) };
            let mut value_end = stop;
            while value_end > value && matches!(bytes.get(value_end - 1), Some(b' ' | b'\t')) {
                value_end -= 1;
            }
            if self.list.len() >= most {
                return Err(Refusal::TooLarge);
            }
            let name = Span::between(at, name_end);
            let mut field = Field {
                name,
                value: Span::between(value, value_end),
                known: Known::of(name.of(bytes)),
                is_hop: false,
            };
            if seen & class::UNDERSCORE != 0 {
                field.is_hop = confusable(name.of(bytes))?;
            }
            self.push(field);
            at = next;
        }
    }

    #[inline(always)]
    fn push(&mut self, field: Field) {
        let bit = field.known.bit();
        self.repeated |= self.present & bit;
        self.present |= bit;
        if let Some(place) = self.places.get_mut(field.known as usize) {
            *place = self.list.len() as u8;
        }
        let _full = self.list.try_push(field);
    }

    /// Marks the fields of this name as only for us.
    pub(super) fn mark_hop(&mut self, head: &[u8], name: &[u8]) {
        for field in &mut self.list {
            if field.name.len as usize == name.len() && field.name.of(head).eq_ignore_ascii_case(name) {
                field.is_hop = true;
            }
        }
    }
}

/// The end of the name that begins here, with the classes of its bytes; `None`: here are the empty line or the end of what is there.
#[inline(always)]
fn name_end(bytes: &[u8], from: usize) -> Result<Option<(usize, u8)>, Refusal> {
    let plain = scan::name(bytes, from);
    if plain > from && bytes.get(plain) == Some(&b':') {
        return Ok(Some((plain, 0)));
    }
    let mut seen = 0;
    let rest = bytes.get(from..).unwrap_or_default();
    for (offset, &byte) in rest.iter().enumerate().skip(plain - from) {
        let class = name::class_of(byte);
        if class & class::TOKEN != 0 {
            seen |= class;
            continue;
        }
        return match byte {
            b':' if offset > 0 => Ok(Some((from + offset, seen))),
            b'\r' if offset == 0 => Ok(None),
            b' ' | b'\t' if offset == 0 => Err(Refusal::Folded),
            b'\n' => Err(Refusal::BareLf),
            _ => Err(Refusal::Name),
        };
    }
    Ok(None)
}

/// The end of a head whose empty line begins here; `None`: it isn't all there.
fn end(bytes: &[u8], at: usize) -> Result<Option<usize>, Refusal> {
    match (bytes.get(at), bytes.get(at + 1)) {
        (Some(b'\r'), Some(b'\n')) => Ok(Some(at + 2)),
        (Some(b'\r'), Some(_)) => Err(Refusal::BareCr),
        _ => Ok(None),
    }
}

#[inline(always)]
fn value_start(bytes: &[u8], mut at: usize) -> Option<usize> {
    if let Some([b' ', 0x21..=0xff]) = bytes.get(at..at + 2) {
        return Some(at + 1);
    }
    while let b' ' | b'\t' = bytes.get(at)? {
        at += 1;
    }
    Some(at)
}

/// The offset behind the line whose control character is here; `None`: LF isn't there yet.
#[inline(always)]
pub(super) fn line_end(bytes: &[u8], stop: usize) -> Result<Option<usize>, Refusal> {
    match (bytes.get(stop), bytes.get(stop + 1)) {
        (Some(b'\r'), Some(b'\n')) => Ok(Some(stop + 2)),
        (Some(b'\r'), None) | (None, _) => Ok(None),
        (Some(b'\r'), Some(_)) => Err(Refusal::BareCr),
        (Some(b'\n'), _) => Err(Refusal::BareLf),
        _ => Err(Refusal::Control),
    }
}

/// Whether a name with underscores is that of a field that we know, when they are taken for `-` (CGI, RFC 3875 §4.1.18). Such a field is
/// not passed on; where it would frame or route the message, the head is refused.
#[cold]
fn confusable(name: &[u8]) -> Result<bool, Refusal> {
    const LONGEST: usize = 32;
    let mut other = ArrayVec::<u8, LONGEST>::new();
    if name.len() > LONGEST {
        return Ok(false);
    }
    other.extend(name.iter().map(|&byte| if byte == b'_' { b'-' } else { byte }));
    match Known::of(&other) {
        Known::Other => Ok(false),
        Known::ContentLength | Known::TransferEncoding | Known::Host => Err(Refusal::Confusable),
        _ => Ok(true),
    }
}
