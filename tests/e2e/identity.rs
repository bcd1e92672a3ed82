//! Who may talk to whom: wrong authority, expired certificate, no certificate, another node's database. Refused, with a
//! sentence a person can act on, on both sides.

use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore, pki_types::CertificateDer, pki_types::pem::PemObject,
};
use walhub_proto::v1;
use walhub_tests::certs::{Authority, Files, Validity, Who};
use walhub_tests::client::Client;
use walhub_tests::cluster::PATIENCE;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::segments::{History, Session};
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image};

fn hub(name: &str) -> Cluster {
    let mut cluster = Cluster::new(name);
    cluster.add_folder("near");
    cluster.start_hub();
    cluster
}

/// hubctl and the agent with these files are refused, and each side says `words`.
fn both_refused(cluster: &mut Cluster, operator: &Files, agent: Files, here: &str, there: &str) {
    let output = cluster.hubctl_as(operator, &["status"]);
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains(here), "hubctl does not say {here:?}: {}", output.stderr);

    let database = cluster.path("data/app.db");
    Writer::spawn(&database, &["--commits", "3"]).wait();
    cluster.agent("stranger", &[("app.db", &database)]);
    cluster.agent_certificate("stranger", agent);
    cluster.start_agent("stranger");
    eventually("both sides say why", PATIENCE, || {
        let (agent, hub) = (cluster.agent_process("stranger").log(), cluster.hub().log());
        ensure(agent.contains(here), || format!("the agent does not say {here:?}: {agent}"))?;
        ensure(hub.contains(there), || format!("the hub does not say {there:?}: {hub}"))
    });
    cluster.agent_process("stranger").assert_running();
    let status = cluster.client().status().expect("status of a healthy operator");
    assert!(status.databases.is_empty(), "{status:?}");
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let mut cluster = hub("wrong-ca");
    let other = Authority::new(&cluster.path("other"), "another CA");
    // They trust our hub, but were issued elsewhere.
    let ca = cluster.authority().ca();
    let with_our_ca = |files: Files| Files { ca: ca.clone(), ..files };
    let operator = with_our_ca(other.issue(Who::Operator("ops")));
    let agent = with_our_ca(other.issue(Who::Agent("stranger")));
    both_refused(&mut cluster, &operator, agent, "another CA signed it", "not signed by our CA");
}

#[test]
fn a_hub_of_another_authority_is_not_trusted() {
    let mut cluster = hub("wrong-hub");
    let other = Authority::new(&cluster.path("other"), "another CA");
    let (operator, agent) = (other.issue(Who::Operator("ops")), other.issue(Who::Agent("stranger")));
    both_refused(&mut cluster, &operator, agent, "not signed by our CA", "its CA file is not the one");
}

/// A certificate with wrong dates: our own programs say so themselves and do not even try; a client that does try is
/// refused, and both sides say why.
fn dates_refused(name: &str, validity: Validity, own: &str, client: &str, there: &str) {
    let mut cluster = hub(name);
    let operator = cluster.authority().issue_with(Who::Operator("ops"), validity);
    let agent = cluster.authority().issue_with(Who::Agent("stranger"), validity);

    let output = cluster.hubctl_as(&operator, &["status"]);
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains(own), "hubctl does not say {own:?}: {}", output.stderr);
    let database = cluster.path("data/app.db");
    cluster.agent("stranger", &[("app.db", &database)]).agent_certificate("stranger", agent.clone());
    cluster.start_agent("stranger");
    let status = cluster.agent_process("stranger").wait(PATIENCE);
    assert_eq!(status.code(), Some(64));
    let said = cluster.agent_process("stranger").log();
    assert!(said.contains(own) && said.contains("tls.cert"), "{said}");

    let refused = Client::new(&cluster.address(), &agent).status().expect_err("must be refused");
    let reason = walhub_common::tls::explain(&refused).unwrap_or_default();
    assert!(reason.contains(client), "the client does not learn {client:?}: {reason} ({refused:?})");
    eventually("the hub says why", PATIENCE, || {
        let log = cluster.hub().log();
        ensure(log.contains(there), || format!("the hub does not say {there:?}: {log}"))
    });
}

#[test]
fn an_expired_certificate_is_refused() {
    let there = "the client's certificate expired on";
    dates_refused("expired", Validity::Expired, "expired on", "it has expired or is not valid yet", there);
}

#[test]
fn a_certificate_from_the_future_is_refused() {
    let there = "check the clocks of both machines";
    dates_refused("future", Validity::NotYet, "set the clock", "it has expired or is not valid yet", there);
}

