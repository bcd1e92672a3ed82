//! Many nodes made from one image: what the hub holds of the first one, the others do not send, and the hub keeps it once.
//!
//! `WALHUB_TEST_NODES` and `WALHUB_TEST_IMAGE_MB` make the fleet as large as a release wants (100 of 200 MB).

use super::snapshot::fill;
use rusqlite::Connection;
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::report::report;
use walhub_tests::wire::Wire;
use walhub_tests::{Cluster, Image};

/// Bytes of each node after the first: with more, a hundred nodes of a 200 MB image would be more than 1.1 of it.
const FURTHER: u64 = 200_000_000 / 10 / 99;

fn number(variable: &str, default: u32) -> u32 {
    std::env::var(variable).map_or(default, |value| value.parse().expect(variable))
}

/// A copy of the image as a node makes its own: a name, some settings, here and there in the file.
fn node(image: &Path, to: &Path, seed: u32) {
    std::fs::copy(image, to).expect("copy the image");
    let app = Connection::open(to).expect("open");
    let mine = app
        .execute("UPDATE big SET x = randomblob(3900) WHERE id % 4001 = ?1", [seed % 4001])
        .expect("update");
    assert!(mine > 0);
    app.execute("INSERT INTO big(x) VALUES ('node ' || ?1)", [seed]).expect("insert");
    app.pragma_update(None, "wal_checkpoint", "truncate").expect("checkpoint");
}

/// Bytes of a folder, links counted once.
fn on_disk(folder: &Path) -> u64 {
    let (mut seen, mut folders, mut bytes) = (HashSet::new(), vec![folder.to_owned()], 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) if seen.insert(metadata.ino()) => {
                    bytes += metadata.len().min(metadata.blocks() * 512)
                }
                _ => {}
            }
        }
    }
    bytes
}

#[test]
fn a_fleet_made_from_one_image_sends_it_once() {
    let (nodes, megabytes) = (number("WALHUB_TEST_NODES", 6), number("WALHUB_TEST_IMAGE_MB", 72));
    let mut cluster = Cluster::new("images");
    let copies = cluster.add_folder("near");
    cluster.hub_lines("buffer: {max-bytes: 2GiB}\n");
    let image = cluster.path("image.db");
    fill(&image, megabytes);
    cluster.start_hub();
    let mut wires = Vec::new();
    let (mut first, mut alone) = (0, 0);
    for number in 0..nodes {
        let (name, path) = (format!("node-{number}"), cluster.path(format!("{number}.db")));
        node(&image, &path, number);
        cluster.agent(&name, &[("app", &path)]);
        let wire = Wire::to(&cluster.address());
        cluster.agent_hub(&name, wire.address());
        cluster.start_agent(&name);
        if number == 2 {
            // Broken off in the middle, it goes on with what was taken over from the image.
            eventually("something is sent", Duration::from_secs(30), || {
                ensure(wire.up() > 20_000, || wire.up().to_string())
            });
            wire.cut();
        }
        let (live, txid) = cluster.await_buffered(&name, "app", &path);
        if number < 3 {
            let out = cluster.restore(
                &format!("{name}/app"),
                &format!("{number}-buffer.db"),
                &["--source", "buffer"],
            );
            live.assert_same(&Image::restored(&out), "buffer");
        }
        cluster.await_everywhere(&name, "app", txid);
        let out =
            cluster.restore(&format!("{name}/app"), &format!("{number}-near.db"), &["--source", "near"]);
        live.assert_same(&Image::restored(&out), "near");
        cluster.stop_agent(&name);
        for file in [out, path, copies.join(&name)] {
            let _ = std::fs::remove_file(&file).or_else(|_| std::fs::remove_dir_all(&file));
        }
        if number == 0 {
            first = wire.up();
            alone = on_disk(&cluster.path("hub-data"));
        }
        wires.push(wire.up());
    }
    let sent: u64 = wires.iter().sum();
    let kept = on_disk(&cluster.path("hub-data"));
    let images = |bytes: u64| bytes as f64 / first as f64;
    let further = |all: u64, one: u64| (all - one) / u64::from(nodes - 1);
    let (wire, disk) = (further(sent, first), further(kept, alone));
    let text = format!(
        "{:.3} images on the wire, {:.3} on the hub's disk; each node after the first: {} and {} KB",
        images(sent),
        images(kept),
        wire / 1000,
        disk / 1000
    );
    report(&format!("{nodes} nodes made from one image of {} MB", first / 1_000_000), &text);
    assert!(
        images(sent) <= 1.1 && images(kept) <= 1.1,
        "{wires:?} bytes were sent, {kept} are on the hub's disk"
    );
    assert!(
        wire <= FURTHER && disk <= FURTHER,
        "{wires:?} bytes were sent, {alone} and {kept} are on the hub's disk"
    );
    // A hub that is killed knows all of it afterwards.
    cluster.kill_hub();
    cluster.start_hub();
    let out = cluster.restore("node-1/app", "after.db", &["--source", "buffer"]);
    let check: String = Connection::open(out)
        .and_then(|db| db.query_row("PRAGMA integrity_check", [], |row| row.get(0)))
        .expect("check");
    assert_eq!(check, "ok");
    cluster.stop_hub();
}

#[test]
fn a_stranger_is_not_compared_for_long() {
    let mut cluster = Cluster::new("images-stranger");
    cluster.add_folder("near");
    for name in ["one", "two"] {
        let path = cluster.path(format!("{name}.db"));
        fill(&path, 66);
        cluster.agent(name, &[("app", &path)]);
    }
    cluster.start_hub();
    for name in ["one", "two"] {
        cluster.start_agent(name);
        let path = cluster.path(format!("{name}.db"));
        let (live, txid) = cluster.await_buffered(name, "app", &path);
        cluster.await_everywhere(name, "app", txid);
        let out = cluster.restore(&format!("{name}/app"), &format!("{name}-out.db"), &[]);
        live.assert_same(&Image::restored(&out), name);
    }
    for name in ["one", "two"] {
        cluster.stop_agent(name);
    }
    cluster.stop_hub();
}
