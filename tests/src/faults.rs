//! Ways in which a destination fails, each with its beginning, its end, and the words by which people must be able to tell
//! what it is.
//!
//! What can be real is real: the server is killed, its disk quota is reached, the key is another one, the bucket is deleted
//! with all that is in it, requests come from a clock that is wrong; a folder's file system is full or mounted read-only. A
//! front ([`Proxy`]) does what networks do. Only what a server does at the other end of the world is played by the front:
//! a storm of 503, and what emulators do not do ([`of_gcs`], [`of_azure`]).

use crate::config::Destination;
use crate::eventually::{ensure, eventually};
use crate::process::run;
use crate::proxy::{Mode, Proxy};
use crate::services::{Azure, Gcs, OwnS3};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The answers that a destination here is given to wait for: `request-timeout` of all servers.
const TIMEOUT: &str = "request-timeout: 1s";

/// One fault. Only one at a time.
pub struct Fault {
    /// What it is.
    pub name: &'static str,
    /// Of these words the status must name one while it lasts.
    pub words: &'static [&'static str],
    begin: Box<dyn Fn()>,
    end: Box<dyn Fn()>,
}

impl Fault {
    fn new(
        name: &'static str,
        words: &'static [&'static str],
        begin: impl Fn() + 'static,
        end: impl Fn() + 'static,
    ) -> Fault {
        Fault { name, words, begin: Box::new(begin), end: Box::new(end) }
    }

    /// From now on it fails.
    pub fn begin(&self) {
        (self.begin)();
    }

    /// All is well again, except for what is lost.
    pub fn end(&self) {
        (self.end)();
    }
}

/// A destination and its faults.
pub struct Victim {
    /// For the hub's configuration.
    pub destination: Destination,
    /// All that it can suffer.
    pub faults: Vec<Fault>,
}

