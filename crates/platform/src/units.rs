//! Time as the database stores it, and days as people write them.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds of a day; UTC has no others in Unix time.
pub const DAY_MS: i64 = 86_400_000;
/// Milliseconds of an hour.
pub const HOUR_MS: i64 = 3_600_000;

/// Milliseconds since the Unix epoch, the unit of every stored time.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// `YYYY-MM-DD` of a day counted from the Unix epoch, proleptic Gregorian.
pub fn day_of(days: i64) -> String {
    let date = time::OffsetDateTime::UNIX_EPOCH.checked_add(time::Duration::days(days));
    date.map_or_else(
        || "-".into(),
        |date| format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day()),
    )
}

/// `YYYY-MM-DD HH:MM:SS` of a time, UTC.
pub fn time_of(ms: i64) -> String {
    let seconds = ms.rem_euclid(DAY_MS) / 1000;
    format!("{} {:02}:{:02}:{:02}", day_of(ms.div_euclid(DAY_MS)), seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// `YYYY-MM-DDThh:mm:ssZ` (RFC 3339) of a time in milliseconds since the Unix epoch.
pub fn second_of(ms: i64) -> String {
    format!("{}Z", time_of(ms).replace(' ', "T"))
}

/// Milliseconds since the Unix epoch at `YYYY-MM-DDThh:mm:ssZ`, or at the start of the day `YYYY-MM-DD`, UTC. None: it is no such time.
pub fn ms_of(text: &str) -> Option<i64> {
    let (day, time) = match text.split_once('T') {
        Some((day, time)) => (day, time.strip_suffix('Z')?),
        None => (text, "00:00:00"),
    };
    let parts: Vec<&str> = time.split(':').collect();
    let number = |part: &str, below: i64| {
        let is_plain = part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
        part.parse::<i64>().ok().filter(|number| is_plain && *number < below)
    };
    let [hour, minute, second] = parts[..] else { return None };
    let seconds = number(hour, 24)? * 3600 + number(minute, 60)? * 60 + number(second, 60)?;
    Some(days_since_epoch(day)? * DAY_MS + seconds * 1000)
}

/// The day that `YYYY-MM-DD` names, counted from the Unix epoch. None: it is no day of the years 1970 to 9999.
pub fn days_since_epoch(text: &str) -> Option<i64> {
    let mut parts = text.splitn(3, '-');
    let mut number = |digits: usize| {
        let part = parts.next()?;
        (part.len() == digits && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse::<i32>().ok()).flatten()
    };
    let (year, month, day) = (number(4)?, number(2)?, number(2)?);
    let month = time::Month::try_from(u8::try_from(month).ok()?).ok()?;
    let date = time::Date::from_calendar_date(year, month, u8::try_from(day).ok()?).ok()?;
    let days = (date - time::OffsetDateTime::UNIX_EPOCH.date()).whole_days();
    (days >= 0).then_some(days)
}

/// A month of the UTC calendar, from 1970 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Month {
    year: i32,
    month: u8,
}

impl Month {
    /// The month that holds a time.
    pub fn of_ms(ms: i64) -> Self {
        let date = time::OffsetDateTime::from_unix_timestamp(ms.max(0).div_euclid(1000));
        let date = date.unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
        Self { year: date.year(), month: date.month().into() }
    }

    /// What `YYYY-MM` names.
    pub fn parse(text: &str) -> Option<Self> {
        days_since_epoch(&format!("{text}-01")).map(|days| Self::of_ms(days * DAY_MS))
    }

    pub const fn next(self) -> Self {
        match self.month {
            12 => Self { year: self.year + 1, month: 1 },
            month => Self { year: self.year, month: month + 1 },
        }
    }

    /// Its first millisecond since the Unix epoch.
    pub fn start_ms(self) -> i64 {
        days_since_epoch(&format!("{self}-01")).map_or(i64::MAX, |days| days * DAY_MS)
    }

    /// The first millisecond that it does not hold.
    pub fn end_ms(self) -> i64 {
        self.next().start_ms()
    }
}

impl std::fmt::Display for Month {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_ends_where_the_next_one_starts() {
        for (text, next) in
            [("1970-01", "1970-02"), ("2026-11", "2026-12"), ("2026-12", "2027-01"), ("2028-02", "2028-03")]
        {
            let month = Month::parse(text).unwrap();
            assert_eq!((month.to_string().as_str(), month.next().to_string().as_str()), (text, next));
            assert_eq!(month.end_ms(), Month::parse(next).unwrap().start_ms());
            assert_eq!((Month::of_ms(month.start_ms()), Month::of_ms(month.end_ms() - 1)), (month, month));
        }
        for wrong in ["", "2026", "2026-13", "2026-1", "2026-11-01", "1969-12", "2026-11-"] {
            assert_eq!(Month::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_second_is_written_as_people_and_machines_read_it() {
        assert_eq!(second_of(0), "1970-01-01T00:00:00Z");
        assert_eq!(second_of(days_since_epoch("2026-11-26").unwrap() * DAY_MS + 45_296_999), "2026-11-26T12:34:56Z");
    }

    #[test]
    fn a_time_is_read_as_it_is_written() {
        for ms in [0, 1_000, 45_296_000, 20_783 * DAY_MS + 86_399_000] {
            assert_eq!(ms_of(&second_of(ms)), Some(ms));
        }
        assert_eq!(ms_of("1970-01-02"), Some(DAY_MS));
        for wrong in
            ["", "2026-11-26T", "2026-11-26T12:34Z", "2026-11-26T12:34:56", "2026-11-26T24:00:00Z", "2026-11-26T1:2:3Z"]
        {
            assert_eq!(ms_of(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn days_and_dates_lead_to_each_other() {
        for (days, text) in [(0, "1970-01-01"), (59, "1970-03-01"), (11_016, "2000-02-29"), (20_780, "2026-11-23")] {
            assert_eq!((day_of(days).as_str(), days_since_epoch(text)), (text, Some(days)));
        }
        assert_eq!(time_of(20_780 * DAY_MS + 3_723_999), "2026-11-23 01:02:03");
        for wrong in ["", "2026", "2026-13-01", "2026-02-30", "26-01-01", "2026-1-01", "1969-12-31", "2026-01-01T"] {
            assert_eq!(days_since_epoch(wrong), None, "{wrong:?}");
        }
    }
}
