//! `walhub-agent restore --all`: what the hub has of this node, each to where the configuration has it. For a new machine: files of
//! `dir:` entries are gone with the old one, and so are their names; the hub knows both.
//!
//! The hub says which databases there are; the configuration alone says which files may be written.

use super::restore::{Args, Outcome, Skipped};
use super::{Failure, output};
use crate::config::{Config, Identity};
use crate::discover::{Source, name_in};
use crate::ship::connect::status_reason;
use anyhow::{Context, anyhow};
use futures_util::StreamExt;
use serde::Serialize;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use walhub_common::DatabaseName;
use walhub_proto::v1::StatusRequest;
use walhub_proto::v1::fleet_service_client::FleetServiceClient;

/// Databases restored at the same time.
const SIDE_BY_SIDE: usize = 4;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The status of a node with as many databases as it may have.
const MAX_STATUS_BYTES: usize = 64 * 1024 * 1024;

/// One row of `--all --json`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Row {
    Done(Box<Outcome>),
    /// Nobody follows it here.
    LeftOut {
        database: String,
        left_out: String,
    },
    Failed {
        database: String,
        error: String,
    },
}

/// Restores all of them; one that fails does not stop the others.
pub(super) async fn restore(
    args: &Args,
    config: &Config,
    interrupted: impl Future<Output = ()>,
) -> Result<ExitCode, Failure> {
    let identity = config.identity().map_err(anyhow::Error::msg)?;
    let rows = async {
        let known = known(&identity).await.context("the hub does not say which databases this node has")?;
        if known.is_empty() && !args.if_replica_exists {
            return Err(anyhow!("the hub knows no database of {}", identity.agent));
        }
        let rows = futures_util::stream::iter(known).map(|(name, path)| one(args, config, name, path));
        Ok(rows.buffered(SIDE_BY_SIDE).collect::<Vec<Row>>().await)
    };
    let rows = tokio::select! {
        biased;
        () = interrupted => return Err(Failure::Interrupted),
        rows = rows => rows?,
    };
    let failed = rows.iter().any(|row| matches!(row, Row::Failed { .. }));
    for row in &rows {
        match row {
            Row::Done(outcome) if !args.json => outcome.print()?,
            Row::Done(_) => {}
            Row::LeftOut { left_out: text, .. } | Row::Failed { error: text, .. } => {
                eprintln!("walhub-agent: {}", output::clean(text));
            }
        }
    }
    if args.json {
        output::json(&rows)?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What the hub has of this node: names, and where they were.
async fn known(identity: &Identity) -> anyhow::Result<Vec<(DatabaseName, PathBuf)>> {
    let channel = identity.hub.connect().await?;
    let mut client = FleetServiceClient::new(channel).max_decoding_message_size(MAX_STATUS_BYTES);
    let asked = tokio::time::timeout(ANSWER_TIMEOUT, client.status(StatusRequest::default())).await;
    let answer = asked.context("no answer in time")?.map_err(|status| anyhow!(status_reason(&status)))?;
    let known = answer.into_inner().databases.into_iter().map(|database| {
        let name = DatabaseName::new(database.database.unwrap_or_default().name)?;
        Ok((name, PathBuf::from(database.path)))
    });
    known.collect()
}

async fn one(args: &Args, config: &Config, name: DatabaseName, path: PathBuf) -> Row {
    let Some(out) = place(&config.sources, &name, &path) else {
        let left_out = format!(
            "{name} is left out: it was {} when it was followed last, and the configuration does not name that",
            path.display()
        );
        return Row::LeftOut { database: name.to_string(), left_out };
    };
    if args.if_db_not_exists && out.exists() {
        return Row::Done(Box::new(Outcome::Skipped(Skipped::existing(&name, &out))));
    }
    match args.restore(config, &name, &out, std::future::pending()).await {
        Ok(outcome) => Row::Done(Box::new(outcome)),
        Err(Failure::Failed(error)) => {
            Row::Failed { database: name.to_string(), error: format!("{error:#}") }
        }
        Err(other) => Row::Failed { database: name.to_string(), error: format!("{name}: {other:?}") },
    }
}

/// The file that the configuration has under this name, when the hub says that it was `path`.
fn place(sources: &[Source], name: &DatabaseName, path: &Path) -> Option<PathBuf> {
    let listed = sources.iter().find_map(|source| match source {
        Source::Path { path, name: listed } if listed == name => Some(path.clone()),
        _ => None,
    });
    let plain = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
    listed.or_else(|| (plain && name_in(sources, path).as_ref() == Some(name)).then(|| path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use glob::Pattern;

    #[test]
    fn only_files_of_the_configuration_are_written() {
        let name = |text: &str| DatabaseName::new(text).unwrap();
        let sources = [
            Source::Path { path: "/srv/new/app.db".into(), name: name("app") },
            Source::Folder {
                folder: "/srv/tenants".into(),
                pattern: Pattern::new("*.db").unwrap(),
                recursive: true,
                prefix: "tenant-".into(),
            },
        ];
        let place = |database: &str, path: &str| place(&sources, &name(database), Path::new(path));
        // A `path:` entry goes by its name, wherever the file was.
        assert_eq!(place("app", "/srv/old/app.db"), Some("/srv/new/app.db".into()));
        let tenant = "/srv/tenants/a/b c.db";
        assert_eq!(place("tenant-a-b_c.db", tenant), Some(tenant.into()));
        for (database, path) in [
            ("tenant-x.db", "/srv/tenants/y.db"),
            ("tenant-x.db", "/etc/x.db"),
            ("tenant-..-..-etc-x.db", "/srv/tenants/../../etc/x.db"),
            ("tenant-x", "/srv/tenants/x"),
            ("other", ""),
        ] {
            assert_eq!(place(database, path), None, "{database} at {path}");
        }
    }
}
