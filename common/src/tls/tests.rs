//! Every way a handshake can fail, with the sentence that each side gets.

use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};
use std::path::PathBuf;
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

struct Ca {
    dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

struct Leaf<'a> {
    uri: Option<&'a str>,
    hosts: &'a [&'a str],
    from: OffsetDateTime,
    until: OffsetDateTime,
}

impl Default for Leaf<'_> {
    fn default() -> Self {
        let now = OffsetDateTime::now_utc();
        Leaf {
            uri: None,
            hosts: &["localhost"],
            from: now - Duration::hours(1),
            until: now + Duration::hours(1),
        }
    }
}

impl Ca {
    fn new() -> Ca {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), issuer.pem()).unwrap();
        Ca { dir, issuer }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn issue(&self, file: &str, leaf: Leaf<'_>) -> TlsPaths {
        let hosts: Vec<String> = leaf.hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        if let Some(uri) = leaf.uri {
            params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (leaf.from, leaf.until);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let paths = TlsPaths {
            ca: self.file("ca.crt"),
            cert: self.file(&format!("{file}.crt")),
            key: self.file(&format!("{file}.key")),
        };
        std::fs::write(&paths.cert, certificate.pem()).unwrap();
        std::fs::write(&paths.key, key.serialize_pem()).unwrap();
        paths
    }

    fn hub(&self) -> TlsPaths {
        self.issue("hub", Leaf { uri: Some("spiffe://walhub/hub/h"), ..Leaf::default() })
    }

    fn agent(&self) -> TlsPaths {
        self.issue("agent", Leaf { uri: Some("spiffe://walhub/agent/a"), ..Leaf::default() })
    }
}

fn acceptor(paths: TlsPaths) -> Acceptor {
    Acceptor::from_material(&TlsMaterial::read(paths).unwrap()).unwrap()
}

fn connector(paths: TlsPaths) -> Connector {
    Connector::from_material(&TlsMaterial::read(paths).unwrap()).unwrap()
}

/// One connection: what each side got. The hub speaks first, as a gRPC server does.
async fn meet(
    acceptor: Acceptor,
    connector: &Connector,
    server_name: Option<&str>,
) -> (Result<Identity, AcceptError>, Result<String, ConnectError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hub = async {
        let (socket, _) = listener.accept().await.unwrap();
        let (mut stream, identity) = accept(socket, &acceptor).await?;
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        Ok(identity)
    };
    let client = async {
        let mut stream = connect(&format!("localhost:{port}"), server_name, connector).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        Ok(text)
    };
    tokio::join!(hub, client)
}

/// A connection that must fail on both sides; the two sentences.
async fn refused(acceptor: Acceptor, connector: Connector, server_name: Option<&str>) -> (String, String) {
    let (hub, client) = meet(acceptor, &connector, server_name).await;
    (hub.unwrap_err().to_string(), client.unwrap_err().to_string())
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}

#[tokio::test]
async fn the_hub_learns_the_clients_identity_and_bytes_flow() {
    let ca = Ca::new();
    let connector = Connector::open(ca.agent()).unwrap();
    let (hub, client) = meet(Acceptor::open(ca.hub()).unwrap(), &connector, None).await;
    assert_eq!(hub.unwrap(), Identity::parse("spiffe://walhub/agent/a").unwrap());
    assert_eq!(client.unwrap(), "hello");
}

#[tokio::test]
async fn only_tls_1_3_with_h2_is_spoken() {
    let ca = Ca::new();
    let server = TlsMaterial::load(ca.hub()).unwrap().server_config().unwrap();
    let client = TlsMaterial::load(ca.agent()).unwrap().client_config().unwrap();
    assert_eq!((server.alpn_protocols, client.alpn_protocols), (vec![b"h2".to_vec()], vec![b"h2".to_vec()]));

    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.issuer.der().clone()).unwrap();
    let old = rustls::ClientConfig::builder_with_provider(material::provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (hub, client) = raw_client(acceptor(ca.hub()), old).await;
    says(&hub, &["the client does not speak TLS 1.3"]);
    says(&client, &["the hub does not speak TLS 1.3"]);
}

#[tokio::test]
async fn no_certificate() {
    let ca = Ca::new();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.issuer.der().clone()).unwrap();
    let bare = rustls::ClientConfig::builder_with_provider(material::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (hub, client) = raw_client(acceptor(ca.hub()), bare).await;
    says(&hub, &["the client showed no certificate", "hubctl cert issue"]);
    says(&client, &["requires a certificate", "tls.cert"]);
}

