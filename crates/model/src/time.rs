//! One kind of time for all rooms.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A point in time: microseconds since the Unix epoch, from a clock that never goes backwards.
///
/// Shells make it from a monotonic clock anchored once to the wall clock, so that a step of the wall
/// clock moves no schedule; simulations make it from their seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Later than everything.
    pub const MAX: Timestamp = Timestamp(u64::MAX);

    /// From microseconds since the Unix epoch.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Timestamp(micros)
    }

    /// From whole seconds since the Unix epoch.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Timestamp(secs.saturating_mul(1_000_000))
    }

    /// Microseconds since the Unix epoch.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000
    }

    /// Whole seconds since the Unix epoch.
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000_000
    }

    /// The time from `earlier` to this, or zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Timestamp;
    fn add(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Timestamp;
    fn sub(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_sub(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// RFC 3339 in UTC with milliseconds, as the API and the CLI print it.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(self.as_secs() / 86_400);
        let second = self.as_secs() % 86_400;
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
            second / 3600,
            second / 60 % 60,
            second % 60,
            self.as_millis() % 1000
        )
    }
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Timestamp {
    /// The date and time in the form of RFC 5322 §3.3, in UTC: `Tue, 24 Nov 2026 13:20:26 +0000`.
    #[must_use]
    pub fn rfc5322(self) -> String {
        const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
        const MONTHS: [&str; 12] =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let days = self.as_secs() / 86_400;
        let (year, month, day) = civil(days);
        let second = self.as_secs() % 86_400;
        let weekday = DAYS[usize::try_from(days % 7).unwrap_or(0)];
        let month = MONTHS[usize::try_from(month - 1).unwrap_or(0)];
        // Written with every message; formatting by hand takes a quarter of the time.
        let mut out = String::with_capacity(31);
        let two = |out: &mut String, number: u64, after: &str| {
            out.push(digit(number / 10));
            out.push(digit(number));
            out.push_str(after);
        };
        out.push_str(weekday);
        out.push_str(", ");
        two(&mut out, day, " ");
        out.push_str(month);
        out.push(' ');
        two(&mut out, year / 100, "");
        two(&mut out, year, " ");
        two(&mut out, second / 3600, ":");
        two(&mut out, second / 60 % 60, ":");
        two(&mut out, second % 60, " +0000");
        out
    }
}

/// The last decimal digit of a number.
fn digit(number: u64) -> char {
    char::from_digit(u32::try_from(number % 10).unwrap_or(0), 10).unwrap_or('0')
}

/// Year, month (1–12) and day (1–31) of a day counted from 1970-01-01, in the proleptic Gregorian calendar.
fn civil(days_since_epoch: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, so that the leap day ends a year; 400 years have 146,097 days.
    let days = days_since_epoch + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// The days from the epoch to a date of the Gregorian calendar: the inverse of [`civil`].
fn days_of(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = year.checked_sub(u64::from(month <= 2))?;
    let (era, year_of_era) = (year / 400, year % 400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).checked_sub(719_468)
}

/// Not a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a time as RFC 3339 does, such as 2027-01-31T23:59:59Z")]
pub struct TimeError;

/// RFC 3339 from 1970 on, with `Z` or an offset; what is finer than a microsecond is cut off.
impl std::str::FromStr for Timestamp {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        let number = |range: std::ops::Range<usize>| -> Result<u64, TimeError> {
            let digits = text.get(range).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
            digits.and_then(|digits| digits.parse().ok()).ok_or(TimeError)
        };
        let stands = |at: usize, choice: &[u8]| text.as_bytes().get(at).is_some_and(|b| choice.contains(b));
        if !(stands(4, b"-") && stands(7, b"-") && stands(10, b"Tt ") && stands(13, b":") && stands(16, b":"))
        {
            return Err(TimeError);
        }
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
        let days = days_of(year, month, day).ok_or(TimeError)?;
        if civil(days) != (year, month, day) || hour > 23 || minute > 59 || second > 60 {
            return Err(TimeError);
        }
        let rest = text.get(19..).ok_or(TimeError)?;
        let (fraction, zone) = match rest.strip_prefix('.') {
            None => ("", rest),
            Some(rest) => rest.split_at(rest.bytes().take_while(u8::is_ascii_digit).count()),
        };
        if rest.starts_with('.') && fraction.is_empty() {
            return Err(TimeError);
        }
        let micros = fraction.bytes().chain(std::iter::repeat(b'0')).take(6);
        let micros = micros.fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
        let local = ((days * 24 + hour) * 60 + minute) * 60 + second;
        let secs = match zone.as_bytes() {
            b"Z" | b"z" => local,
            [sign @ (b'+' | b'-'), rest @ ..] if rest.len() == 5 && rest[2] == b':' => {
                let at = text.len() - 5;
                let (hours, minutes) = (number(at..at + 2)?, number(at + 3..at + 5)?);
                if hours > 23 || minutes > 59 {
                    return Err(TimeError);
                }
                let offset = (hours * 60 + minutes) * 60;
                if *sign == b'+' { local.checked_sub(offset).ok_or(TimeError)? } else { local + offset }
            }
            _ => return Err(TimeError),
        };
        Ok(Timestamp(secs * 1_000_000 + micros))
    }
}

crate::text::text_deserialize!(Timestamp);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_printed_in_both_forms() {
        let check = |secs, rfc3339: &str, rfc5322: &str| {
            let time = Timestamp::from_secs(secs);
            assert_eq!(time.to_string(), rfc3339);
            assert_eq!(time.rfc5322(), rfc5322);
        };
        check(0, "1970-01-01T00:00:00.000Z", "Thu, 01 Jan 1970 00:00:00 +0000");
        check(951_782_400, "2000-02-29T00:00:00.000Z", "Tue, 29 Feb 2000 00:00:00 +0000");
        check(1_795_526_426, "2026-11-24T13:20:26.000Z", "Tue, 24 Nov 2026 13:20:26 +0000");
        check(4_107_542_400, "2100-03-01T00:00:00.000Z", "Mon, 01 Mar 2100 00:00:00 +0000");
    }

    #[test]
    fn a_time_is_read_as_rfc_3339_writes_it() {
        let check = |text: &str, micros| {
            assert_eq!(text.parse::<Timestamp>().ok().map(Timestamp::as_micros), micros, "{text}");
        };
        check("1970-01-01T00:00:00Z", Some(0));
        check("2000-02-29T00:00:00.000Z", Some(951_782_400_000_000));
        check("2026-11-24t13:20:26.5z", Some(1_795_526_426_500_000));
        check("2026-11-24T14:20:26+01:00", Some(1_795_526_426_000_000));
        check("2026-11-24T03:50:26.1234567-09:30", Some(1_795_526_426_123_456));
        for wrong in [
            "",
            "2026-11-24",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-11-24T24:00:00Z",
            "2026-11-24T13:20:26",
            "2026-11-24T13:20:26.Z",
            "2026-11-24T13:20:26+1:00",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+01:00",
            "2026-11-24T13:20:2éZ",
        ] {
            check(wrong, None);
        }
    }
}
