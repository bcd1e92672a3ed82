//! `hubctl query`: what a database, or many, held at a point in the past. A copy of each lies in a cache folder and is moved from
//! point to point by the pages that differ, proven each time; the statement runs on it, and can write nothing.

mod cache;
mod fetch;
mod render;

use crate::cmd::choice::Choice;
use crate::cmd::restore::one::Job;
use crate::cmd::restore::onto;
use crate::cmd::restore::progress::Progress;
use crate::cmd::restore::unless;
use crate::connect::ConnectArgs;
use crate::fault::{Interrupted, Usage, clean};
use crate::output;
use anyhow::{Context, anyhow, bail};
use cache::Cache;
use fetch::Means;
use futures_util::StreamExt;
use render::{Done, Entry};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use walhub_common::config::value;
use walhub_common::sql::{self, Announce, Reader};
use walhub_common::task::TaskGroup;
use walhub_common::{AgentName, DatabaseKey, DatabaseName};

/// Ask databases what they held in the past, without touching them
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("form").args(["json", "csv"]),
    after_help = "\
The state is restored into a copy in a cache folder of yours, and proven by its checksum. The next query moves that copy to \
another point: only the pages that differ travel. Nothing can be written, neither to the copy nor to the live database.

With --agent, --selector or --all each row says of which database it is. A database that fails is named on stderr, the others go \
on, and the exit code is 1.

JSON of one database: {\"database\", \"txid\", \"time\", \"checksum\", \"verdict\", \"bytes\", \"received_bytes\", \"seconds\", \
\"columns\", \"rows\": [[value]], \"truncated\"}; a blob is {\"hex\"}.
JSON of several: {\"answered\", \"failed\", \"databases\": [one such object, or {\"database\", \"error\"}]}

Example:
  hubctl query pos-17/app.db 'SELECT count(*) FROM orders'
  hubctl query pos-17/app.db --timestamp 2026-11-22T13:28:36Z 'SELECT * FROM orders WHERE id = 1205'
  hubctl query pos-17/app.db --txid 1200 --csv 'SELECT * FROM orders' --max-rows 100000 > orders.csv
  hubctl query --selector site=berlin --timestamp 2026-11-22T13:28:36Z 'SELECT sum(cents) FROM orders'"
)]
pub(crate) struct Args {
    /// The database, unless several are chosen; then one SQL statement that reads
    #[arg(value_name = "AGENT/NAME] [SQL", num_args = 1..=2, required = true)]
    words: Vec<String>,
    #[command(flatten)]
    choice: Choice,
    /// Folder of the copies [default: walhub/query in your cache folder]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// How much may lie there; the copies that were not used for longest go first
    #[arg(long, value_name = "SIZE", value_parser = value::bytes, default_value = "8GiB")]
    cache_max: u64,
    /// Rows of each database at most
    #[arg(long, value_name = "N", default_value_t = 1000)]
    max_rows: usize,
    /// How long the statement may take on each database
    #[arg(long, value_name = "TIME", value_parser = value::duration, default_value = "60s")]
    timeout: Duration,
    /// Databases asked at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallelism: u16,
    /// Print JSON, see above
    #[arg(long)]
    json: bool,
    /// Print CSV
    #[arg(long)]
    csv: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Serialize)]
struct Summary {
    answered: usize,
    failed: usize,
    databases: Vec<Entry>,
}

/// Which databases, and what they are asked.
struct Question {
    /// None: those that the selectors name.
    database: Option<DatabaseKey>,
    sql: String,
}

