//! Data on stdout: aligned tables for people, JSON for programs.

use serde::Serialize;
use std::io::{self, Write};
use std::process::ExitCode;

/// Prints a value as pretty JSON.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<ExitCode> {
    write(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Prints lines of text.
pub(super) fn lines(lines: &[String]) -> anyhow::Result<ExitCode> {
    write(&lines.iter().map(|line| clean(line) + "\n").collect::<String>())
}

fn write(text: &str) -> anyhow::Result<ExitCode> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Text of others that people may read: no control characters, no novels.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).take(4000).collect()
}

/// Columns under headings, two spaces apart; `>` in a heading aligns to the right.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let title = |column: usize| headings[column].trim_start_matches('>').to_owned();
    let titles: Vec<String> = (0..headings.len()).map(title).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&titles).chain(rows).collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let cell = |(column, text): (usize, &String)| {
        let (text, width) = (clean(text).replace('\n', " "), widths[column]);
        if headings[column].starts_with('>') { format!("{text:>width$}") } else { format!("{text:<width$}") }
    };
    let line = |row: &&Vec<String>| {
        let cells: Vec<String> = row.iter().enumerate().map(cell).collect();
        cells.join("  ").trim_end().to_owned()
    };
    all.iter().map(line).collect()
}

/// `1.5 MiB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `350 ms`, `12.3 s`, `5 min`, `3 h 10 min`.
pub(super) fn millis(ms: u64) -> String {
    let (seconds, minutes, hours) = (ms / 1000, ms / 60_000, ms / 3_600_000);
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..100_000 => format!("{:.1} s", ms as f64 / 1000.0),
        100_000..3_600_000 => format!("{minutes} min {} s", seconds % 60),
        _ => format!("{hours} h {} min", minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_cannot_be_broken_by_names() {
        let rows = [vec!["a".into(), "1".into()], vec!["long\u{1b}[2J".into(), "12345".into()]];
        assert_eq!(
            table(&["NAME", ">SIZE"], &rows),
            ["NAME       SIZE", "a             1", "long [2J  12345"]
        );
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([bytes(0), bytes(1023), bytes(1536)], ["0 B", "1023 B", "1.5 KiB"]);
        assert_eq!([millis(7), millis(1500), millis(3_700_000)], ["7 ms", "1.5 s", "1 h 1 min"]);
    }
}
