//! Real services: an S3 server and stock litestream. `tests/run` starts them and names them in the environment.
//!
//! Without them a test that needs one is skipped with a line on stderr, unless `WALHUB_TEST_REQUIRE_SERVICES=1`: then it
//! fails, so that a complete run cannot pass by skipping.

use crate::binaries::source_root;
use crate::process::{Output, run};
use std::path::{Path, PathBuf};
use std::process::Command;

/// An S3 server and its keys.
#[derive(Clone, Debug)]
pub struct S3 {
    /// `http://127.0.0.1:PORT`.
    pub endpoint: String,
    /// Key id.
    pub access_key: String,
    /// Secret.
    pub secret_key: String,
    /// Region.
    pub region: String,
}

fn missing(what: &str, variable: &str) {
    let required = std::env::var("WALHUB_TEST_REQUIRE_SERVICES").is_ok_and(|value| value == "1");
    assert!(!required, "{what} is required and {variable} is not set");
    eprintln!("skipped: {variable} is not set, so there is no {what}; `tests/run` provides it");
}

/// The S3 server of this test run.
pub fn s3() -> Option<S3> {
    let Ok(endpoint) = std::env::var("WALHUB_TEST_S3_ENDPOINT") else {
        missing("S3 server", "WALHUB_TEST_S3_ENDPOINT");
        return None;
    };
    let value = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    Some(S3 {
        endpoint,
        access_key: value("WALHUB_TEST_S3_ACCESS_KEY"),
        secret_key: value("WALHUB_TEST_S3_SECRET_KEY"),
        region: "us-east-1".to_owned(),
    })
}

/// Azure's emulator, with its container `walhub`.
#[derive(Clone, Debug)]
pub struct Azure {
    /// `http://127.0.0.1:PORT/ACCOUNT`.
    pub endpoint: String,
    /// Account.
    pub account: String,
    /// Key of the account.
    pub key: String,
}

/// A server that speaks as Google's store does, with its bucket `walhub`.
#[derive(Clone, Debug)]
pub struct Gcs {
    /// `http://127.0.0.1:PORT`.
    pub endpoint: String,
    /// File of a service account.
    pub credentials: String,
}

/// Azure's emulator of this test run.
pub fn azure() -> Option<Azure> {
    let variable = |name: &str| std::env::var(format!("WALHUB_TEST_AZURE_{name}")).ok();
    let Some(endpoint) = variable("ENDPOINT") else {
        missing("Azure emulator", "WALHUB_TEST_AZURE_ENDPOINT");
        return None;
    };
    Some(Azure { endpoint, account: variable("ACCOUNT")?, key: variable("KEY")? })
}

/// The server in Google's place of this test run.
pub fn gcs() -> Option<Gcs> {
    let variable = |name: &str| std::env::var(format!("WALHUB_TEST_GCS_{name}")).ok();
    let Some(endpoint) = variable("ENDPOINT") else {
        missing("server in the place of Google's", "WALHUB_TEST_GCS_ENDPOINT");
        return None;
    };
    Some(Gcs { endpoint, credentials: variable("CREDENTIALS")? })
}

/// Stock litestream of this test run.
pub fn litestream() -> Option<PathBuf> {
    match std::env::var_os("WALHUB_TEST_LITESTREAM") {
        Some(path) => Some(path.into()),
        None => {
            missing("stock litestream", "WALHUB_TEST_LITESTREAM");
            None
        }
    }
}

/// SHA-256 of nothing: what an empty request body signs.
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

impl Azure {
    /// Creates a container, or finds it there.
    #[track_caller]
    pub fn make_container(&self, container: &str) {
        self.container("make", container);
    }

    /// Removes a container with everything in it.
    #[track_caller]
    pub fn delete_container(&self, container: &str) {
        self.container("delete", container);
    }

    #[track_caller]
    fn container(&self, command: &str, container: &str) {
        let mut script = Command::new(source_root().join("tests/services/azure"));
        script.args([command, "--container", container, "--endpoint", &self.endpoint]);
        run(script).success();
    }
}

impl Gcs {
    /// Creates a bucket, or finds it there.
    #[track_caller]
    pub fn make_bucket(&self, bucket: &str) {
        self.curl("PUT", bucket);
    }

    /// Removes a bucket with everything in it.
    #[track_caller]
    pub fn delete_bucket(&self, bucket: &str) {
        self.curl("DELETE", bucket);
    }

