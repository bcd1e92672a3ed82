//! A hundred nodes with 20 MB each, all brought back to one time by one command, in waves, while the hub is killed in the
//! middle: from the command to its end. Every agent is a process of its own, on the same cores as the hub.

use crate::Plan;
use crate::table::Row;
use std::time::{Duration, Instant};
use walhub_tests::Cluster;
use walhub_tests::disaster::{Disaster, Shape};
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::process::Process;

const PATIENCE: Duration = Duration::from_secs(900);
/// Share of rows that the disaster overwrites, percent.
const HIT: [u32; 2] = [10, 100];

pub(crate) fn run(plan: &Plan) -> Vec<Row> {
    let nodes = plan.pick(100, 12);
    let rows = plan.pick(5000, 500);
    HIT.iter().map(|hit| one(nodes, rows, *hit)).collect()
}

fn one(nodes: usize, rows: u32, hit_percent: u32) -> Row {
    let mut cluster = Cluster::new("bench-fleet");
    cluster.add_folder("near");
    cluster.start_hub();
    let fleet = Disaster::strike(&mut cluster, Shape { nodes, rows, hit_percent, unwell: None });
    let megabytes = std::fs::metadata(&fleet.victims[0].path).expect("size").len() as f64 / 1e6;
    eprintln!("{nodes} nodes with {megabytes:.1} MB each are ruined, {hit_percent} % of their rows");
    let point = fleet.timestamp();
    let arguments =
        ["restore", "--all", "--timestamp", &point, "--in-place", "--waves", "1%,10%,100%", "--yes"];
    let began = Instant::now();
    let log = cluster.path("logs/hubctl.log");
    let mut hubctl = Process::spawn("hubctl", cluster.hubctl_command(&arguments), &log);
    eventually("a third to be back", PATIENCE, || {
        let report = cluster.hubctl(&["jobs", "list", "--json"]).json();
        let restored = report[0]["restored"].as_u64().unwrap_or(0);
        ensure(restored as usize * 3 >= nodes, || format!("{restored} are"))
    });
    cluster.kill_hub();
    let killed = began.elapsed().as_secs_f64();
    cluster.start_hub();
    let status = hubctl.wait(PATIENCE);
    let seconds = began.elapsed().as_secs_f64();
    assert!(status.success(), "{}", hubctl.log());
    eprintln!("the hub was killed after {killed:.1} s; the command ended after {seconds:.1} s");
    let report = cluster.hubctl(&["jobs", "show", "--json"]).json();
    assert_eq!(report["restored"].as_u64(), Some(nodes as u64), "{report}");
    for victim in &fleet.victims {
        victim.assert_good();
    }
    Row::new(
        format!("{nodes} nodes of {megabytes:.0} MB back in place, {hit_percent} % of rows differ, hub killed meanwhile, s"),
        seconds,
        None,
    )
    .goal("< 60 s", |row| row.ours < 60.0)
}
