//! `hubctl reload`: the hub reads its configuration file again.

use crate::connect::ConnectArgs;
use crate::{fault, output};
use serde::Serialize;
use std::process::ExitCode;
use walhub_proto::v1;

/// Let the hub read its configuration file again, as SIGHUP does
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A file with a fault changes nothing. Some keys take a restart: they are named.

Example:
  hubctl reload --dry-run
  hubctl reload --json")]
pub(crate) struct Args {
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON: {"changes": [], "needs_restart": [], "faults": []}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    changes: Vec<String>,
    needs_restart: Vec<String>,
    faults: Vec<String>,
}

impl Args {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let hub = self.connect.connect().await?;
        let v1::ReloadResponse { changes, needs_restart, faults } = hub.reload(self.dry_run).await?;
        let report = Report { changes, needs_restart, faults };
        let failed = !report.faults.is_empty();
        if self.json {
            output::json(&report)?;
        } else if failed {
            eprintln!("hubctl: the hub goes on as before, its file has faults:");
            for fault in &report.faults {
                eprintln!("{}", fault::clean(fault));
            }
        } else {
            output::lines(&lines(&report))?;
        }
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn lines(report: &Report) -> Vec<String> {
    let mut lines = report.changes.clone();
    if lines.is_empty() {
        lines.push("nothing changes".to_owned());
    }
    if !report.needs_restart.is_empty() {
        lines.push(format!("takes a restart: {}", report.needs_restart.join(", ")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_what_changes_and_what_does_not() {
        let report = |changes: &[&str], restart: &[&str]| Report {
            changes: changes.iter().map(ToString::to_string).collect(),
            needs_restart: restart.iter().map(ToString::to_string).collect(),
            faults: Vec::new(),
        };
        assert_eq!(lines(&report(&[], &[])), ["nothing changes"]);
        assert_eq!(
            lines(&report(&["destination b is added"], &["listen", "tls"])),
            ["destination b is added", "takes a restart: listen, tls"]
        );
    }
}