fn by(proxy: &Arc<Proxy>, name: &'static str, mode: Mode, words: &'static [&'static str]) -> Fault {
    let (one, other) = (proxy.clone(), proxy.clone());
    Fault::new(name, words, move || one.set(mode.clone()), move || other.set(Mode::Pass))
}

/// What the way to any server does.
fn of_networks(proxy: &Arc<Proxy>) -> Vec<Fault> {
    vec![
        by(proxy, "503 storm", Mode::Answer(503, "SlowDown"), &["slow down"]),
        by(proxy, "10 s latency", Mode::Latency(Duration::from_secs(10)), &["no answer within 1 s"]),
        by(proxy, "timeout after success", Mode::LostAnswers, &["no answer within 1 s"]),
        by(proxy, "truncated body", Mode::HalfAnswers, &["the connection broke"]),
    ]
}

/// Makes a bucket and takes it away with all that is in it. Nothing comes through meanwhile, so that nothing is put
/// between the last object and the bucket.
fn deleted(proxy: &Arc<Proxy>, delete: impl Fn() + 'static, make: impl Fn() + 'static) -> Fault {
    let proxy = proxy.clone();
    let begin = move || {
        proxy.set(Mode::Down);
        delete();
        proxy.set(Mode::Pass);
    };
    Fault::new("bucket deleted", &["create the bucket"], begin, make)
}

/// A front of its own for a server, and what the server is called behind it.
fn front(endpoint: &str) -> (Arc<Proxy>, String) {
    let rest = endpoint.strip_prefix("http://").expect("a plain endpoint");
    let (server, path) = rest.split_once('/').unwrap_or((rest, ""));
    let proxy = Arc::new(Proxy::start(server));
    let endpoint = format!("http://{}/{path}", proxy.address());
    (proxy, endpoint.trim_end_matches('/').to_owned())
}

fn bucket() -> String {
    format!("faults-{:016x}", rand::random::<u64>())
}

/// A real S3 server of the caller's own, which is killed, locked and filled.
pub fn of_s3(name: &str, own: OwnS3) -> Victim {
    let (own, bucket) = (Arc::new(own), bucket());
    own.server.make_bucket(&bucket);
    let (proxy, endpoint) = front(&own.server.endpoint);
    let behind = crate::services::S3 { endpoint, ..own.server.clone() };
    let mut faults = of_networks(&proxy);
    let at = |own: &Arc<OwnS3>| own.clone();
    let (kill, again) = (at(&own), at(&own));
    let down = &["unavailable", "the connection broke"];
    faults.push(Fault::new("down", down, move || kill.kill9(), move || again.restart()));
    let (one, other) = (at(&own), at(&own));
    let wrong = move || one.set_secret("another-secret-than-before");
    let right = move || other.set_secret(&other.server.secret_key);
    faults.push(Fault::new("wrong credentials", &["access denied"], wrong, right));
    faults.push(by(&proxy, "clock skew", Mode::Skewed, &["RequestTimeTooSkewed"]));
    let (one, other) = (at(&own), at(&own));
    let (full, room) = (bucket.clone(), bucket.clone());
    let fill = move || one.set_quota(&full, Some(1));
    faults.push(Fault::new("disk full", &["it is full"], fill, move || other.set_quota(&room, None)));
    let (one, other) = (at(&own), at(&own));
    let lock = move || one.set_operations("read");
    let unlock = move || other.set_operations("read, write, delete");
    faults.push(Fault::new("read-only", &["access denied"], lock, unlock));
    let (one, other) = (at(&own), own);
    let (gone, back) = (bucket.clone(), bucket.clone());
    let delete = move || one.server.delete_bucket(&gone);
    faults.push(deleted(&proxy, delete, move || other.server.make_bucket(&back)));
    Victim { destination: Destination::s3(name, &behind, &bucket, "copies").with(TIMEOUT), faults }
}

/// The stand-in for Google's store. It looks at no credentials and no clock, and is never full.
pub fn of_gcs(name: &str, mut server: Gcs) -> Victim {
    let (own, bucket) = (server.clone(), bucket());
    own.make_bucket(&bucket);
    let (proxy, endpoint) = front(&server.endpoint);
    server.endpoint = endpoint;
    let mut faults = of_networks(&proxy);
    faults.extend(played(&proxy));
    faults.push(by(&proxy, "wrong credentials", Mode::Answer(401, "Unauthorized"), &["access denied"]));
    let (one, gone, back) = (own.clone(), bucket.clone(), bucket.clone());
    faults.push(deleted(&proxy, move || one.delete_bucket(&gone), move || own.make_bucket(&back)));
    Victim { destination: Destination::gcs(name, &server, &bucket, "copies").with(TIMEOUT), faults }
}

/// Microsoft's emulator. It looks at signatures, but at no clock, and is never full.
pub fn of_azure(name: &str, mut server: Azure) -> Victim {
    let (own, container) = (server.clone(), bucket());
    own.make_container(&container);
    let (proxy, endpoint) = front(&server.endpoint);
    server.endpoint = endpoint;
    let mut faults = of_networks(&proxy);
    faults.extend(played(&proxy));
    faults.push(by(&proxy, "wrong credentials", Mode::Tampered, &["access denied"]));
    let (one, gone, back) = (own.clone(), container.clone(), container.clone());
    faults.push(deleted(&proxy, move || one.delete_container(&gone), move || own.make_container(&back)));
    Victim { destination: Destination::azure(name, &server, &container, "copies").with(TIMEOUT), faults }
}

/// What those two do not do by themselves.
fn played(proxy: &Arc<Proxy>) -> Vec<Fault> {
    vec![
        by(proxy, "down", Mode::Down, &["unavailable", "the connection broke"]),
        by(proxy, "clock skew", Mode::Answer(403, "RequestTimeTooSkewed"), &["RequestTimeTooSkewed"]),
        by(proxy, "disk full", Mode::Answer(507, "InsufficientStorage"), &["it is full"]),
        by(proxy, "read-only", Mode::RefuseWrites(403, "AccessDenied"), &["access denied"]),
    ]
}

/// A folder on a disk of its own of `mebibytes` MiB below `scratch`, where that may be made (root); else on the disk of `scratch`, with
/// the faults that need no such disk.
pub fn of_folder(name: &str, scratch: &Path, mebibytes: u32) -> Victim {
    let mount = scratch.join("disk");
    let disk = Disk::mount(&mount, mebibytes).map(Arc::new);
    std::fs::create_dir_all(&mount).expect("a folder");
    let (root, aside, ballast) = (mount.join("copies"), mount.join("aside"), mount.join("ballast"));
    let destination = Destination::file(name, &root);
    let away = |to: &Path| {
        let (from, to) = (root.clone(), to.to_path_buf());
        move || std::fs::rename(&from, &to).expect("moves away")
    };
    let back = |from: &Path| {
        let (from, to) = (from.to_path_buf(), root.clone());
        move || std::fs::rename(&from, &to).expect("moves back")
    };
    let mut faults = vec![Fault::new("folder gone", &["is its disk mounted"], away(&aside), back(&aside))];
    let (lost, empty, trash) = (away(&aside), root.clone(), aside.clone());
    let id = Arc::new(Mutex::new(String::new()));
    let kept = id.clone();
    let begin = move || {
        lost();
        let id = std::fs::read_to_string(trash.join("walhub/folder.id")).expect("the folder's id");
        *kept.lock().expect("the id") = id;
        std::fs::remove_dir_all(&trash).expect("removes");
    };
    // A new disk: an operator says that it is meant to be this one.
    let end = move || {
        std::fs::create_dir_all(empty.join("walhub")).expect("an empty folder");
        std::fs::write(empty.join("walhub/folder.id"), &*id.lock().expect("the id")).expect("its id");
    };
    faults.push(Fault::new("folder deleted", &["is its disk mounted"], begin, end));
    let (move_away, in_its_place) = (away(&aside), root.clone());
    let begin = move || {
        move_away();
        std::fs::write(&in_its_place, "no folder").expect("a file in its place");
    };
    let (move_back, in_its_place) = (back(&aside), root.clone());
    let end = move || {
        std::fs::remove_file(&in_its_place).expect("the file in its place");
        move_back();
    };
    faults.push(Fault::new("a file in its place", &["is its disk mounted", "correct the path"], begin, end));
    let Some(disk) = disk else {
        eprintln!("skipped: disk full, read-only and no permission, for only root may mount");
        return Victim { destination, faults };
    };
    let (one, other) = (ballast.clone(), ballast);
    let begin = move || {
        // Until nothing more goes in.
        let mut file = std::fs::File::create(&one).expect("creates");
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    };
    let end = move || std::fs::remove_file(&other).expect("removes");
    faults.push(Fault::new("disk full", &["it is full"], begin, end));
    let (one, other) = (disk.clone(), disk);
    let begin = move || one.remount("ro");
    faults.push(Fault::new("read-only", &["it is read-only"], begin, move || other.remount("rw")));
    // Modes do not keep root out, this attribute does.
    if Disk::lock(&mount, true) {
        Disk::lock(&mount, false);
        let (one, other) = (root.clone(), root);
        let begin = move || assert!(Disk::lock(&one, true), "cannot lock {}", one.display());
        let end = move || assert!(Disk::lock(&other, false), "cannot unlock {}", other.display());
        faults.push(Fault::new("no permission", &["access denied"], begin, end));
    } else {
        eprintln!("skipped: no permission, for this file system knows no immutable folders");
    }
    Victim { destination, faults }
}

/// A small disk, while this lives.
pub struct Disk(PathBuf);

impl Disk {
    /// Of so many MiB, at `path`; `None` when that is not allowed.
    pub fn mount(path: &Path, mebibytes: u32) -> Option<Disk> {
        std::fs::create_dir_all(path).expect("a mount point");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"]).arg(path);
        (run(command).code == 0).then(|| Disk(path.to_owned()))
    }

    fn remount(&self, options: &str) {
        // Busy for as long as a file is being written.
        eventually("the disk is mounted in another way", Duration::from_secs(60), || {
            let mut command = Command::new("mount");
            command.args(["-o", &format!("remount,{options}")]).arg(&self.0);
            let done = run(command);
            ensure(done.code == 0, || done.stderr.clone())
        });
    }

    /// Nothing can be made or removed in this folder and those below it; false when that cannot be.
    fn lock(path: &Path, lock: bool) -> bool {
        let mut command = Command::new("find");
        command.arg(path).args(["-type", "d", "-exec", "chattr", if lock { "+i" } else { "-i" }, "{}", "+"]);
        run(command).code == 0
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut command = Command::new("umount");
        command.arg("--lazy").arg(&self.0);
        run(command);
    }
}
