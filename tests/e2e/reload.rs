//! A running hub takes a changed configuration under load: a destination added, renamed, removed, a policy raised, a
//! broken file.

use walhub_tests::cluster::PATIENCE;
use walhub_tests::config::Destination;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image, replica};

fn reload(cluster: &Cluster) -> serde_json::Value {
    cluster.write_hub_config();
    cluster.hubctl(&["reload", "--json"]).json()
}

fn texts(value: &serde_json::Value) -> Vec<&str> {
    value.as_array().expect("a list").iter().map(|text| text.as_str().expect("text")).collect()
}

/// TXID that a destination holds of the database.
fn held(cluster: &Cluster, destination: &str) -> Result<u64, String> {
    let copies = cluster.database("node", "app.db")?.copies;
    Ok(copies.iter().find(|copy| copy.destination == destination).map_or(0, |copy| copy.txid))
}

fn reaches(cluster: &Cluster, destination: &str, txid: u64) {
    eventually(&format!("{destination} reaches {txid}"), PATIENCE, || {
        let held = held(cluster, destination)?;
        ensure(held >= txid, || format!("it holds {held}"))
    });
}

#[test]
fn destinations_come_go_and_change_names_and_policies_rise_while_transactions_flow() {
    let mut cluster = Cluster::new("reload");
    cluster.add_folder("near");
    let database = cluster.path("data/app.db");
    cluster.agent("node", &[("app.db", &database)]);
    let mut writer = Writer::spawn(&database, &["--rate", "100"]);
    writer.await_acked(50);
    cluster.start_hub();
    cluster.start_agent("node");
    reaches(&cluster, "near", 5);

    // Nothing changed, nothing done; an agent may not even ask.
    let said = reload(&cluster);
    assert!(texts(&said["changes"]).is_empty() && texts(&said["needs_restart"]).is_empty(), "{said}");
    let agent = cluster.authority().issue(walhub_tests::certs::Who::Agent("node"));
    let refused = cluster.hubctl_as(&agent, &["reload"]);
    assert!(
        refused.code == 1 && refused.stderr.contains("takes the certificate of an operator"),
        "{refused:?}"
    );

    // A destination is added, and the policy asks for it: durable waits for the back-fill, then follows.
    let far = cluster.path("far");
    cluster.add(Destination::file("far", &far)).hub_lines("policy: {copies: 3}\n");
    cluster.write_hub_config();
    let dry = cluster.hubctl(&["reload", "--dry-run"]).success();
    assert!(dry.contains("destination far is added") && dry.contains("copies 3"), "{dry}");
    assert!(!far.exists(), "a dry run changes nothing");
    let said = cluster.hubctl(&["reload", "--json"]).json();
    assert_eq!(texts(&said["changes"])[0], "destination far is added");
    let (txid, _) = cluster.buffered("node", "app.db").expect("status");
    reaches(&cluster, "far", txid);
    eventually("durable follows the raised policy", PATIENCE, || {
        let database = cluster.database("node", "app.db")?;
        ensure(database.durable_txid >= txid, || format!("{database:?}"))
    });

    // It takes another name: what it holds counts on, and goes on where it was.
    cluster.destinations()[1].name = "cellar".to_owned();
    let said = reload(&cluster);
    assert_eq!(texts(&said["changes"]), ["destination far is called cellar now"]);
    assert!(held(&cluster, "cellar").expect("status") >= txid, "its copies count without a pause");
    let seen = writer.acked();
    writer.await_acked(seen + 50);
    let (txid, _) = cluster.buffered("node", "app.db").expect("status");
    reaches(&cluster, "cellar", txid);

    // A broken file changes nothing, and every fault is told.
    let broken = Destination::file("near", &cluster.path("third")).with("media: [tape]");
    cluster.add(broken);
    let good = cluster.destinations().len() - 1;
    cluster.hub_lines("policy: {copies: 9}\nbufer: {}\n");
    cluster.write_hub_config();
    let broken = cluster.hubctl(&["reload"]);
    assert_eq!(broken.code, 1, "{broken:?}");
    for words in
        ["two destinations are called near", "did you mean \"buffer\"", "media: expected a single value"]
    {
        assert!(broken.stderr.contains(words), "{words}: {broken:?}");
    }
    let status = cluster.client().status().expect("status");
    assert_eq!(status.destinations.len(), 2);
    cluster.destinations().truncate(good);

    // The first one is removed, by a signal this time; what takes a restart is not done.
    cluster.hub_lines("policy: {copies: 2}\nlog: {level: debug}\n");
    cluster.destinations().remove(0);
    cluster.write_hub_config();
    cluster.hub().signal("HUP");
    eventually("near is gone", PATIENCE, || {
        let status = cluster.client().status().map_err(|status| status.message().to_owned())?;
        ensure(status.destinations.len() == 1, || format!("{:?}", status.destinations))
    });
    let said = cluster.hubctl(&["reload", "--json"]).json();
    assert_eq!(texts(&said["needs_restart"]), ["log"], "{said}");
    let seen = writer.acked();
    writer.await_acked(seen + 50);
    writer.stop();
    let (live, txid) = cluster.await_buffered("node", "app.db", &database);
    cluster.await_everywhere("node", "app.db", txid);
    let (near, _) = replica::audit(&cluster.path("near/node/app.db")).expect("near is whole, and ends");
    assert!(near < txid, "the removed one gets nothing more");
    assert_eq!(replica::audit(&far.join("node/app.db")), Ok((txid, live.checksum())));
    let out = cluster.restore("node/app.db", "out.db", &["--source", "cellar"]);
    live.assert_same(&Image::restored(&out), "from the added and renamed destination");

    // A restart agrees with all of it; a place that comes back is believed only as far as it reaches.
    cluster.stop_hub();
    cluster.hub_lines("");
    cluster.start_hub();
    cluster.add(Destination::file("near", &cluster.path("near")).every_ms(50));
    assert_eq!(texts(&reload(&cluster)["changes"]), ["destination near is added"]);
    reaches(&cluster, "near", txid);
    assert_eq!(replica::audit(&cluster.path("near/node/app.db")), Ok((txid, live.checksum())));
    cluster.stop_agent("node");
    cluster.stop_hub();
}