#[test]
fn a_certificate_that_expires_under_way_is_refused_and_a_renewed_one_is_taken_without_a_restart() {
    let mut cluster = Cluster::new("renewed");
    cluster.add_folder("near");
    let short = cluster.authority().issue_with(Who::Agent("node"), Validity::Seconds(3));
    let database = cluster.path("data/app.db");
    Writer::spawn(&database, &["--commits", "3"]).wait();
    cluster.agent("node", &[("app.db", &database)]).agent_certificate("node", short.clone());
    cluster.start_agent("node");
    eventually("the agent looks for its hub", PATIENCE, || {
        let log = cluster.agent_process("node").log();
        ensure(log.contains("cannot reach the hub"), || log)
    });
    cluster.start_hub();
    eventually("its certificate has expired", PATIENCE, || {
        // A new connection each time: an open one outlives its certificate.
        match Client::new(&cluster.address(), &short).status() {
            Ok(_) => Err("it is still valid".to_owned()),
            Err(_) => Ok(()),
        }
    });
    // The handshake of this second hub is after the end of the certificate.
    cluster.kill_hub();
    cluster.start_hub();
    eventually("both sides say why", PATIENCE, || {
        let (agent, hub) = (cluster.agent_process("node").log(), cluster.hub().log());
        ensure(agent.contains("it has expired"), || format!("the agent does not say it: {agent}"))?;
        ensure(hub.contains("the client's certificate expired on"), || format!("nor the hub: {hub}"))
    });

    let renewed = cluster.authority().issue(Who::Agent("node"));
    std::fs::copy(&renewed.key, &short.key).expect("key");
    std::fs::copy(&renewed.cert, &short.cert).expect("certificate");
    let (live, _) = cluster.await_buffered("node", "app.db", &database);
    let out = cluster.restore("node/app.db", "out.db", &[]);
    live.assert_same(&Image::restored(&out), "after the renewal");
}

#[test]
fn no_certificate_is_refused() {
    let mut cluster = hub("no-cert");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(cluster.authority().ca()).expect("CA")).expect("root");
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let mut config = config;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let address = cluster.address();
    let said = cluster.client().block_on(async {
        let socket = tokio::net::TcpStream::connect(&address).await.expect("connect");
        let name = "localhost".try_into().expect("a name");
        let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
        // In TLS 1.3 the client hears of its refusal when it first reads.
        let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        stream.read_u8().await
    });
    let said = said.expect_err("must be refused").to_string();
    assert!(said.contains("CertificateRequired"), "{said}");
    eventually("the hub says why", PATIENCE, || {
        let log = cluster.hub().log();
        ensure(log.contains("the client showed no certificate"), || log)
    });
}

#[test]
fn an_agent_sees_and_gets_its_own_databases_only() {
    let mut cluster = hub("neighbours");
    let (alice, bob) = (cluster.path("data/alice.db"), cluster.path("data/bob.db"));
    for path in [&alice, &bob] {
        Writer::spawn(path, &["--commits", "5"]).wait();
    }
    cluster.agent("alice", &[("app.db", &alice)]).agent("bob", &[("app.db", &bob)]);
    cluster.start_agent("alice");
    cluster.start_agent("bob");
    let (live, _) = cluster.await_buffered("alice", "app.db", &alice);
    cluster.await_buffered("bob", "app.db", &bob);

    let files = cluster.authority().issue(Who::Agent("alice"));
    let client = Client::new(&cluster.address(), &files);
    let status = client.status().expect("its own status");
    assert!(status.agents.iter().all(|agent| agent.name == "alice"), "{:?}", status.agents);
    assert_eq!(status.databases.len(), 1);
    let denied = client.files("bob", "app.db", "").expect_err("not its own");
    assert_eq!(denied.code(), tonic::Code::PermissionDenied, "{}", denied.message());
    let request = v1::RestoreRequest {
        database: Some(v1::DatabaseRef { agent: "bob".to_owned(), name: "app.db".to_owned() }),
        ..Default::default()
    };
    let mut service = client.restore();
    let denied = client.block_on(async {
        let request = v1::RestorePagesRequest { point: Some(request.clone()), ..Default::default() };
        match service.restore_pages(request).await {
            Err(status) => status,
            Ok(stream) => stream.into_inner().message().await.expect_err("not its own"),
        }
    });
    assert_eq!(denied.code(), tonic::Code::PermissionDenied, "{}", denied.message());
    assert!(denied.message().contains("alice") && denied.message().contains("bob"), "{}", denied.message());
    eventually("the hub says who asked for what", PATIENCE, || {
        let log = cluster.hub().log();
        let line = log
            .lines()
            .find(|line| line.contains("refused") && line.contains("alice") && line.contains("bob"));
        ensure(line.is_some(), || log.clone())
    });

    // The same through hubctl with an agent's certificate: its own comes, the other's does not.
    let out = cluster.path("own.db").display().to_string();
    cluster.hubctl_as(&files, &["restore", "alice/app.db", "-o", &out]).success();
    live.assert_same(&Image::restored(&cluster.path("own.db")), "its own");
    let out = cluster.path("other.db").display().to_string();
    let refused = cluster.hubctl_as(&files, &["restore", "bob/app.db", "-o", &out]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("alice") && refused.stderr.contains("bob"), "{}", refused.stderr);
    assert!(!cluster.path("other.db").exists());
}

#[test]
fn an_operator_cannot_replicate_and_a_hub_certificate_is_no_client() {
    let cluster = hub("roles");
    let status = Session::open(cluster.client(), 1, b"ops").expect_err("an operator is no node");
    assert_eq!(status.code(), tonic::Code::PermissionDenied, "{}", status.message());
    let hub_files = cluster.authority().issue(Who::Hub("other-hub"));
    let output = cluster.hubctl_as(&hub_files, &["status"]);
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("certificate"), "{}", output.stderr);
    // A node's name is its certificate's, whatever it sends: the history lands under its own name.
    let node = Client::new(&cluster.address(), &cluster.authority().issue(Who::Agent("node")));
    let (mut session, _) = Session::open(&node, 1, b"x").expect("hello");
    session.announce(1, "app.db", 0, None).expect("open");
    session.send_segment(1, &History::new(2).next(1, 1));
    session.outcome(1, 1).expect("ack");
    assert_eq!(cluster.buffered("node", "app.db").expect("status").0, 1);
}
