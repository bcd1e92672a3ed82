//! `walhub-agent status`: what the running agent says about itself.

use super::{ConfigArgs, Failure, output};
use crate::config::Certificates;
use crate::database::DatabaseStatus;
use crate::local::client::Client;
use crate::local::status::AgentStatus;
use std::process::ExitCode;
use walhub_common::clock;

/// Show what the running agent follows and how far it is
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The exit code is 0 when an agent answered, whatever it says.

JSON: {\"agent\", \"version\", \"pid\", \"started_ms\", \"state_dir\", \"epoch\", \"hub\": {\"address\", \"connected\", \"since_ms\", \
\"version\", \"last_error\"}, \"window_bytes\", \"databases\": [{\"name\", \"path\", \"state\", \"captured_txid\", \"buffered_txid\", \
\"durable_txid\", \"lag_ms\", \"lag_bytes\", \"wal_bytes\", \"bytes_sent\", \"heal\": {\"pages_changed\", \"bytes_sent\", \"at_ms\"}, \"restore_points_lost\", \"paused_until_ms\", \"last_error\", \"what_to_do\"}], \"faults\": \
[{\"path\", \"reason\"}]}

Example:
  walhub-agent status --config agent.yml")]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON, see below
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let config = self.config.read(Certificates::Ignore)?;
        let status = Client::connect(&config.state_dir)?.status()?;
        if self.json {
            return Ok(output::json(&status)?);
        }
        Ok(output::lines(&lines(&status))?)
    }
}

fn lines(status: &AgentStatus) -> Vec<String> {
    let since = clock::format_ms(status.hub.since_ms);
    let mut lines = vec![
        format!("agent {}, version {}, pid {}", status.agent, status.version, status.pid),
        match status.hub.connected {
            true => format!("hub {}: connected since {since}", status.hub.address),
            false => format!("hub {}: not connected since {since}", status.hub.address),
        },
    ];
    if let Some(error) = status.hub.last_error.as_ref().filter(|_| !status.hub.connected) {
        lines.push(format!("  {error}"));
    }
    lines.push(String::new());
    let headings =
        ["NAME", "STATE", ">CAPTURED", ">BUFFERED", ">DURABLE", ">LAG", ">UNACKED", ">WAL", "PATH"];
    let rows: Vec<Vec<String>> = status.databases.iter().map(row).collect();
    lines.extend(output::table(&headings, &rows));
    for database in &status.databases {
        if let Some(error) = &database.last_error {
            lines.push(format!("{}: {error}", database.name));
        }
        if let Some(hint) = &database.what_to_do {
            lines.push(format!("  {hint}"));
        }
        if let Some(snapshot) = &database.snapshot {
            let (done, all) = (snapshot.pages_done, snapshot.pages);
            let percent = 100 * u64::from(done) / u64::from(all.max(1));
            let sent = output::bytes(snapshot.bytes_sent);
            lines.push(format!(
                "{}: first snapshot, {done} of {all} pages ({percent} %), {sent} sent",
                database.name
            ));
        }
        if database.restore_points_lost > 0 {
            let n = database.restore_points_lost;
            lines.push(format!(
                "{}: {n} restore points were given up since the start; no data is missing",
                database.name
            ));
        }
    }
    for fault in &status.faults {
        lines.push(format!("not followed: {}: {}", fault.path.display(), fault.reason));
    }
    lines
}

fn row(database: &DatabaseStatus) -> Vec<String> {
    vec![
        database.name.clone(),
        database.state.to_string(),
        database.captured_txid.to_string(),
        database.buffered_txid.to_string(),
        database.durable_txid.to_string(),
        output::millis(database.lag_ms),
        output::bytes(database.lag_bytes),
        output::bytes(database.wal_bytes),
        database.path.display().to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::{Report, State};
    use crate::local::status::{FaultStatus, HubStatus};
    use walhub_common::DatabaseName;

    #[test]
    fn trouble_is_said_in_whole_sentences_below_the_table() {
        let mut database = Report::new(&DatabaseName::new("app.db").unwrap(), "/srv/app.db".into()).status();
        database.state = State::Absent;
        database.snapshot = Some(crate::database::Snapshot { pages_done: 500, pages: 2000, bytes_sent: 0 });
        database.last_error = Some("the file does not exist".into());
        let status = AgentStatus {
            agent: "node".into(),
            version: "1".into(),
            pid: 7,
            started_ms: 0,
            state_dir: "/s".into(),
            epoch: 1,
            hub: HubStatus {
                address: "hub:1".into(),
                connected: false,
                since_ms: 0,
                version: None,
                last_error: Some("connection refused".into()),
            },
            window_bytes: 0,
            databases: vec![database],
            faults: vec![FaultStatus { path: "/srv/x".into(), reason: "taken".into() }],
        };
        let text = lines(&status).join("\n");
        for words in [
            "hub hub:1: not connected since 1970-01-01T00:00:00Z\n  connection refused",
            "app.db  absent",
            "app.db: the file does not exist",
            "app.db: first snapshot, 500 of 2000 pages (25 %)",
            "not followed: /srv/x: taken",
        ] {
            assert!(text.contains(words), "{words:?} in\n{text}");
        }
    }
}
