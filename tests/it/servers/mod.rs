//! Real servers on the loopback, started by the tests that need them, and what stands before them to bring bad luck.

mod message;
pub mod proxy;
pub mod s3;
pub mod script;
pub mod sshd;
pub mod wire;

use crate::world::World;
use sshd::Sshd;

/// The prefix in the bucket that repositories have.
pub const PREFIX: &str = "far/away";

/// A user without repository who will use one in a bucket, through this URL.
pub fn world_with_s3(url: &str, bucket: &str) -> World {
    let mut world = World::bare();
    use_s3(&mut world, url, bucket, s3::OWNER);
    world.set("SNAPSHOT_KEY_FILE", world.at("key"));
    world
}

/// Names a repository in a bucket, and the keys of the one who uses it.
pub fn use_s3(world: &mut World, url: &str, bucket: &str, (id, secret): (&str, &str)) {
    world.set("SNAPSHOT_REPO", format!("s3://{bucket}/{PREFIX}"));
    world.set("AWS_ENDPOINT_URL", url);
    world.set("AWS_ACCESS_KEY_ID", id);
    world.set("AWS_SECRET_ACCESS_KEY", secret);
}

/// A user without repository who will use the directory `repo` by way of SFTP, through this port.
pub fn world_with_sftp(server: &Sshd, port: u16) -> World {
    let mut world = World::bare();
    use_sftp(&mut world, server, port);
    world.set("SNAPSHOT_KEY_FILE", world.at("key"));
    world
}

/// Names a repository in the directory `repo` by way of SFTP.
pub fn use_sftp(world: &mut World, server: &Sshd, port: u16) {
    world.set("SNAPSHOT_REPO", sshd::url(port, &world.at("repo")));
    world.set("SNAPSHOT_SSH_COMMAND", server.ssh());
}
