//! One client, one query, in a process of its own.

use std::{fs, time::Duration};

use nix::sys::resource::{UsageWho, getrusage};
use tokio::runtime::{Builder, Runtime};

use crate::clients::{Tally, Task, run};

/// What a query cost its client.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    pub rows: u64,
    pub wall: Duration,
    /// Of all threads of the process, in user and kernel mode.
    pub cpu: Duration,
    pub first_row: Duration,
    /// The most memory that was resident, above what was before the query, in KiB.
    pub memory: u64,
}

impl Cost {
    /// Its fields as one line.
    pub fn to_line(self) -> String {
        let Self { rows, wall, cpu, first_row, memory } = self;
        let [wall, cpu, first_row] = [wall, cpu, first_row].map(|time| time.as_nanos());
        format!("cost {rows} {wall} {cpu} {first_row} {memory}")
    }

    pub fn from_line(line: &str) -> Option<Self> {
        let fields: Vec<u64> =
            line.strip_prefix("cost ")?.split(' ').map_while(|field| field.parse().ok()).collect();
        let [rows, wall, cpu, first_row, memory] = fields[..] else { return None };
        let [wall, cpu, first_row] = [wall, cpu, first_row].map(Duration::from_nanos);
        Some(Self { rows, wall, cpu, first_row, memory })
    }
}

/// `threads`: of the runtime; 0 is the current thread.
pub fn measure(task: &Task, threads: usize) -> Cost {
    let mut before = (Duration::ZERO, 0);
    let mut begun = std::time::Instant::now();
    let tally = runtime(threads).block_on(run(task, &mut || {
        before = (cpu(), memory("VmRSS:"));
        begun = std::time::Instant::now();
        Tally::begin()
    }));
    assert_ne!(tally.sum, 0);
    Cost {
        rows: tally.rows,
        wall: begun.elapsed(),
        cpu: cpu() - before.0,
        first_row: tally.first_row.unwrap_or_default(),
        memory: memory("VmHWM:").saturating_sub(before.1),
    }
}

fn runtime(threads: usize) -> Runtime {
    let mut builder = match threads {
        0 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.worker_threads(threads.max(1)).enable_all().build().unwrap()
}

fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    [usage.user_time(), usage.system_time()]
        .map(|time| Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000))
        .iter()
        .sum()
}

/// In KiB, as Linux tells it; 0 elsewhere.
fn memory(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}
