//! `drills:`, how often restores are tried, of how much, and what they must show.

use super::databases::pattern;
use crate::drills::{Assertions, Rules};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use walhub_common::config::{Section, value};
use walhub_common::sql;

const EVERY: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(366 * 86_400);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 86_400);
const SCRATCH: RangeInclusive<u64> = (1 << 20)..=(1 << 50);
const OLDER_POINTS: RangeInclusive<usize> = 0..=16;
const DOWNLOAD: RangeInclusive<u64> = 1024..=(1 << 50);
/// More could not be read by anybody.
const MAX_ASSERTIONS: usize = 1000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    Integrity,
    Checksum,
    Sql,
}

const CHECKS: [(&str, Check); 3] =
    [("integrity", Check::Integrity), ("checksum", Check::Checksum), ("sql", Check::Sql)];

/// Reads the section. Without it nothing is tried by itself, and its defaults hold for drills that are asked for.
pub(super) fn parse(root: &mut Section<'_>) -> Rules {
    let default = Rules::default();
    let Some(mut section) = root.optional_section("drills") else { return default };
    let every = section.or("every", Duration::from_secs(86_400), value::duration_in(EVERY));
    let sample = section.or("sample", default.sample, share);
    let named = section.has("checks");
    let checks = section.list("checks", value::one_of(&CHECKS));
    let asked = |check| !named || checks.contains(&check);
    if named && !checks.contains(&Check::Checksum) {
        section.fault_at(
            "checks",
            "lacks checksum: a restore that is not held against its source proves nothing",
        );
    }
    let (integrity, sql) = (asked(Check::Integrity), asked(Check::Sql));
    let repair = section.or("repair", default.repair, value::bool);
    let older_points = section.or("older-points", default.older_points, value::int_in(OLDER_POINTS));
    let scratch: Option<PathBuf> = section.optional("scratch", value::path);
    let scratch = scratch.map(|path| std::path::absolute(&path).unwrap_or(path));
    let scratch_max = section.or("scratch-max", default.scratch_max, value::bytes_in(SCRATCH));
    let download_limit = section.optional("download-limit", value::bytes_in(DOWNLOAD));
    let timeout = section.or("timeout", default.timeout, value::duration_in(TIMEOUT));
    let items = section.sections("sql");
    if items.len() > MAX_ASSERTIONS {
        section.fault_at("sql", format!("has {} entries; {MAX_ASSERTIONS} are the most", items.len()));
    }
    let assertions: Vec<Assertions> = items.into_iter().map(assertions).collect();
    if !sql && !assertions.is_empty() {
        section.fault_at("sql", "is of no effect: `checks` does not name sql");
    }
    section.finish();
    Rules {
        every: Some(every),
        sample,
        integrity,
        sql,
        repair,
        older_points,
        scratch,
        scratch_max,
        download_limit,
        timeout,
        assertions,
    }
}

fn assertions(mut item: Section<'_>) -> Assertions {
    let patterns = item.one_or_list("match", pattern);
    if patterns.is_empty() {
        item.fault_at("match", "is missing; write a pattern over AGENT/NAME, such as `match: pos-*/app.db`");
    }
    let checks = item.one_or_list("check", value::parsed::<sql::Check>);
    if checks.is_empty() {
        item.fault_at("check", "is missing; write `check: SELECT count(*) > 0 FROM users = 1`");
    }
    item.finish();
    Assertions {
        patterns: patterns.into_iter().flatten().collect(),
        checks: checks.into_iter().flatten().collect(),
    }
}

/// `5%`, `0.5%`, `100%`: in thousandths of a percent.
fn share(text: &str) -> Result<u32, String> {
    let fault =
        || format!("{text:?} is not a share; write a percentage, such as 5% (of all copies in each period)");
    let number = text.trim().strip_suffix('%').ok_or_else(fault)?.trim();
    let percent: f64 = number.parse().map_err(|_| fault())?;
    let share = (percent * 1000.0).round();
    if !(1.0..=100_000.0).contains(&share) {
        return Err(format!("{text} is out of bounds: 0.001% to 100%"));
    }
    Ok(share as u32)
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use std::time::Duration;

    fn parse(drills: &str) -> Result<Config, String> {
        let text = format!(
            "listen: 127.0.0.1:7443\ntls: {{ca: a, cert: b, key: c}}\ndestinations: [{{name: d, type: file, path: \
             /srv/x}}]\n{drills}"
        );
        Config::from_text(&text).map_err(|faults| faults.to_string())
    }

    #[test]
    fn nothing_is_tried_unless_asked_for_and_a_short_section_is_enough() {
        let none = parse("").unwrap().drills;
        assert_eq!((none.every, none.repair, none.integrity, none.sql), (None, true, true, true));
        let short = parse("drills: {}\n").unwrap().drills;
        assert_eq!((short.every, short.sample), (Some(Duration::from_secs(86_400)), 5000));
        assert_eq!(short.older_points, 1);
        let text = "drills:
  every: 6h
  sample: 0.5%
  checks: [checksum, sql]
  repair: false
  older-points: 3
  scratch: /var/tmp
  scratch-max: 2GiB
  download-limit: 10MiB
  timeout: 30m
  sql:
    - {match: 'pos-*/app.db', check: 'SELECT count(*) > 0 FROM users = 1'}
    - {match: [a/x, b/*], check: ['SELECT 1 = 1', 'PRAGMA user_version = 7']}
";
        let drills = parse(text).unwrap().drills;
        assert_eq!((drills.sample, drills.integrity, drills.sql, drills.repair), (500, false, true, false));
        assert_eq!(drills.older_points, 3);
        assert_eq!((drills.scratch_max, drills.download_limit), (2 << 30, Some(10 << 20)));
        let of = |key: &str| -> Vec<String> {
            drills.checks_of(&key.parse().unwrap()).iter().map(ToString::to_string).collect()
        };
        assert_eq!(of("pos-1/app.db"), ["SELECT count(*) > 0 FROM users = 1"]);
        assert_eq!(of("b/y").len(), 2);
        assert!(of("c/y").is_empty());
    }

    #[test]
    fn every_fault_comes_with_its_line() {
        let text = "drills:
  evry: 6h
  sample: 5
  checks: [integrity, chksum]
  scratch-max: 5
  older-points: 17
  sql:
    - {match: 'a/*'}
    - {check: SELECT 1}
";
        let faults = parse(text).unwrap_err();
        for (line, words) in [
            (5, "did you mean \"every\""),
            (6, "percentage"),
            (7, "checksum"),
            (7, "lacks checksum"),
            (8, "out of bounds"),
            (9, "16"),
            (11, "check: is missing"),
            (12, "match: is missing"),
            (12, "SQL = value"),
        ] {
            let place = format!("hub.yml:{line}:");
            let found = faults.lines().any(|fault| fault.starts_with(&place) && fault.contains(words));
            assert!(found, "nothing says {words:?} at line {line}:\n{faults}");
        }
    }
}
