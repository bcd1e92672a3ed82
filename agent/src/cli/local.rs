//! What the commands that ask a running agent about one database, or about all, have in common.

use super::{ConfigArgs, Failure, NOT_IN_TIME, output};
use crate::config::Certificates;
use crate::local::client::{AskError, Client};
use crate::local::protocol::{Problem, Request, TIMEOUT};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use walhub_common::config::value;

/// Which databases, and how the answer is printed.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Name at the hub, or path of the file
    #[arg(value_name = "DB", required_unless_present = "all", conflicts_with = "all")]
    database: Option<String>,
    /// Every database that this agent knows
    #[arg(long)]
    all: bool,
    /// Print JSON, see below
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// One row of `--all --json`.
#[derive(Debug, Serialize)]
struct Row<T> {
    database: String,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Problem>,
}

impl Which {
    /// Asks for each database with the time that is left, and prints what came of it.
    pub(super) fn ask<T: Serialize + DeserializeOwned>(
        self,
        timeout: Duration,
        request: impl Fn(String, u64) -> Request,
        sentence: impl Fn(&T) -> String,
    ) -> Result<ExitCode, Failure> {
        let config = self.config.read(Certificates::Ignore)?;
        let mut client = Client::connect(&config.state_dir)?;
        let begun = Instant::now();
        let mut ask = |database: String| {
            let left = timeout.saturating_sub(begun.elapsed()).as_millis();
            client.ask::<T>(&request(database, u64::try_from(left).unwrap_or(u64::MAX)))
        };
        if let Some(database) = self.database {
            return match by_name_or_path(database, &mut ask) {
                Ok(result) if self.json => Ok(output::json(&result)?),
                Ok(result) => Ok(output::lines(&[sentence(&result)])?),
                Err(AskError::Refused(problem)) if problem.code == TIMEOUT => {
                    eprintln!("walhub-agent: {}", output::clean(&AskError::Refused(problem).to_string()));
                    Ok(ExitCode::from(NOT_IN_TIME))
                }
                Err(e) => Err(e.into()),
            };
        }
        let names: Vec<String> =
            Client::connect(&config.state_dir)?.status()?.databases.into_iter().map(|d| d.name).collect();
        let (mut rows, mut code) = (Vec::new(), ExitCode::SUCCESS);
        let mut worst = 0;
        for database in names {
            match ask(database.clone()) {
                Ok(result) => rows.push(Row { database, ok: true, result: Some(result), error: None }),
                Err(AskError::Refused(problem)) => {
                    // Too late for one is too late; anything else is a failure.
                    let late = problem.code == TIMEOUT;
                    if worst < if late { 1 } else { 2 } {
                        worst = if late { 1 } else { 2 };
                        code = ExitCode::from(if late { NOT_IN_TIME } else { 1 });
                    }
                    rows.push(Row { database, ok: false, result: None, error: Some(problem) });
                }
                Err(e) => return Err(e.into()),
            }
        }
        if self.json {
            output::json(&rows)?;
            return Ok(code);
        }
        let done: Vec<String> = rows.iter().filter_map(|row| row.result.as_ref().map(&sentence)).collect();
        output::lines(&done)?;
        for (database, problem) in rows.into_iter().filter_map(|row| Some((row.database, row.error?))) {
            let text = format!("walhub-agent: {database}: {}", AskError::Refused(problem));
            eprintln!("{}", output::clean(&text));
        }
        Ok(code)
    }
}

/// The agent knows files by their whole path; people write them relative to where they are.
fn by_name_or_path<T>(
    wanted: String,
    ask: &mut impl FnMut(String) -> Result<T, AskError>,
) -> Result<T, AskError> {
    let path = std::path::absolute(&wanted).ok().and_then(|path| path.into_os_string().into_string().ok());
    match (ask(wanted.clone()), path) {
        (Err(AskError::Refused(problem)), Some(path))
            if problem.code == "unknown-database" && path != wanted =>
        {
            match ask(path) {
                Err(AskError::Refused(again)) if again.code == problem.code => {
                    Err(AskError::Refused(problem))
                }
                answer => answer,
            }
        }
        (answer, _) => answer,
    }
}

/// A duration such as `30s`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    value::duration(text)
}

/// Whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
