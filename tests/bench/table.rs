//! The result: a Markdown table with ours, theirs, the ratio and the goal.

use std::fmt::Write;

/// One measured line.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// What was measured, with its unit.
    pub(crate) what: String,
    /// walhub.
    pub(crate) ours: f64,
    /// Litestream in the same run; `None` where it has no counterpart.
    pub(crate) theirs: Option<f64>,
    /// The goal and whether it was met.
    pub(crate) goal: Option<(String, bool)>,
    /// True when less is better.
    pub(crate) less_is_better: bool,
}

impl Row {
    /// A line without a goal, where less is better.
    pub(crate) fn new(what: impl Into<String>, ours: f64, theirs: Option<f64>) -> Self {
        Self { what: what.into(), ours, theirs, goal: None, less_is_better: true }
    }

    /// More is better.
    pub(crate) fn more_is_better(mut self) -> Self {
        self.less_is_better = false;
        self
    }

    /// How many times better ours is.
    pub(crate) fn ratio(&self) -> Option<f64> {
        let theirs = self.theirs?;
        let ratio = if self.less_is_better { theirs / self.ours } else { self.ours / theirs };
        ratio.is_finite().then_some(ratio)
    }

    /// States a goal.
    pub(crate) fn goal(mut self, text: impl Into<String>, met: impl FnOnce(&Row) -> bool) -> Self {
        let met = met(&self);
        self.goal = Some((text.into(), met));
        self
    }
}

/// The table in Markdown.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut out =
        String::from("| measured | walhub | litestream 0.5.17 | ratio | goal |\n|---|---:|---:|---:|---|\n");
    for row in rows {
        let theirs = row.theirs.map_or_else(|| "–".into(), number);
        let ratio = row.ratio().map_or_else(|| "–".into(), |r| format!("{}x", number(r)));
        let goal = row.goal.as_ref().map_or_else(String::new, |(text, met)| {
            format!("{text}: {}", if *met { "met" } else { "**missed**" })
        });
        writeln!(out, "| {} | {} | {theirs} | {ratio} | {goal} |", row.what, number(row.ours))
            .expect("BUG: a string takes everything");
    }
    out
}

/// Three significant digits.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        v if v >= 0.01 => format!("{value:.3}"),
        _ => format!("{value:.5}"),
    }
}

/// Value at a quantile of unsorted samples; `NaN` when there are none.
pub(crate) fn quantile(samples: &mut [f64], q: f64) -> f64 {
    if samples.is_empty() {
        return f64::NAN;
    }
    samples.sort_by(f64::total_cmp);
    samples[((samples.len() - 1) as f64 * q).round() as usize]
}

/// The rows as a JSON array.
pub(crate) fn json(rows: &[Row]) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            serde_json::json!({
                "measured": row.what,
                "walhub": row.ours,
                "litestream": row.theirs,
                "ratio": row.ratio(),
                "goal": row.goal.as_ref().map(|(text, _)| text),
                "met": row.goal.as_ref().map(|(_, met)| met),
            })
        })
        .collect();
    serde_json::to_string_pretty(&rows).expect("BUG: plain values serialize")
}
