//! A whole fleet brought back by one command: in waves, past a node that fails its check, a hub that is killed in the middle,
//! and a node that is away.

use serde_json::Value;
use std::time::Duration;
use walhub_tests::Cluster;
use walhub_tests::disaster::{Disaster, Shape};
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::process::Process;

const PATIENCE: Duration = Duration::from_secs(120);
const CHECK: &str = "SELECT ok FROM health = 1";

fn jobs(cluster: &Cluster) -> Value {
    cluster.hubctl(&["jobs", "show", "--json"]).json()
}

/// Names of the databases of a report that stand so.
fn standing(report: &Value, state: &str) -> Vec<String> {
    let list = report["list"].as_array().expect("a list");
    let of = list.iter().filter(|line| line["state"] == state);
    of.map(|line| line["database"].as_str().expect("a name").replace("/app.db", "")).collect()
}

/// What the plan says that it takes adds up, and is twice what a restore into a file takes.
fn assert_costs_add_up(cluster: &Cluster, plan: &Value) {
    let list = plan["list"].as_array().expect("a list");
    let sum =
        |what: &str| list.iter().map(|line| line["at_most"][what].as_u64().expect("a number")).sum::<u64>();
    for what in ["bytes", "requests"] {
        assert!(sum(what) > 0, "{plan}");
        assert_eq!(plan["at_most"][what].as_u64(), Some(sum(what)), "{plan}");
    }
    assert!(plan["at_most"]["seconds"].as_f64() > Some(0.0), "{plan}");
    let txid = list[0]["asked_txid"].to_string();
    let arguments = ["restore", "n00/app.db", "--txid", &txid, "--dry-run", "--json"];
    // What lies at the folder changes meanwhile.
    eventually("the plan into a file to be half of the bound", PATIENCE, || {
        let whole = cluster.hubctl(&arguments).json();
        let bound = cluster.hubctl(&[&arguments[..], &["--in-place"]].concat()).json();
        let twice = whole["total_bytes"].as_u64().map(|bytes| 2 * bytes);
        ensure(bound["at_most"]["bytes"].as_u64() == twice, || format!("{whole} {bound}"))
    });
}

#[test]
fn a_fleet_comes_back_in_waves_past_a_failure_a_dead_hub_and_a_node_that_is_away() {
    let mut cluster = Cluster::new("fleet");
    cluster.add_folder("near");
    cluster.start_hub();
    let shape = Shape { nodes: 12, rows: 100, hit_percent: 30, unwell: Some(3) };
    let fleet = Disaster::strike(&mut cluster, shape);
    let (victims, point) = (&fleet.victims, fleet.timestamp());
    cluster.stop_agent("n11");

    // Waves of 1, 5 and 6 nodes; the fourth node is in the second.
    let waves = "1,50%,100%";
    let mut arguments = vec!["restore", "--all", "--timestamp", &point, "--in-place", "--waves", waves];
    arguments.extend(["--check", CHECK, "--parallelism", "2"]);
    let plan = cluster.hubctl(&[&arguments[..], &["--dry-run", "--json"]].concat()).json();
    assert_eq!(
        (plan["waves"].as_u64(), plan["list"].as_array().map(Vec::len)),
        (Some(3), Some(12)),
        "{plan}"
    );
    assert_costs_add_up(&cluster, &plan);
    let unasked = cluster.hubctl(&arguments);
    assert_eq!(unasked.code, 2, "live databases are not changed without a word: {unasked:?}");
    arguments.push("--yes");
    let stopped = cluster.hubctl(&arguments);
    assert_eq!(stopped.code, 1, "{stopped:?}");
    assert!(
        stopped.stderr.contains("n03/app.db failed") && stopped.stderr.contains("jobs resume"),
        "{stopped:?}"
    );

    // As asked: the wave with the failure is the last one that was told anything.
    let report = jobs(&cluster);
    assert_eq!(report["state"], "stopped", "{report}");
    assert_eq!(standing(&report, "failed"), ["n03"], "{report}");
    assert!(standing(&report, "done").contains(&"n00".to_owned()), "the first wave: {report}");
    for line in report["list"].as_array().expect("a list").iter().filter(|line| line["wave"] == 3) {
        assert!(matches!(line["state"].as_str(), Some("pending" | "away")), "a third wave began: {line}");
    }
    for victim in &victims[6..] {
        victim.assert_bad();
    }
    victims[3].assert_bad();
    let busy = cluster.hubctl(&["restore", "n07/app.db", "--in-place", "--yes"]);
    assert!(busy.code == 1 && busy.stderr.contains("belongs to job"), "{busy:?}");

    // It goes on, somebody watches, and the hub is killed while it does.
    cluster.hubctl(&["jobs", "resume"]).success();
    let command = cluster.hubctl_command(&["jobs", "watch"]);
    let mut watch = Process::spawn("hubctl", command, &cluster.path("logs/watch.log"));
    let before = report["restored"].as_u64().expect("a number");
    eventually("the job to go on", PATIENCE, || {
        let restored = jobs(&cluster)["restored"].as_u64().unwrap_or(0);
        ensure(restored > before, || format!("{restored} restored"))
    });
    cluster.kill_hub();
    cluster.start_hub();
    let report = eventually("all that are here to be back", PATIENCE, || {
        let report = jobs(&cluster);
        ensure(standing(&report, "done").len() == 10, || report.to_string())?;
        Ok(report)
    });
    assert_eq!(report["state"], "running", "{report}");
    assert_eq!(standing(&report, "away"), ["n11"], "{report}");
    watch.assert_running();

    // The last one gets its order when it comes back, and the report is complete.
    cluster.start_agent("n11");
    let status = watch.wait(PATIENCE);
    assert_eq!(status.code(), Some(1), "one database failed:\n{}", watch.log());
    let report = jobs(&cluster);
    assert_eq!(report["state"], "failed", "{report}");
    assert_eq!(standing(&report, "done").len(), 11, "{report}");
    for victim in victims.iter().filter(|victim| victim.agent != "n03") {
        victim.assert_good();
    }
    for line in report["list"].as_array().expect("a list").iter().filter(|line| line["state"] == "done") {
        assert_eq!(
            (&line["verdict"], &line["reached_txid"]),
            (&"verified".into(), &line["asked_txid"]),
            "{line}"
        );
    }

    // What was there before is a restore point.
    let safety = report["list"][0]["safety_txid"].as_u64().expect("a restore point").to_string();
    victims[0].assert_is_bad_state(&cluster.restore("n00/app.db", "before.db", &["--txid", &safety]));

    // The one that failed is brought back when nobody insists on its health.
    cluster.hubctl(&["agents", "label", "n03", "ring=last"]).success();
    let chosen =
        ["restore", "--selector", "ring=last", "--timestamp", &point, "--in-place", "--yes", "--json"];
    let report = cluster.hubctl(&chosen).json();
    assert_eq!(
        (&report["state"], report["list"].as_array().map(Vec::len)),
        (&"done".into(), Some(1)),
        "{report}"
    );
    victims[3].assert_good();
    let listed = cluster.hubctl(&["jobs", "list", "--json"]).json();
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
}
