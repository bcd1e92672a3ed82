//! Wall-clock time in Unix milliseconds, and its RFC 3339 text.

use jiff::Timestamp;

/// Now, Unix milliseconds.
pub fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

/// RFC 3339 in UTC with milliseconds as needed, such as `2026-11-22T13:28:37.09Z`; the number itself when it is no
/// time at all.
pub fn format_ms(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |t| t.to_string())
}

/// Parses RFC 3339 with any offset.
pub fn parse_ms(text: &str) -> Result<i64, String> {
    text.parse::<Timestamp>()
        .map(|t| t.as_millisecond())
        .map_err(|e| format!("{text:?} is not a time such as 2026-11-22T13:28:37Z: {e}"))
}

/// Months (UTC) since the beginning of year 0 of the month that a time lies in; times beyond the calendar lie in its
/// last month.
pub fn month_number(ms: i64) -> i64 {
    let date = Timestamp::from_millisecond(ms)
        .unwrap_or(if ms < 0 { Timestamp::MIN } else { Timestamp::MAX })
        .to_zoned(jiff::tz::TimeZone::UTC);
    i64::from(date.year()) * 12 + i64::from(date.month()) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_trip_and_offsets_are_understood() {
        assert_eq!(format_ms(1_795_354_117_090), "2026-11-22T13:28:37.09Z");
        assert_eq!(parse_ms("2026-11-22T13:28:37.09Z"), Ok(1_795_354_117_090));
        assert_eq!(parse_ms("2026-11-22T14:28:37.09+01:00"), Ok(1_795_354_117_090));
        assert!(parse_ms("yesterday").is_err());
    }
}
