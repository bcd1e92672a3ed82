//! Text ▸ typed value, with the reason when it is none. Each function fits the getters of [`super::Section`].

use super::fault::did_you_mean;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Text that is not empty.
pub fn string(text: &str) -> Result<String, String> {
    match text.trim().is_empty() {
        true => Err("is empty".into()),
        false => Ok(text.to_owned()),
    }
}

/// A path; relative ones count from the working directory of the process.
pub fn path(text: &str) -> Result<PathBuf, String> {
    string(text).map(PathBuf::from)
}

/// Anything that parses itself and says why not, such as the name types.
pub fn parsed<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e: T::Err| e.to_string())
}

/// `true` or `false`.
pub fn bool(text: &str) -> Result<bool, String> {
    match text {
        "true" | "True" | "TRUE" => Ok(true),
        "false" | "False" | "FALSE" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

/// A whole number, digits only.
pub fn int<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| match text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() {
        true => format!("{text} is too large"),
        false => format!("{text:?} is not a whole number"),
    })
}

/// A whole number within bounds.
pub fn int_in<T: FromStr + PartialOrd + Display>(
    bounds: RangeInclusive<T>,
) -> impl Fn(&str) -> Result<T, String> {
    move |text| {
        let number = int(text)?;
        if bounds.contains(&number) {
            return Ok(number);
        }
        Err(format!("{number} is out of bounds: {} to {}", bounds.start(), bounds.end()))
    }
}

/// One of a few words.
pub fn one_of<T: Clone>(words: &[(&str, T)]) -> impl Fn(&str) -> Result<T, String> {
    move |text| match words.iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(value.clone()),
        None => {
            let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let hint = did_you_mean(text, all.iter().copied()).unwrap_or_default();
            Err(format!("{text:?} is not one of {}{hint}", all.join(", ")))
        }
    }
}

/// An IP address with a port to listen on.
pub fn socket_addr(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is not an address to listen on; write IP:PORT, such as 0.0.0.0:9443 or [::]:9443")
    })
}

/// `HOST:PORT` to connect to, host by name or address (IPv6 in brackets); kept as text.
pub fn host_port(text: &str) -> Result<String, String> {
    match crate::tls::host_of(text) {
        Some(host) if host.bytes().all(|b| b.is_ascii_graphic() && b != b'/') => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not an address; write HOST:PORT, such as hub.example:9443")),
    }
}

const DURATION_HELP: &str = "write a number with a unit, such as 500ms, 1s, 5m, 24h or 1h30m";
const DURATION_UNITS: &[(&str, u64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// A duration such as `500ms`, `1s`, `24h`, `1h30m`, `1.5s`, `7d`; a plain `0` needs no unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let fault = |why: String| format!("{text:?} is not a duration{why}; {DURATION_HELP}");
    let (mut rest, mut total) = (text.trim(), 0_u128);
    if rest.is_empty() {
        return Err(fault(String::new()));
    }
    while !rest.is_empty() {
        let (number, unit, after) = number_and_unit(rest).ok_or_else(|| fault(String::new()))?;
        if unit.is_empty() {
            return Err(fault(format!(": {} has no unit", number.text)));
        }
        let nanos = DURATION_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, nanos)| *nanos);
        let nanos = nanos.ok_or_else(|| fault(format!(": unknown unit {unit:?}")))?;
        total = number
            .times(nanos)
            .and_then(|part| part.checked_add(total))
            .ok_or_else(|| fault(": too long".into()))?;
        rest = after;
    }
    u64::try_from(total).map(Duration::from_nanos).map_err(|_| fault(": too long".into()))
}

/// A duration within bounds.
pub fn duration_in(bounds: RangeInclusive<Duration>) -> impl Fn(&str) -> Result<Duration, String> {
    move |text| {
        let value = duration(text)?;
        if bounds.contains(&value) {
            return Ok(value);
        }
        Err(format!("{text} is out of bounds: {:?} to {:?}", bounds.start(), bounds.end()))
    }
}

const BYTES_HELP: &str = "write a number with a unit, such as 64MiB or 10GB";
const BYTE_UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

/// A size in bytes: `1048576`, `64MiB` (1024 based), `10GB` (1000 based), `1.5GiB`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let fault = |why: &str| format!("{text:?} is not a size{why}; {BYTES_HELP}");
    let (number, unit, rest) = number_and_unit(text.trim()).ok_or_else(|| fault(""))?;
    let lower = unit.to_ascii_lowercase();
    let factor = BYTE_UNITS.iter().find(|(name, _)| *name == lower).map(|(_, factor)| *factor);
    match (factor, rest) {
        (Some(factor), "") => {
            let value = number.times(factor).and_then(|value| u64::try_from(value).ok());
            value.ok_or_else(|| fault(": too large"))
        }
        (None, "") => Err(fault(&format!(": unknown unit {unit:?}"))),
        _ => Err(fault("")),
    }
}