/// A client of somebody else: its error goes through `explain`.
async fn raw_client(acceptor: Acceptor, config: rustls::ClientConfig) -> (String, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let hub = async { accept(listener.accept().await.unwrap().0, &acceptor).await.unwrap_err().to_string() };
    let client = async {
        let socket = TcpStream::connect(address).await.unwrap();
        let name = "localhost".try_into().unwrap();
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        let error = match connector.connect(name, socket).await {
            Ok(mut stream) => stream.read_u8().await.unwrap_err(),
            Err(error) => error,
        };
        explain(&error).unwrap()
    };
    tokio::join!(hub, client)
}

#[tokio::test]
async fn a_client_of_another_ca() {
    let (ca, other) = (Ca::new(), Ca::new());
    let mut agent = other.agent();
    agent.ca = ca.file("ca.crt");
    let (hub, client) = refused(acceptor(ca.hub()), connector(agent), None).await;
    says(&hub, &["the client's certificate is not signed by our CA", "hubctl cert issue"]);
    says(&client, &["the hub refused our certificate: another CA signed it"]);
}

#[tokio::test]
async fn a_hub_of_another_ca() {
    let (ca, other) = (Ca::new(), Ca::new());
    let (hub, client) = refused(acceptor(ca.hub()), connector(other.agent()), None).await;
    says(&hub, &["the client refused this hub's certificate", "ca.pem"]);
    says(&client, &["the hub's certificate is not signed by our CA", "check the CA file"]);
}

#[tokio::test]
async fn an_expired_client_certificate() {
    let ca = Ca::new();
    let until = OffsetDateTime::now_utc() - Duration::days(2);
    let agent = ca.issue(
        "old",
        Leaf {
            uri: Some("spiffe://walhub/agent/a"),
            from: until - Duration::days(1),
            until,
            ..Leaf::default()
        },
    );
    let day = until.date().to_string();
    says(&TlsMaterial::load(agent.clone()).unwrap_err().to_string(), &["old.crt", "expired on", &day]);
    let (hub, client) = refused(acceptor(ca.hub()), connector(agent), None).await;
    says(&hub, &["the client's certificate expired on", &day, "hubctl cert issue"]);
    says(&client, &["the hub refused our certificate", "has expired"]);
}

