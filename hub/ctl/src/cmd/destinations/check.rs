//! `hubctl destinations check`: can the hub use its destinations?

use crate::connect::ConnectArgs;
use crate::fault::clean;
use crate::output::{self, Table, millis};
use serde::Serialize;
use std::process::ExitCode;
use walhub_proto::v1;

/// Store, fetch, list and delete an object at each destination, and say what fails and why
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The hub itself does it, with its own credentials, network and clock. Exit code 1 when a step fails.

Example:
  hubctl destinations check
  hubctl destinations check offsite --json | jq -r '.[].steps[] | select(.outcome == \"failed\").cause'")]
pub(crate) struct Args {
    /// Only this destination
    name: Option<String>,
    /// Print a JSON list
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Serialize)]
struct Checked {
    name: String,
    kind: String,
    location: String,
    passed: bool,
    steps: Vec<Step>,
}

#[derive(Debug, Serialize)]
struct Step {
    name: String,
    outcome: String,
    cause: Option<String>,
    message: Option<String>,
    elapsed_ms: u64,
}

fn text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| clean(text).to_string())
}

impl From<v1::CheckedDestination> for Checked {
    fn from(checked: v1::CheckedDestination) -> Self {
        let steps: Vec<Step> = checked
            .steps
            .into_iter()
            .map(|step| Step {
                name: clean(&step.name).to_string(),
                outcome: clean(&step.outcome).to_string(),
                cause: text(&step.cause),
                message: text(&step.message),
                elapsed_ms: step.elapsed_ms,
            })
            .collect();
        Checked {
            name: clean(&checked.name).to_string(),
            kind: clean(&checked.kind).to_string(),
            location: clean(&checked.location).to_string(),
            passed: !steps.is_empty() && steps.iter().all(|step| step.outcome == "passed"),
            steps,
        }
    }
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let hub = self.connect.connect().await?;
        let answer = hub.check_destinations(self.name.unwrap_or_default()).await?;
        let checked: Vec<Checked> = answer.destinations.into_iter().map(Checked::from).collect();
        if self.json {
            output::json(&checked)?;
        } else {
            output::lines(&lines(&checked))?;
        }
        let passed = checked.iter().all(|destination| destination.passed);
        Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn lines(checked: &[Checked]) -> Vec<String> {
    let mut table = Table::new(&["DESTINATION", "STEP", "OUTCOME", ">TIME", "CAUSE"]);
    for destination in checked {
        for step in &destination.steps {
            table.row([
                destination.name.clone(),
                step.name.clone(),
                step.outcome.clone(),
                millis(step.elapsed_ms),
                step.cause.clone().unwrap_or_default(),
            ]);
        }
    }
    let mut lines = table.lines();
    for destination in checked {
        let at = format!("{} ({} {})", destination.name, destination.kind, destination.location);
        for step in &destination.steps {
            lines.extend(step.message.as_ref().map(|message| format!("{at}: {}: {message}", step.name)));
        }
        let word = if destination.passed { "can be used" } else { "cannot be used" };
        lines.push(format!("{at} {word}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_the_cause_and_the_sentence() {
        let step = |name: &str, outcome: &str, cause: &str, message: &str| v1::CheckStep {
            name: name.into(),
            outcome: outcome.into(),
            cause: cause.into(),
            message: message.into(),
            elapsed_ms: 7,
        };
        let checked = |steps: Vec<v1::CheckStep>| {
            Checked::from(v1::CheckedDestination {
                name: "far".into(),
                kind: "s3".into(),
                location: "s3://b/".into(),
                steps,
            })
        };
        let good = checked(vec![step("put", "passed", "", "")]);
        assert!(good.passed && lines(&[good]).contains(&"far (s3 s3://b/) can be used".to_owned()));
        let bad = checked(vec![step("put", "failed", "clock", "too skewed"), step("get", "skipped", "", "")]);
        assert!(!bad.passed);
        let text = lines(&[bad]).join("\n");
        assert!(
            text.contains("clock") && text.contains("put: too skewed") && text.contains("cannot be used")
        );
        assert!(!checked(Vec::new()).passed, "a trial without steps proves nothing");
    }
}