    #[track_caller]
    fn curl(&self, method: &str, bucket: &str) {
        let mut command = Command::new("curl");
        command.args(["-sS", "--fail-with-body", "-X", method]).arg(format!("{}/{bucket}", self.endpoint));
        run(command).success();
    }
}

/// Objects that one `curl` removes.
const REMOVED_AT_ONCE: usize = 200;

impl S3 {
    /// Creates a bucket, or finds it there.
    #[track_caller]
    pub fn make_bucket(&self, bucket: &str) {
        self.curl("PUT", bucket).success();
    }

    /// Removes a bucket with everything in it; nobody may put anything meanwhile.
    #[track_caller]
    pub fn delete_bucket(&self, bucket: &str) {
        let keys = self.keys(bucket, "");
        let paths: Vec<String> = keys.iter().map(|key| format!("{}/{bucket}/{key}", self.endpoint)).collect();
        for some in paths.chunks(REMOVED_AT_ONCE) {
            let mut command = self.signed("DELETE");
            command.args(some);
            run(command).success();
        }
        self.curl("DELETE", bucket).success();
    }

    /// Cuts an object to nothing, behind everybody's back.
    #[track_caller]
    pub fn damage(&self, bucket: &str, key: &str) {
        let mut command = self.signed("PUT");
        command.args(["-H", "Content-Length: 0"]).arg(format!("{}/{bucket}/{key}", self.endpoint));
        run(command).success();
    }

    /// Keys in a bucket that start with `prefix`, sorted, as the server itself lists them.
    #[track_caller]
    pub fn keys(&self, bucket: &str, prefix: &str) -> Vec<String> {
        let mut keys: Vec<String> = Vec::new();
        loop {
            let after = keys.last().map_or_else(String::new, |key| key.replace('/', "%2F"));
            let prefix = prefix.replace('/', "%2F");
            let query = format!("{bucket}?list-type=2&prefix={prefix}&start-after={after}");
            let page = self.curl("GET", &query).success();
            keys.extend(
                page.split("<Key>").skip(1).filter_map(|rest| Some(rest.split_once('<')?.0.to_owned())),
            );
            if !page.contains("<IsTruncated>true<") {
                return keys;
            }
        }
    }

    /// Keys in a bucket that start with `prefix` and when the server stored them (Unix ms, whole seconds), by key; at most
    /// one page.
    #[track_caller]
    pub fn stored(&self, bucket: &str, prefix: &str) -> Vec<(String, i64)> {
        let prefix = prefix.replace('/', "%2F");
        let page = self.curl("GET", &format!("{bucket}?list-type=2&prefix={prefix}")).success();
        assert!(!page.contains("<IsTruncated>true<"), "more than a page below {prefix}");
        let tag = |text: &str, tag: &str| {
            let (_, rest) = text.split_once(&format!("<{tag}>"))?;
            Some(rest.split_once('<')?.0.to_owned())
        };
        let objects = page.split("<Contents>").skip(1).filter_map(|object| {
            let time = walhub_common::clock::parse_ms(&tag(object, "LastModified")?).ok()?;
            Some((tag(object, "Key")?, time))
        });
        objects.collect()
    }

    fn curl(&self, method: &str, path: &str) -> Output {
        let mut command = self.signed(method);
        command.arg(format!("{}/{path}", self.endpoint));
        run(command)
    }

    /// A request without a body; its addresses are still missing.
    fn signed(&self, method: &str) -> Command {
        let mut command = Command::new("curl");
        command.args(["-sS", "--fail-with-body", "-X", method]);
        command.args(["--aws-sigv4", &format!("aws:amz:{}:s3", self.region)]);
        command.args(["--user", &format!("{}:{}", self.access_key, self.secret_key)]);
        command.args(["-H", &format!("x-amz-content-sha256: {NOTHING}")]);
        command
    }
}

/// Requests by what a bill calls them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Requests {
    /// Objects and parts stored, uploads begun and completed.
    pub put: u64,
    /// Listings.
    pub list: u64,
    /// Objects read, whole or in part, and asked about.
    pub get: u64,
    /// Deletions, of one object or many.
    pub delete: u64,
}

