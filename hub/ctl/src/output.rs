//! Data on stdout: aligned tables for people, JSON for programs.

use crate::fault::clean;
use serde::Serialize;
use std::io::{self, Write};
use std::process::ExitCode;

/// Prints a value as pretty JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<ExitCode> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    write(&text)
}

/// Prints lines of text.
pub(crate) fn lines(lines: &[String]) -> anyhow::Result<ExitCode> {
    write(&lines.iter().map(|line| clean(line) + "\n").collect::<String>())
}

/// Prints text as it is: for programs.
pub(crate) fn text(text: &str) -> anyhow::Result<ExitCode> {
    write(text)
}

fn write(text: &str) -> anyhow::Result<ExitCode> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Columns with a heading, as wide as their widest cell, two spaces apart.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Headings; one that begins with `>` is aligned to the right.
    pub(crate) fn new(headings: &[&str]) -> Table {
        Table { rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()] }
    }

    /// Adds a row with a cell per heading; an empty cell shows as `-`.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        // A cell is one line: names and paths come from elsewhere.
        let cell =
            |text: String| if text.is_empty() { "-".to_owned() } else { clean(&text).replace('\n', " ") };
        self.rows.push(cells.into_iter().map(cell).collect());
    }

    /// The lines, headings first.
    pub(crate) fn lines(&self) -> Vec<String> {
        let headings = &self.rows[0];
        let width = |column: usize| {
            let wide = |row: &Vec<String>| {
                row.get(column).map_or(0, |cell| cell.trim_start_matches('>').chars().count())
            };
            self.rows.iter().map(wide).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..headings.len()).map(width).collect();
        let line = |(number, row): (usize, &Vec<String>)| {
            let cells = row.iter().zip(headings).zip(&widths).map(|((cell, heading), &width)| {
                let cell = if number == 0 { cell.trim_start_matches('>') } else { cell };
                match heading.starts_with('>') {
                    true => format!("{cell:>width$}"),
                    false => format!("{cell:<width$}"),
                }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.rows.iter().enumerate().map(line).collect()
    }
}

/// `1.5 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `350 ms`, `12.3 s`, `5 min`, `3 h 10 min`, `4 d 2 h`.
pub(crate) fn millis(ms: u64) -> String {
    let (seconds, minutes, hours, days) = (ms / 1000, ms / 60_000, ms / 3_600_000, ms / 86_400_000);
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..100_000 => format!("{:.1} s", ms as f64 / 1000.0),
        100_000..3_600_000 => format!("{minutes} min {} s", seconds % 60),
        3_600_000..86_400_000 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_cannot_be_broken_by_names() {
        let mut table = Table::new(&["NAME", ">SIZE", "NOTE"]);
        table.row(["a".into(), "1".into(), String::new()]);
        table.row(["längere".into(), "12345".into(), "x\ny\u{1b}[2J".into()]);
        assert_eq!(table.lines(), ["NAME      SIZE  NOTE", "a            1  -", "längere  12345  x y [2J"]);
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1536), bytes(u64::MAX)],
            ["0 B", "1023 B", "1.5 KiB", "16384.0 PiB"]
        );
        assert_eq!(
            [millis(7), millis(1500), millis(125_000), millis(3_700_000), millis(90_000_000)],
            ["7 ms", "1.5 s", "2 min 5 s", "1 h 1 min", "1 d 1 h"]
        );
    }
}
