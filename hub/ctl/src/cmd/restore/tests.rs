//! Restores against a scripted hub, through real mTLS and gRPC: what appears on disk, what people are told.

use super::one::{self, Job};
use super::progress::Progress;
use super::target::Target;
use crate::cli::Cli;
use crate::connect::ConnectArgs;
use crate::fake_hub::{FakeHub, Script, image};
use crate::fault::Interrupted;
use clap::Parser;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Runs a whole command line.
async fn run(hub: &FakeHub, words: &[&str]) -> Result<ExitCode, String> {
    let cli = Cli::try_parse_from(hub.command(words)).map_err(|e| e.to_string())?;
    cli.run().await.map_err(|e| format!("{e:#}"))
}

/// Restores `node/app.db` from a hub with this script; what was said, and what lies in the output folder.
async fn restore(script: Script) -> (Result<ExitCode, String>, Vec<PathBuf>) {
    let hub = FakeHub::start(&[("node/app.db", script)]).await;
    let dir = hub.dir().join("out");
    let out = dir.join("app.db").display().to_string();
    let result = run(&hub, &["restore", "node/app.db", "-o", &out]).await;
    if result.is_ok() {
        assert_eq!(std::fs::read(&out).unwrap(), image());
    }
    (result, files(&dir))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test]
async fn a_database_comes_back() {
    let (result, files) = restore(Script::Whole).await;
    assert_eq!(result, Ok(ExitCode::SUCCESS));
    assert_eq!(files.len(), 1);
}

#[tokio::test]
async fn whatever_goes_wrong_is_named_and_leaves_nothing() {
    for (script, part) in [
        (Script::WrongChecksum, "not what it was at the source"),
        (Script::Breaks(Status::data_loss("file 7 of disk is gone")), "damaged: file 7 of disk is gone"),
        (Script::Breaks(Status::internal("panic at secret.rs:1")), "its log says more"),
        (Script::Short, "page 3, which is neither in it"),
    ] {
        let (result, files) = restore(script.clone()).await;
        let error = result.unwrap_err();
        assert!(error.starts_with("cannot restore node/app.db to its newest state: "), "{script:?}: {error}");
        assert!(error.contains(part) && !error.contains("secret.rs"), "{script:?}: {error}");
        assert!(files.is_empty(), "{script:?}: {files:?}");
    }
}

#[tokio::test]
async fn an_existing_file_is_replaced_only_when_forced() {
    let hub = FakeHub::start(&[("node/app.db", Script::Whole)]).await;
    let out = hub.dir().join("app.db");
    let text = out.display().to_string();
    std::fs::write(&out, "mine").unwrap();
    let error = run(&hub, &["restore", "node/app.db", "-o", &text]).await.unwrap_err();
    assert!(error.contains("already exists") && error.contains("--force"), "{error}");
    assert_eq!(std::fs::read(&out).unwrap(), b"mine");
    run(&hub, &["restore", "node/app.db", "-o", &text, "--force", "--json"]).await.unwrap();
    assert_eq!(std::fs::read(&out).unwrap(), image());
}

