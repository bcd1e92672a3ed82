//! How fast a 1 GB database comes back: `hubctl restore` over mTLS from the hub's file destination and from its buffer,
//! and `litestream restore` from its file replica.

use crate::Plan;
use crate::setup::{self, database};
use crate::table::Row;
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use walhub_tests::process::run as run_command;
use walhub_tests::scratch::Scratch;
use walhub_tests::{binaries, services};

pub(crate) fn run(plan: &Plan) -> Vec<Row> {
    let scratch = Scratch::new("bench-restore");
    let path = scratch.join("big.db");
    // Text and noise in equal parts on full pages, so that compression has something to do and does not do everything.
    let connection = database(&path, 0);
    let megabytes = plan.pick(1000u32, 50);
    connection.execute_batch("BEGIN").expect("begin");
    let insert = "INSERT INTO t(note, data) VALUES (hex(zeroblob(225)) || ?1, randomblob(450))";
    for n in 0..megabytes * 1000 {
        connection.prepare(insert).and_then(|mut s| s.execute([n])).expect("fill");
    }
    connection.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)").expect("commit");
    drop(connection);
    let size = std::fs::metadata(&path).expect("size").len() as f64 / 1e6;
    eprintln!("a database of {size:.0} MB");

    let databases = [("big".to_owned(), path)];
    let ours = setup::ours(&scratch.join("ours"), &databases);
    let hubctl = |source: &str| {
        let out = scratch.join(format!("from-{source}.db"));
        let mut command = Command::new(binaries::program("hubctl"));
        command.env("WALHUB_HUB", &ours.address).env("WALHUB_CA", &ours.operator.ca);
        command.env("WALHUB_CERT", &ours.operator.cert).env("WALHUB_KEY", &ours.operator.key);
        command.args(["restore", "node/big", "--source", source, "-o"]).arg(&out);
        timed(command, &out, size)
    };
    let from_disk = hubctl("disk");
    let from_buffer = hubctl("buffer");
    drop(ours);

    let dir = scratch.join("theirs");
    std::fs::create_dir_all(&dir).expect("folder");
    let (litestream, replicas) = setup::litestream(&dir, &databases);
    drop(litestream);
    let mut command = Command::new(services::litestream().expect("litestream"));
    let out = scratch.join("litestream.db");
    command.args(["restore", "-o"]).arg(&out).arg(format!("file://{}", replicas.join("big").display()));
    let theirs = timed(command, &out, size);
    vec![
        Row::new(
            format!("restore of a {size:.0} MB database from a file destination, MB/s"),
            from_disk,
            Some(theirs),
        )
        .more_is_better()
        .goal("≥ 5x", |row| row.ratio().is_some_and(|r| r >= 5.0)),
        Row::new("the same from the hub's buffer, MB/s", from_buffer, Some(theirs)).more_is_better(),
    ]
}

/// MB/s of a restore; the output is removed afterwards.
fn timed(command: Command, out: &Path, megabytes: f64) -> f64 {
    let began = Instant::now();
    run_command(command).success();
    let seconds = began.elapsed().as_secs_f64();
    std::fs::remove_file(out).expect("remove the restored file");
    megabytes / seconds
}