impl Args {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let question = self.question()?;
        let root = self.cache.clone().map_or_else(cache::default_root, Ok)?;
        let cache = Arc::new(Cache::open(root, self.cache_max)?);
        let group = TaskGroup::new("query");
        let cancel = group.token().clone();
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        group.spawn({
            let cancel = cancel.clone();
            async move {
                tokio::select! {
                    _ = interrupt.recv() => cancel.cancel(),
                    _ = terminate.recv() => cancel.cancel(),
                    () = cancel.cancelled() => {}
                }
            }
        });
        let hub = unless(&cancel, self.connect.connect()).await?;
        let progress = Progress::new();
        let means = Means {
            hub: &hub,
            address: self.connect.address(),
            cache: &cache,
            progress: &progress,
            cancel: &cancel,
        };
        let done = match &question.database {
            Some(database) => self.one(&means, database.clone(), &question.sql).await,
            None => self.several(&means, &question.sql).await,
        };
        group.shutdown(Duration::from_secs(5)).await;
        done
    }

    fn question(&self) -> anyhow::Result<Question> {
        match (&self.words[..], self.choice.is_many()) {
            ([sql], true) => Ok(Question { database: None, sql: sql.clone() }),
            ([database, sql], false) => {
                let database = database.parse().map_err(|e| Usage(format!("{database:?}: {e}")))?;
                Ok(Question { database: Some(database), sql: sql.clone() })
            }
            (_, true) => Err(Usage("with --agent, --selector or --all only the SQL follows".into()).into()),
            (_, false) => {
                let words =
                    "say AGENT/NAME and the SQL, or choose databases with --agent, --selector or --all";
                Err(Usage(words.into()).into())
            }
        }
    }

    async fn one(&self, means: &Means<'_>, database: DatabaseKey, sql: &str) -> anyhow::Result<ExitCode> {
        let done = self.ask(means, database, sql).await?;
        eprintln!("hubctl: {}", clean(&done.line()));
        self.print(&[&done], false)?;
        if self.json { output::json(&done) } else { Ok(ExitCode::SUCCESS) }
    }

    async fn several(&self, means: &Means<'_>, sql: &str) -> anyhow::Result<ExitCode> {
        let found = unless(means.cancel, onto::matching(self.choice.selectors(None), means.hub)).await?;
        let key = |wire: walhub_proto::v1::DatabaseRef| {
            Ok(DatabaseKey::new(AgentName::new(wire.agent)?, DatabaseName::new(wire.name)?))
        };
        let databases = found.into_iter().map(key).collect::<anyhow::Result<Vec<_>>>()?;
        if databases.is_empty() {
            bail!("the hub knows no such database; see `hubctl databases list`");
        }
        let mut entries: Vec<Entry> = futures_util::stream::iter(databases)
            .map(|database| async move {
                let name = database.to_string();
                let entry = match self.ask(means, database, sql).await {
                    Ok(done) => Entry::Done(Box::new(done)),
                    Err(error) => Entry::Failed { database: name, error: clean(&format!("{error:#}")) },
                };
                if let Entry::Failed { database, error } = &entry
                    && !means.cancel.is_cancelled()
                {
                    means.progress.suspend(|| eprintln!("hubctl: {database}: {error}"));
                }
                entry
            })
            .buffered(usize::from(self.parallelism))
            .collect()
            .await;
        if means.cancel.is_cancelled() {
            return Err(Interrupted.into());
        }
        if !self.json {
            one_heading(&mut entries);
        }
        let answers: Vec<&Done> = entries
            .iter()
            .filter_map(|entry| if let Entry::Done(done) = entry { Some(&**done) } else { None })
            .collect();
        self.print(&answers, true)?;
        let (answered, failed) = (answers.len(), entries.len() - answers.len());
        eprintln!("hubctl: {answered} answered, {failed} failed");
        if self.json {
            output::json(&Summary { answered, failed, databases: entries })?;
        }
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Rows for people or as CSV, and what they do not show.
    fn print(&self, answers: &[&Done], several: bool) -> anyhow::Result<()> {
        if self.csv {
            output::text(&render::csv(answers, several))?;
        } else if !self.json {
            output::lines(&render::table(answers, several))?;
        }
        let cut = answers.iter().filter(|done| done.is_cut()).count();
        if cut > 0 {
            let of = if several { format!(" of {cut} databases") } else { String::new() };
            eprintln!("hubctl: only the first {} rows{of}: --max-rows gives more", self.max_rows);
        }
        Ok(())
    }

    async fn ask(&self, means: &Means<'_>, database: DatabaseKey, sql: &str) -> anyhow::Result<Done> {
        let began = Instant::now();
        let name = database.to_string();
        let any = Job::new(Some(database.clone()), self.choice.target(), PathBuf::new());
        let job = Job { only_read: true, ..any };
        let (state, copy) = unless(means.cancel, fetch::fetch(means, &database, job)).await?;
        let answer = self.statement(copy, sql, means.cancel).await;
        let answer = answer.with_context(|| format!("{name} at TXID {}", state.txid))?;
        Ok(Done::new(name, state, answer, began.elapsed().as_secs_f64()))
    }

    /// Runs the statement on a thread; it ends when its time is over or we are interrupted.
    async fn statement(
        &self,
        copy: Reader,
        sql: &str,
        cancel: &CancellationToken,
    ) -> anyhow::Result<sql::Answer> {
        let (max_rows, sql) = (self.max_rows, sql.to_owned());
        let ask = move |announce: Announce| {
            announce.reader(&copy);
            copy.ask(&sql, max_rows)
        };
        let over = async {
            tokio::select! {
                biased;
                () = cancel.cancelled() => Interrupted.into(),
                () = tokio::time::sleep(self.timeout) => {
                    anyhow!("the statement took longer than {:?}; --timeout gives it more", self.timeout)
                }
            }
        };
        match sql::until(ask, over).await? {
            (Ok(answer), _) => Ok(answer),
            (Err(_), Some(why)) => Err(why),
            (Err(error), None) => Err(error.into()),
        }
    }
}

/// Answers with other columns than the first one cannot stand below it.
fn one_heading(entries: &mut [Entry]) {
    let first = entries.iter().position(|entry| matches!(entry, Entry::Done(_)));
    let Some((head, rest)) = first.and_then(|first| entries[first..].split_first_mut()) else { return };
    for entry in rest {
        let (Entry::Done(first), Entry::Done(done)) = (&*head, &*entry) else { continue };
        if let Some(misfit) = done.misfit(first) {
            let database = done.database().to_owned();
            eprintln!("hubctl: {database}: {}", clean(&misfit));
            *entry = Entry::Failed { database, error: misfit };
        }
    }
}
