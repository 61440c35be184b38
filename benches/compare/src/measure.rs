//! One client and one query, in its own process.

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::sys::resource::{UsageWho, getrusage};
use tokio::runtime::Builder;

use crate::clients::{Task, run};

/// The cost of a query for its client.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    pub rows: u64,
    pub wall: Duration,
    /// CPU time of all threads of the process, in user and kernel mode.
    pub cpu: Duration,
    /// The median time to the first row.
    pub first_row: Duration,
    /// The maximum resident memory above that before the query, in KiB.
    pub memory: u64,
}

impl Cost {
    /// Formats the fields as one line.
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

/// Measures a task on a runtime with that many threads; 0 is the current thread. Otherwise the
/// client runs in a spawned task, as in a server, because `block_on` runs its future outside of the
/// runtime's threads.
pub fn measure(task: Task, threads: usize) -> Cost {
    runtime(threads, cost(task))
}

/// Runs a future to its end with this number of threads.
pub fn runtime<T: Send + 'static>(
    threads: usize,
    future: impl Future<Output = T> + Send + 'static,
) -> T {
    let mut builder = match threads {
        0 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    let runtime = builder.worker_threads(threads.max(1)).enable_all().build().unwrap();
    match threads {
        0 => runtime.block_on(future),
        _ => runtime.block_on(runtime.spawn(future)).unwrap(),
    }
}

async fn cost(task: Task) -> Cost {
    let mut before = None;
    let tally = run(&task, &mut || {
        before = Some((cpu(), memory("VmRSS:"), Instant::now()));
    })
    .await;
    let (cpu_before, memory_before, begun) = before.unwrap();
    Cost {
        rows: tally.rows,
        wall: begun.elapsed(),
        cpu: cpu() - cpu_before,
        first_row: median(&tally.first_rows, |time| *time),
        memory: memory("VmHWM:").saturating_sub(memory_before),
    }
}

/// Returns the median of `of`, or the default if there are no costs.
pub fn median<C, V: Ord + Copy + Default>(costs: &[C], of: impl Fn(&C) -> V) -> V {
    let mut values: Vec<V> = costs.iter().map(of).collect();
    values.sort();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Returns the median of the ratios of each round. What slows a whole round down is not in it.
pub fn ratio<C>(costs: &[C], others: &[C], of: impl Fn(&C) -> Duration) -> f64 {
    let of_rounds = costs.iter().zip(others).map(|(a, b)| of(a).div_duration_f64(of(b)));
    let mut ratios: Vec<f64> = of_rounds.collect();
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

/// Returns the turns of a round. Each round begins with another client, because the first of a
/// round can be slower.
pub fn turns(clients: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..clients).map(move |i| (i + round) % clients)
}

/// Returns by how many percent the slowest round exceeds the fastest.
pub fn noise<C>(costs: &[C], of: impl Fn(&C) -> Duration) -> f64 {
    let times = || costs.iter().map(|cost| of(cost).as_secs_f64());
    (times().fold(0.0, f64::max) / times().fold(f64::MAX, f64::min) - 1.0) * 100.0
}

pub fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    [usage.user_time(), usage.system_time()]
        .map(|time| Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000))
        .iter()
        .sum()
}

/// Returns a figure of Linux in KiB; elsewhere 0.
fn memory(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}