#[tokio::test]
async fn an_expired_hub_certificate() {
    let ca = Ca::new();
    let until = OffsetDateTime::now_utc() - Duration::hours(1);
    let hub = ca.issue(
        "old",
        Leaf {
            uri: Some("spiffe://walhub/hub/h"),
            from: until - Duration::hours(1),
            until,
            ..Leaf::default()
        },
    );
    assert!(matches!(Acceptor::open(hub.clone()), Err(LoadError::Expired { .. })));
    let (hub, client) = refused(acceptor(hub), connector(ca.agent()), None).await;
    says(&hub, &["the client refused this hub's certificate", "has expired"]);
    says(&client, &["the hub's certificate expired on", "hubctl cert issue --hub"]);
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_yet() {
    let ca = Ca::new();
    let from = OffsetDateTime::now_utc() + Duration::days(3);
    let agent = ca.issue(
        "early",
        Leaf {
            uri: Some("spiffe://walhub/agent/a"),
            from,
            until: from + Duration::days(1),
            ..Leaf::default()
        },
    );
    let day = from.date().to_string();
    says(&load_error(&agent), &["early.crt", "valid only from", &day, "clock"]);
    let (hub, client) = refused(acceptor(ca.hub()), connector(agent), None).await;
    says(&hub, &["valid only from", &day, "clocks"]);
    says(&client, &["the hub refused our certificate", "not valid yet"]);
}

#[tokio::test]
async fn a_certificate_of_the_wrong_role() {
    let ca = Ca::new();
    let (hub, client) = refused(acceptor(ca.agent()), connector(ca.agent()), None).await;
    says(&hub, &["it is not the certificate of a hub"]);
    says(&client, &["the certificate of agent a", "must show a hub's certificate"]);

    let (hub, client) = refused(acceptor(ca.hub()), connector(ca.hub()), None).await;
    says(&hub, &["the certificate of hub h", "agent's or an operator's"]);
    says(&client, &["not the certificate of an agent or an operator"]);

    let nobody = ca.issue("nobody", Leaf::default());
    says(&load_error(&nobody), &["nobody.crt", "names no agent, operator or hub"]);
    let (hub, client) = refused(acceptor(ca.hub()), connector(nobody), None).await;
    says(&hub, &["names no agent, operator or hub"]);
    says(&client, &["not the certificate of an agent or an operator"]);

    let error = Acceptor::open(ca.agent()).unwrap_err().to_string();
    says(&error, &["agent.crt", "agent a", "--hub NAME"]);
}

#[tokio::test]
async fn a_hub_of_another_name() {
    let ca = Ca::new();
    let (hub, client) = refused(acceptor(ca.hub()), connector(ca.agent()), Some("hub.example")).await;
    says(&hub, &["not for the host name the client used", "--host"]);
    says(&client, &["\"hub.example\"", "localhost", "--host"]);
    assert!(!client.contains("spiffe"), "{client}");
}

#[tokio::test]
async fn a_peer_that_is_no_tls() {
    let ca = Ca::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = acceptor(ca.hub());
    let hub = async { accept(listener.accept().await.unwrap().0, &acceptor).await.unwrap_err().to_string() };
    let client = async {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        socket.shutdown().await.unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.unwrap();
    };
    says(&tokio::join!(hub, client).0, &["the client does not speak TLS"]);
}

#[tokio::test]
async fn a_silent_client_is_dropped_at_the_deadline() {
    let ca = Ca::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (socket, _) = listener.accept().await.unwrap();
    let deadline = std::time::Duration::from_millis(30);
    let outcome = accept::accept_within(deadline, socket, &acceptor(ca.hub())).await;
    assert!(matches!(outcome, Err(AcceptError::Timeout)));
}

#[tokio::test]
async fn nobody_listens_and_bad_addresses() {
    let ca = Ca::new();
    let connector = connector(ca.agent());
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let error = connect(&format!("127.0.0.1:{port}"), None, &connector).await.unwrap_err();
    says(&error.to_string(), &["cannot reach the hub", "connection refused"]);
    says(&explain(&std::io::Error::other(error)).unwrap(), &["connection refused"]);
    let error = connect("localhost", None, &connector).await.unwrap_err();
    says(&error.to_string(), &["HOST:PORT"]);
    let error = connect("localhost:1", Some("not a name"), &connector).await.unwrap_err();
    says(&error.to_string(), &["not a host name"]);
}

#[tokio::test]
async fn new_files_are_taken_by_reload_and_bad_ones_refused() {
    let ca = Ca::new();
    let connector = Connector::open(ca.agent()).unwrap();
    let acceptor = Acceptor::open(ca.hub()).unwrap();
    ca.issue("agent", Leaf { uri: Some("spiffe://walhub/operator/ann"), ..Leaf::default() });
    connector.reload().unwrap();
    std::fs::write(ca.file("hub.crt"), "garbage").unwrap();
    says(&acceptor.reload().unwrap_err().to_string(), &["hub.crt", "holds no certificate"]);
    let (hub, client) = meet(acceptor, &connector, None).await;
    assert_eq!(hub.unwrap().role, Role::Operator);
    client.unwrap();
}

fn load_error(paths: &TlsPaths) -> String {
    load(&paths.ca, &paths.cert, &paths.key).unwrap_err().to_string()
}

#[test]
fn bad_files_are_named_with_the_way_out() {
    let ca = Ca::new();
    let good = ca.agent();
    let with = |change: &dyn Fn(&mut TlsPaths)| {
        let mut paths = good.clone();
        change(&mut paths);
        load_error(&paths)
    };
    says(&with(&|p| p.ca = "/nowhere/ca.crt".into()), &["/nowhere/ca.crt", "no such file", "hubctl ca init"]);
    says(&with(&|p| p.cert = ca.file("x.crt")), &["x.crt", "no such file", "hubctl cert issue"]);
    says(&with(&|p| p.key = ca.dir.path().into()), &["cannot be read"]);
    says(&with(&|p| p.key = good.cert.clone()), &["agent.crt", "holds a certificate", "BEGIN PRIVATE KEY"]);
    says(&with(&|p| p.cert = good.key.clone()), &["agent.key", "holds a private key", "BEGIN CERTIFICATE"]);
    says(&with(&|p| p.key = ca.hub().key), &["agent.crt", "hub.key", "do not belong together"]);

    let odd = ca.file("odd.pem");
    for (content, part) in [
        ("", "holds no private key"),
        ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n", "passphrase"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "is not usable"),
        ("-----BEGIN PRIVATE KEY-----\n%%%%\n-----END PRIVATE KEY-----\n", "damaged PEM"),
    ] {
        std::fs::write(&odd, content).unwrap();
        says(&with(&|p| p.key = odd.clone()), &["odd.pem", part]);
    }
    std::fs::write(&odd, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    says(&with(&|p| p.cert = odd.clone()), &["odd.pem", "X.509"]);
    says(&with(&|p| p.ca = odd.clone()), &["odd.pem", "not a CA certificate"]);
    std::fs::write(&odd, vec![b'x'; 2 << 20]).unwrap();
    says(&with(&|p| p.ca = odd.clone()), &["odd.pem", "larger than 1 MiB"]);
}