impl Requests {
    fn count(&mut self, method: &str, rest: &str) {
        let of_bucket = rest.is_empty() || rest.starts_with(['?', ' ']);
        match method {
            "POST" if rest.starts_with("?delete") => self.delete += 1,
            "DELETE" => self.delete += 1,
            "PUT" | "POST" => self.put += 1,
            "GET" if of_bucket => self.list += 1,
            _ => self.get += 1,
        }
    }

    /// All of them.
    pub fn all(self) -> u64 {
        self.put + self.list + self.get + self.delete
    }

    /// Those that came after `before` was taken.
    #[must_use]
    pub fn since(self, before: Requests) -> Requests {
        Requests {
            put: self.put - before.put,
            list: self.list - before.list,
            get: self.get - before.get,
            delete: self.delete - before.delete,
        }
    }
}

/// An S3 server of a test's own, which it may kill. Ends with its handle.
#[derive(Debug)]
pub struct OwnS3 {
    dir: PathBuf,
    /// How to reach it.
    pub server: S3,
}

impl OwnS3 {
    /// Starts one with its data in `dir`; `None` (after a line on stderr) where the run has no S3 server at all.
    pub fn start(dir: &Path) -> Option<OwnS3> {
        s3().map(|_| Self::launch(dir))
    }

    /// Starts one with its data in `dir`, which must be possible.
    pub fn launch(dir: &Path) -> OwnS3 {
        let env = Self::script("start", dir).success();
        let value = |name: &str| {
            let found = env.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            found.unwrap_or_else(|| panic!("no {name} in: {env}")).to_owned()
        };
        let server = S3 {
            endpoint: value("endpoint"),
            access_key: value("access_key"),
            secret_key: value("secret_key"),
            region: value("region"),
        };
        OwnS3 { dir: dir.to_path_buf(), server }
    }

    /// Every request to a bucket since the start, by the server's own log.
    pub fn requests(&self, bucket: &str) -> Requests {
        let log = std::fs::read_to_string(self.dir.join("client.rgw.log")).expect("the server's log");
        let mut requests = Requests::default();
        for line in log.lines().filter(|line| line.contains(" beast: ")) {
            let Some((method, path)) = line.split('"').nth(1).and_then(|request| request.split_once(' '))
            else {
                continue;
            };
            let of_bucket = path.strip_prefix('/').and_then(|path| path.strip_prefix(bucket));
            if let Some(rest) = of_bucket.filter(|rest| rest.starts_with(['/', '?', ' '])) {
                requests.count(method, rest.trim_start_matches('/'));
            }
        }
        requests
    }

    fn script(command: &str, dir: &Path) -> Output {
        let mut script = Command::new(source_root().join("tests/services/s3"));
        script.arg(command).arg("--dir").arg(dir);
        run(script)
    }

    /// From now on the secret of the server's only user is this one.
    pub fn set_secret(&self, secret: &str) {
        let key = format!("--access-key={}", self.server.access_key);
        self.admin(&[
            "key",
            "create",
            "--uid=walhub",
            "--key-type=s3",
            &key,
            &format!("--secret-key={secret}"),
        ]);
    }

    /// From now on the user may do this, of `read, write, delete`.
    pub fn set_operations(&self, allowed: &str) {
        self.admin(&["user", "modify", "--uid=walhub", &format!("--op-mask={allowed}")]);
    }

    /// From now on a bucket takes this many objects; `None`: as many as come.
    pub fn set_quota(&self, bucket: &str, objects: Option<u32>) {
        let bucket = format!("--bucket={bucket}");
        let quota = |arguments: &[&str]| {
            self.admin(&[&["quota"], arguments, &["--quota-scope=bucket", &bucket]].concat());
        };
        match objects {
            Some(objects) => {
                quota(&["set", &format!("--max-objects={objects}")]);
                quota(&["enable"]);
            }
            None => quota(&["disable"]),
        }
    }

    fn admin(&self, arguments: &[&str]) {
        let mut command = Command::new("radosgw-admin");
        command.arg("-c").arg(self.dir.join("ceph.conf")).args(arguments);
        run(command).success();
    }

    /// `kill -9` of the server.
    pub fn kill9(&self) {
        Self::script("kill", &self.dir).success();
    }

    /// The server again, with its objects.
    pub fn restart(&self) {
        Self::script("restart", &self.dir).success();
    }
}

impl Drop for OwnS3 {
    fn drop(&mut self) {
        let _ = Self::script("stop", &self.dir);
    }
}
