//! What time is it, as messages say it (RFC 9110 §5.6.7)?

/// Bytes of a date.
pub const LEN: usize = 29;

const DAYS: [&[u8; 3]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];
const MONTHS: [&[u8; 3]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];

/// The date of the second that was asked for last; another is written when it is.
#[derive(Clone, Debug)]
pub struct Date {
    unix_s: u64,
    text: [u8; LEN],
}

impl Default for Date {
    fn default() -> Self {
        Self { unix_s: 0, text: *b"Thu, 01 Jan 1970 00:00:00 GMT" }
    }
}

impl Date {
    /// The date so many seconds after the beginning of 1970, as `Sun, 06 Nov 1994 08:49:37 GMT`. Years have four digits: later than 9999
    /// it is the year modulo 10,000.
    #[inline]
    pub fn at(&mut self, unix_s: u64) -> &[u8; LEN] {
        if unix_s != self.unix_s {
            self.unix_s = unix_s;
            self.text = written(unix_s);
        }
        &self.text
    }
}

fn written(unix_s: u64) -> [u8; LEN] {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let (year, month, day) = civil(days);
    let digits = |number: u64| [b'0' + (number / 10 % 10) as u8, b'0' + (number % 10) as u8];
    let mut out = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    let mut put = |at: usize, piece: &[u8]| {
        if let Some(place) = out.get_mut(at..at + piece.len()) {
            place.copy_from_slice(piece);
        }
    };
    put(0, DAYS.get((days % 7) as usize).map_or(&[], |name| *name));
    put(5, &digits(day));
    put(8, MONTHS.get(month as usize).map_or(&[], |name| *name));
    put(12, &digits(year / 100));
    put(14, &digits(year));
    put(17, &digits(second / 3_600));
    put(20, &digits(second / 60 % 60));
    put(23, &digits(second % 60));
    out
}

/// Year, month from 0 and day from 1 of a day since the beginning of 1970. Days are counted from the 1st of March of the year 0, so that
/// a leap day is its year's last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = (from_march + 2) % 12;
    (era * 400 + year + u64::from(month < 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let mut date = Date::default();
        for (unix_s, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_078_099_200, "Mon, 01 Mar 2004 00:00:00 GMT"),
            (1_798_761_599, "Thu, 31 Dec 2026 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (253_402_300_799, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(std::str::from_utf8(date.at(unix_s)), Ok(expected));
            assert_eq!(std::str::from_utf8(date.at(unix_s)), Ok(expected), "again");
        }
    }

    #[test]
    fn each_day_follows_the_one_before() {
        let lengths = |year: u64| {
            [
                31,
                28 + u64::from(
                    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)),
                ),
                31,
                30,
                31,
                30,
                31,
                31,
                30,
                31,
                30,
                31,
            ]
        };
        let mut expected = (1970, 0, 1);
        for days in 0..200_000 {
            assert_eq!(civil(days), expected, "{days}");
            let (year, month, day) = expected;
            expected = match (month, day) {
                _ if day < lengths(year)[month as usize] => (year, month, day + 1),
                (11, _) => (year + 1, 0, 1),
                _ => (year, month + 1, 1),
            };
        }
    }
}
