//! Time as the database stores it, and days as people write them.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds of a day; UTC has no others in Unix time.
pub const DAY_MS: i64 = 86_400_000;

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

/// `YYYY-MM-DDThh:mm:ssZ` (RFC 3339) of a time in milliseconds since the Unix epoch.
pub fn second_of(ms: i64) -> String {
    let seconds = ms.div_euclid(1000);
    let (day, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    format!("{}T{:02}:{:02}:{:02}Z", day_of(day), second / 3600, second / 60 % 60, second % 60)
}

/// When the UTC month began that a time is in, in milliseconds since the Unix epoch.
pub fn month_start_ms(ms: i64) -> i64 {
    let date = time::OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000))
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
        .date();
    ms.div_euclid(DAY_MS) * DAY_MS - i64::from(date.day() - 1) * DAY_MS
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_begins_on_its_first() {
        let at = |day: &str| days_since_epoch(day).unwrap() * DAY_MS;
        for (time, start) in [
            (at("2026-11-26") + 5, at("2026-11-01")),
            (at("2026-11-01"), at("2026-11-01")),
            (at("2024-03-01") - 1, at("2024-02-01")),
            (0, 0),
        ] {
            assert_eq!(month_start_ms(time), start);
        }
    }

    #[test]
    fn a_second_is_written_as_people_and_machines_read_it() {
        assert_eq!(second_of(0), "1970-01-01T00:00:00Z");
        assert_eq!(second_of(days_since_epoch("2026-11-26").unwrap() * DAY_MS + 45_296_999), "2026-11-26T12:34:56Z");
    }

    #[test]
    fn days_and_dates_lead_to_each_other() {
        for (days, text) in [(0, "1970-01-01"), (59, "1970-03-01"), (11_016, "2000-02-29"), (20_780, "2026-11-23")] {
            assert_eq!((day_of(days).as_str(), days_since_epoch(text)), (text, Some(days)));
        }
        for wrong in ["", "2026", "2026-13-01", "2026-02-30", "26-01-01", "2026-1-01", "1969-12-31", "2026-01-01T"] {
            assert_eq!(days_since_epoch(wrong), None, "{wrong:?}");
        }
    }
}
