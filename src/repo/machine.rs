//! Which machine and process this is, as sessions say it, and whether another process of it still runs.

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// The unit of times in `/proc`: USER_HZ, which is 100 on all of Linux's usual machines.
const TICKS_A_SECOND: i64 = 100;

/// This machine's name.
pub fn host() -> String {
    #[cfg(test)]
    if let Some(machine) = pretended::machine() {
        return machine.host;
    }
    nix::unistd::gethostname().map_or_else(|_| "localhost".into(), |name| name.to_string_lossy().into_owned())
}

/// This boot and process namespace, within which process numbers mean something.
pub(super) fn boot() -> String {
    #[cfg(test)]
    if let Some(machine) = pretended::machine() {
        return machine.boot;
    }
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", id.trim(), namespace.display())
}

/// This process's number.
pub(super) fn process() -> u32 {
    #[cfg(test)]
    if let Some(machine) = pretended::machine() {
        return machine.process;
    }
    std::process::id()
}

/// Whether a process of this machine and boot runs. One of another user counts, though `/proc` may hide it.
pub(super) fn is_running(process: u32) -> bool {
    #[cfg(test)]
    if let Some(machine) = pretended::machine() {
        return machine.is_running(process);
    }
    i32::try_from(process).is_ok_and(|pid| kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH))
}

/// When a process of this machine began, in seconds since 1970 by the clock as it goes now; `None` where that can't be
/// known. proc_pid_stat(5), field 22, and proc_stat(5), btime.
pub(super) fn began_secs(process: u32) -> Option<i64> {
    #[cfg(test)]
    if pretended::machine().is_some() {
        return None;
    }
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is a name in brackets, which may hold anything.
    let ticks: i64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let of_all = std::fs::read_to_string("/proc/stat").ok()?;
    let boot_secs: i64 = of_all.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot_secs + ticks / TICKS_A_SECOND)
}

/// Threads that take themselves for a process of another machine.
#[cfg(test)]
pub(crate) mod pretended {
    use std::cell::RefCell;
    use std::collections::HashSet;
    use std::sync::{Arc, Mutex, PoisonError};

    /// A process of a machine.
    #[derive(Clone)]
    pub(crate) struct Machine {
        pub(crate) host: String,
        pub(crate) boot: String,
        pub(crate) process: u32,
        /// The processes that run, of all machines.
        pub(crate) running: Arc<Mutex<HashSet<u32>>>,
    }

    impl Machine {
        pub(super) fn is_running(&self, process: u32) -> bool {
            self.running.lock().unwrap_or_else(PoisonError::into_inner).contains(&process)
        }
    }

    thread_local!(static MACHINE: RefCell<Option<Machine>> = const { RefCell::new(None) });

    pub(super) fn machine() -> Option<Machine> {
        MACHINE.with_borrow(Clone::clone)
    }

    /// From now on this thread belongs to that process.
    pub(crate) fn become_process(machine: Machine) {
        MACHINE.set(Some(machine));
    }
}