#[tokio::test]
async fn an_interruption_leaves_nothing() {
    let reached = Arc::new(Notify::new());
    let hub = FakeHub::start(&[("node/app.db", Script::Hangs(Arc::clone(&reached)))]).await;
    let connection = connect(&hub).await;
    let dir = hub.dir().join("out");
    let database = Some("node/app.db".parse().unwrap());
    let job = Job::new(database, Target::Latest, dir.join("app.db"));
    let (cancel, progress) = (CancellationToken::new(), Progress::new());
    let interrupt = async {
        reached.notified().await;
        // The hub has sent half of it; the restore begins when it has seen the plan.
        while files(&dir).is_empty() {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let (result, ()) = tokio::join!(one::restore(&connection, &job, &progress, &cancel), interrupt);
    assert!(result.unwrap_err().is::<Interrupted>());
    assert_eq!(files(&dir), Vec::<PathBuf>::new());
}

async fn connect(hub: &FakeHub) -> crate::connect::Hub {
    #[derive(Parser)]
    struct Connect {
        #[command(flatten)]
        args: ConnectArgs,
    }
    Connect::try_parse_from(hub.command(&[])).unwrap().args.connect().await.unwrap()
}

#[tokio::test]
async fn a_fleet_goes_on_when_one_fails() {
    let hub = FakeHub::start(&[
        ("a/one.db", Script::Whole),
        ("a/two.db", Script::Breaks(Status::unavailable("disk is away"))),
        ("b/empty.db", Script::Nothing),
        ("b/three.db", Script::Whole),
    ])
    .await;
    let dir = hub.dir().join("all");
    let to = dir.display().to_string();
    assert_eq!(run(&hub, &["restore", "--all", "--to", &to]).await, Ok(ExitCode::FAILURE));
    for good in ["a/one.db", "b/three.db"] {
        assert_eq!(std::fs::read(dir.join(good)).unwrap(), image(), "{good}");
    }
    assert_eq!((files(&dir.join("a")).len(), files(&dir.join("b")).len()), (1, 1));

    let to = hub.dir().join("agent").display().to_string();
    assert_eq!(run(&hub, &["restore", "--agent", "a", "--to", &to, "--json"]).await, Ok(ExitCode::FAILURE));
    assert_eq!(files(Path::new(&to)), [Path::new(&to).join("a")]);
    let error = run(&hub, &["restore", "--agent", "nobody", "--to", &to]).await.unwrap_err();
    assert!(error.contains("no database of agent nobody"), "{error}");
}

#[tokio::test]
async fn a_dry_run_writes_nothing() {
    let hub = FakeHub::start(&[("a/one.db", Script::Whole)]).await;
    for words in [&["restore", "a/one.db", "--dry-run"][..], &["restore", "--all", "--dry-run", "--json"]] {
        assert_eq!(run(&hub, words).await, Ok(ExitCode::SUCCESS), "{words:?}");
    }
    let error = run(&hub, &["restore", "a/no.db", "--dry-run", "--txid", "99999"]).await.unwrap_err();
    assert_eq!(error, "cannot restore a/no.db to TXID 99999: the hub does not know a/no.db");
}

#[tokio::test]
async fn other_commands_reach_the_hub() {
    let hub = FakeHub::start(&[("a/one.db", Script::Whole)]).await;
    for words in [&["status"][..], &["agents", "list"], &["databases", "list", "--json"]] {
        assert_eq!(run(&hub, words).await, Ok(ExitCode::SUCCESS), "{words:?}");
    }
    for words in [&["snapshots", "a/one.db"][..], &["wal", "a/one.db", "--json"]] {
        assert_eq!(
            run(&hub, words).await,
            Ok(ExitCode::FAILURE),
            "a destination could not be listed: {words:?}"
        );
    }
}

#[tokio::test]
async fn wrong_words_are_refused_before_anything_happens() {
    let hub = FakeHub::start(&[]).await;
    for (words, part) in [
        (&["restore"][..], "required"),
        (&["restore", "app.db", "-o", "x"], "AGENT/NAME"),
        (&["restore", "a/b", "--all", "--to", "x"], "cannot be used"),
        (&["restore", "--all", "-o", "x"], "cannot be used"),
        (&["restore", "--all", "--to", "x", "--txid", "3"], "cannot be used"),
        (&["restore", "a/b", "-o", "x", "--txid", "0"], "from 1"),
        (&["restore", "a/b", "-o", "x", "--timestamp", "yesterday-ish"], "yesterday-ish"),
        (
            &["restore", "a/b", "-o", "x", "--txid", "3", "--timestamp", "2026-11-22T13:28:37Z"],
            "cannot be used",
        ),
        (&["restore", "a/b"], "-o FILE, --to DIR, --in-place or --replace"),
        (&["restore", "--all"], "--to DIR, --in-place or --replace"),
        (&["restore", "--all", "--replace", "--in-place"], "cannot be used"),
        (&["restore", "--all", "--replace", "--to", "x"], "cannot be used"),
        (&["restore", "--all", "--replace", "--integrity-check"], "cannot be used"),
        (&["restore", "--all", "--replace", "--from", "file:///x"], "cannot be used"),
        (&["restore", "--all", "--in-place", "--to", "x"], "cannot be used"),
        (&["restore", "--all", "--to", "x", "--waves", "1%"], "--in-place"),
        (&["restore", "--all", "--in-place", "--bandwidth", "0"], "for ever"),
        (&["restore", "--all"], "--to DIR"),
    ] {
        let error = run(&hub, words).await.unwrap_err();
        assert!(error.contains(part), "{words:?}: {error}");
    }
}

#[tokio::test]
async fn a_hub_that_is_not_there_is_named() {
    let hub = FakeHub::start(&[]).await;
    let mut words = hub.command(&["status"]);
    let at = words.iter().position(|word| word == "--hub").unwrap() + 1;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    words[at] = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = Cli::try_parse_from(&words).unwrap().run().await.unwrap_err().to_string();
    assert!(error.contains("cannot reach the hub at 127.0.0.1:") && error.contains("refused"), "{error}");
    let error = Cli::try_parse_from(&words[..2]).unwrap().run().await.unwrap_err();
    assert!(error.is::<crate::fault::Usage>() && error.to_string().contains("WALHUB_HUB"), "{error}");
}