/// A size within bounds, in bytes.
pub fn bytes_in(bounds: RangeInclusive<u64>) -> impl Fn(&str) -> Result<u64, String> {
    move |text| {
        let value = bytes(text)?;
        if bounds.contains(&value) {
            return Ok(value);
        }
        Err(format!("{text} is out of bounds: {} to {} bytes", bounds.start(), bounds.end()))
    }
}

/// A decimal number, exact to nine places.
struct Decimal<'a> {
    text: &'a str,
    nanos: u128,
}

impl Decimal<'_> {
    fn times(&self, factor: u64) -> Option<u128> {
        self.nanos.checked_mul(u128::from(factor)).map(|scaled| scaled / 1_000_000_000)
    }
}

/// `12.5ms rest` ▸ (12.5, "ms", "rest"); spaces between are skipped. `None` when there is no number.
fn number_and_unit(text: &str) -> Option<(Decimal<'_>, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty()
        || whole.len() > 20
        || fraction.len() > 9
        || number.ends_with('.')
        || fraction.contains('.')
    {
        return None;
    }
    let whole: u128 = whole.parse().ok()?;
    let fraction: u128 = format!("{fraction:0<9}").parse().ok()?;
    let rest = rest.trim_start();
    let letters = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(letters);
    Some((Decimal { text: number, nanos: whole * 1_000_000_000 + fraction }, unit, rest.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("0", 0),
            ("500ms", 500),
            ("1s", 1_000),
            ("1.5s", 1_500),
            ("24h", 86_400_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
            ("7d", 604_800_000),
            ("5m", 300_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for (text, part) in [
            ("", "not a duration"),
            ("10", "10 has no unit"),
            ("1h30", "30 has no unit"),
            ("ten seconds", "not a duration"),
            ("10 sec", "unknown unit \"sec\""),
            ("-1s", "not a duration"),
            ("1.s", "not a duration"),
            ("1..5s", "not a duration"),
            ("99999999999d", "too long"),
        ] {
            let error = duration(text).unwrap_err();
            assert!(error.contains(part) && error.contains("1h30m"), "{text}: {error}");
        }
        let bounded = duration_in(Duration::from_millis(10)..=Duration::from_secs(60));
        assert!(bounded("1s").is_ok());
        assert_eq!(bounded("2m").unwrap_err(), "2m is out of bounds: 10ms to 60s");
    }

    #[test]
    fn sizes() {
        for (text, value) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("64MiB", 64 << 20),
            ("64 mib", 64 << 20),
            ("10GB", 10_000_000_000),
            ("1.5GiB", 3 << 29),
            ("7B", 7),
            ("16777215TiB", 16_777_215 << 40),
        ] {
            assert_eq!(bytes(text), Ok(value), "{text}");
        }
        for bad in [
            "",
            "lots",
            "-1",
            "1XB",
            "10 M",
            "1MiB2",
            "99999999999999999999",
            "16777216TiB",
            "1.0000000001GB",
        ] {
            assert!(bytes(bad).unwrap_err().contains("64MiB"), "{bad}");
        }
        assert_eq!(bytes_in(1..=10)("11").unwrap_err(), "11 is out of bounds: 1 to 10 bytes");
    }

    #[test]
    fn numbers_words_and_addresses() {
        assert_eq!(int::<u8>("255"), Ok(255));
        assert_eq!(int::<u8>("256").unwrap_err(), "256 is too large");
        assert_eq!(int::<u8>("x").unwrap_err(), "\"x\" is not a whole number");
        assert!(int_in(1..=9_u32)("10").unwrap_err().contains("1 to 9"));
        assert_eq!(bool("true"), Ok(true));
        assert!(bool("yes").is_err());
        let words = [("text", 1), ("json", 2)];
        assert_eq!(one_of(&words)("json"), Ok(2));
        assert_eq!(
            one_of(&words)("jsn").unwrap_err(),
            "\"jsn\" is not one of text, json; did you mean \"json\"?"
        );
        assert!(socket_addr("[::]:1").is_ok() && socket_addr("hub:1").is_err());
        assert!(host_port("hub.example:9443").is_ok() && host_port("[::1]:1").is_ok());
        for bad in ["hub", "hub:", ":1", "http://hub:1", "a b:1", "hub:70000"] {
            assert!(host_port(bad).unwrap_err().contains("HOST:PORT"), "{bad}");
        }
    }
}
