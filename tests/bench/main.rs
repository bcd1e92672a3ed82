//! Measures walhub beside stock litestream 0.5.17, side by side on one machine, and prints a table with ratios.
//!
//! ```text
//! tests/bench/run [--quick] [--only latency,idle,load,app,stall,restore,increments,ingest,snapshot,compaction,requests,fleet,faults] [--gb N] [--json FILE]
//! ```
//! Both sides run as the processes their users run, with default settings and a file destination at a 1 s interval
//! (`requests`, `increments`, `faults`: a real S3 server). The
//! hub runs on the same cores as everything else: what it costs is in our numbers.

mod app;
mod chain;
mod compaction;
mod faults;
mod fleet;
mod generations;
mod idle;
mod increments;
mod ingest;
mod latency;
mod load;
mod process;
mod requests;
mod restore;
mod setup;
mod snapshot;
mod stall;
mod table;

use table::Row;

/// What to run and how long.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Shorter phases and smaller databases, to see that everything works.
    pub(crate) quick: bool,
    /// Size of the database of `snapshot` and of `increments`, of the files of `compaction`, GB.
    pub(crate) gigabytes: Option<f64>,
    only: Option<Vec<String>>,
}

impl Plan {
    /// `full`, or `quick` when asked for.
    pub(crate) fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some(compaction::CHILD) {
        return compaction::child(std::env::args().skip(2));
    }
    let mut plan = Plan { quick: false, gigabytes: None, only: None };
    let mut json = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} needs a value"));
        match argument.as_str() {
            "--quick" => plan.quick = true,
            "--gb" => plan.gigabytes = Some(value().parse().expect("--gb takes a number")),
            "--only" => plan.only = Some(value().split(',').map(str::to_owned).collect()),
            "--json" => json = Some(value()),
            other => panic!("unknown option {other}; see the head of tests/bench/main.rs"),
        }
    }
    type Section = fn(&Plan) -> Vec<Row>;
    let sections: [(&str, Section); 13] = [
        ("latency", latency::run),
        ("idle", idle::run),
        ("load", load::run),
        ("app", app::run),
        ("stall", stall::run),
        ("restore", restore::run),
        ("increments", increments::run),
        ("ingest", ingest::run),
        ("snapshot", snapshot::run),
        ("compaction", compaction::run),
        ("requests", requests::run),
        ("fleet", fleet::run),
        ("faults", faults::run),
    ];
    let mut rows = Vec::new();
    for (name, section) in sections {
        if plan.only.as_ref().is_some_and(|only| !only.iter().any(|o| o == name)) {
            continue;
        }
        eprintln!("== {name}");
        let began = std::time::Instant::now();
        let measured = section(&plan);
        eprint!("{}", table::markdown(&measured));
        eprintln!("== {name}: {:.0} s\n", began.elapsed().as_secs_f64());
        rows.extend(measured);
    }
    print!("{}", table::markdown(&rows));
    if let Some(path) = json {
        std::fs::write(path, table::json(&rows)).expect("write the JSON result");
    }
}
