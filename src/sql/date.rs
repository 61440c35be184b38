//! Dates and times as text.

use std::time::{SystemTime, UNIX_EPOCH};

/// A moment in UTC.
pub(super) struct Utc {
    /// The year 0 is 1 BC.
    pub(super) year: i128,
    pub(super) month: u32,
    pub(super) day: u32,
    pub(super) hour: u32,
    pub(super) minute: u32,
    pub(super) second: u32,
    pub(super) micros: u32,
}

/// Returns the date and the time of day, with the algorithm of Howard Hinnant's `civil_from_days`.
/// `None` if the time is out of range.
pub(super) fn utc(time: SystemTime) -> Option<Utc> {
    let micros = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i128::try_from(after.as_micros()).ok()?,
        // Rounded down, as after 1970.
        Err(e) => -i128::try_from(e.duration().as_nanos().div_ceil(1000)).ok()?,
    };
    let (days, of_day) = (micros.div_euclid(86_400_000_000), micros.rem_euclid(86_400_000_000));
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let small = |number: i128| u32::try_from(number).ok();
    let (seconds, micros) = (of_day / 1_000_000, of_day % 1_000_000);
    Some(Utc {
        year: year_of_era + era * 400 + i128::from(month <= 2),
        month: small(month)?,
        day: small(day)?,
        hour: small(seconds / 3600)?,
        minute: small(seconds / 60 % 60)?,
        second: small(seconds % 60)?,
        micros: small(micros)?,
    })
}

/// Returns a date as `to_jsonb` formats it. Texts of dates sort by time from the year 1 to 9999, so
/// other years are an error.
pub(super) fn iso_date(year: i128, month: u32, day: u32) -> Result<String, &'static str> {
    if (1..=9999).contains(&year) {
        Ok(format!("{year:04}-{month:02}-{day:02}"))
    } else {
        Err("a date compared with a field must be in the years 1 to 9999, because text of other \
             years does not sort by time")
    }
}

/// Returns a time of day as `to_jsonb` formats it: to the microsecond, without trailing zeros.
/// `nanos` of 1,000,000,000 or more are a leap second.
pub(super) fn iso_time(hour: u32, minute: u32, second: u32, nanos: u32) -> String {
    let second = second + nanos / 1_000_000_000;
    let fraction = format!(".{:06}", nanos % 1_000_000_000 / 1000);
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    format!("{hour:02}:{minute:02}:{second:02}{fraction}")
}

/// Returns the offset from UTC as `to_jsonb` formats it, such as `+00:00`.
#[cfg(any(feature = "chrono", feature = "time"))]
pub(super) fn iso_offset(seconds: i32) -> String {
    let sign = if seconds < 0 { '-' } else { '+' };
    let seconds = seconds.unsigned_abs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let rest = if seconds > 0 { format!(":{seconds:02}") } else { String::new() };
    format!("{sign}{hours:02}:{minutes:02}{rest}")
}

#[cfg(feature = "chrono")]
pub(super) fn chrono_time(time: &impl chrono::Timelike) -> String {
    iso_time(time.hour(), time.minute(), time.second(), time.nanosecond())
}

/// Returns the local time and its offset from UTC in seconds.
#[cfg(feature = "chrono")]
pub(super) fn chrono_local<Tz: chrono::TimeZone>(
    time: &chrono::DateTime<Tz>,
) -> (chrono::NaiveDateTime, i32) {
    let (utc, offset) = (time.naive_utc(), chrono::Offset::fix(time.offset()).local_minus_utc());
    // `naive_local()` panics at the ends of chrono's range. Neither Postgres nor JSON has those
    // years.
    let local = utc.checked_add_signed(chrono::Duration::seconds(offset.into()));
    (local.unwrap_or(utc), offset)
}

#[cfg(feature = "time")]
pub(super) fn time_time(time: time::Time) -> String {
    let (hour, minute, second) = (time.hour(), time.minute(), time.second());
    iso_time(hour.into(), minute.into(), second.into(), time.nanosecond())
}