#[test]
fn a_database_that_is_idle_is_brought_to_an_added_destination_and_a_selector_keeps_another_one_at_home() {
    let mut cluster = Cluster::new("reload-idle");
    cluster.add_folder("near");
    let (idle, home) = (cluster.path("data/idle.db"), cluster.path("data/home.db"));
    for database in [&idle, &home] {
        Writer::spawn(database, &["--commits", "30"]).wait();
    }
    cluster.agent("node", &[("idle.db", &idle), ("home.db", &home)]);
    cluster.start_hub();
    cluster.start_agent("node");
    let (image, txid) = cluster.await_buffered("node", "idle.db", &idle);
    let (_, home_txid) = cluster.await_buffered("node", "home.db", &home);
    cluster.await_everywhere("node", "home.db", home_txid);
    let far = cluster.path("far");
    cluster.add(Destination::file("far", &far));
    cluster.hub_lines(
        "policy: {copies: 3}\ndatabases:\n  - {match: '*/home.db', destinations: near, policy: {copies: 2}}\n",
    );
    cluster.write_hub_config();
    cluster.hubctl(&["reload"]).success();
    eventually("both databases satisfy their policies", PATIENCE, || {
        for (name, txid) in [("idle.db", txid), ("home.db", home_txid)] {
            let database = cluster.database("node", name)?;
            ensure(database.durable_txid >= txid && database.policy_missing.is_empty(), || {
                format!("{database:?}")
            })?;
        }
        Ok(())
    });
    assert_eq!(cluster.database("node", "home.db").expect("status").copies.len(), 1);
    assert!(!far.join("node/home.db").exists());
    let out = cluster.restore("node/idle.db", "out.db", &["--source", "far"]);
    image.assert_same(&Image::restored(&out), "back-filled while idle");
}
