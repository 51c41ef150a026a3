//! A real S3 server: Ceph's RADOS Gateway, which tests share, each with a bucket of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::script::Script;

/// The user who owns all buckets: access key and secret key. The latter has what URLs and paths can stumble over.
pub const OWNER: (&str, &str) = ("OWNER", "secret/of+the/owner");

const PROGRAMS: [(&str, &str); 5] = [
    ("ceph-mon", "ceph-mon"),
    ("ceph-osd", "ceph-osd"),
    ("ceph", "ceph-common"),
    ("radosgw", "radosgw"),
    ("openssl", "openssl"),
];

/// A server of its own.
pub struct S3 {
    script: Script,
    port: u16,
    tls_port: u16,
}

/// The server that tests share; those that stop it start one of their own.
pub fn shared() -> &'static S3 {
    static SHARED: OnceLock<S3> = OnceLock::new();
    SHARED.get_or_init(S3::start)
}

impl S3 {
    /// Starts one; that takes two seconds.
    pub fn start() -> Self {
        let (script, [_monitor, port, tls_port]) = Script::start("ceph.sh", &PROGRAMS);
        Self { script, port, tls_port }
    }

    /// Its port on the loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its port for TLS; it has a certificate for 127.0.0.1.
    pub fn tls_port(&self) -> u16 {
        self.tls_port
    }

    /// The certificate that vouches for the server's.
    pub fn authority(&self) -> PathBuf {
        self.script.dir().join("authority.pem")
    }

    /// Ends it at once, its connections too. What was stored stays.
    pub fn stop(&self) {
        self.script.order("stop");
    }

    /// Starts it again.
    pub fn go_on(&self) {
        self.script.order("start");
    }

    /// Runs `radosgw-admin` with these arguments.
    pub fn admin(&self, arguments: &str) {
        self.script.order(&format!("admin {arguments}"));
    }

    /// A new bucket; returns its name.
    pub fn new_bucket(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("bucket-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.call(&name, ["make"]);
        name
    }

    /// Gives a bucket a policy, in S3's JSON.
    pub fn set_policy(&self, bucket: &str, policy: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), policy).unwrap();
        self.call(bucket, ["policy", file.path().to_str().unwrap()]);
    }

    /// The keys of a bucket, and their sizes.
    pub fn objects(&self, bucket: &str) -> Vec<(String, u64)> {
        let listed = String::from_utf8(self.call(bucket, ["objects"])).unwrap();
        let parts = listed.lines().map(|line| line.split_once(' ').unwrap());
        parts.map(|(size, key)| (key.to_owned(), size.parse().unwrap())).collect()
    }

    /// An object's bytes.
    pub fn read(&self, bucket: &str, key: &str) -> Vec<u8> {
        self.call(bucket, ["read", key])
    }

    fn call<const N: usize>(&self, bucket: &str, arguments: [&str; N]) -> Vec<u8> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/servers/s3.py");
        let mut command = Command::new("python3");
        command.arg(script).args([&self.url(), bucket]).args(arguments);
        let output = command.env("AWS_ACCESS_KEY_ID", OWNER.0).env("AWS_SECRET_ACCESS_KEY", OWNER.1).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}
