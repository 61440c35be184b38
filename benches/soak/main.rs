//! A soak test: many concurrent clients, with a server and networks that fail, for minutes. No row
//! may be lost or repeated, no error may be unexpected, and nothing may grow or leak.
//!
//! `scripts/soak.sh` runs it; docs/RELIABILITY.md has the results.

mod clients;
#[path = "../../examples/support/cluster.rs"]
#[allow(dead_code)]
mod cluster;
#[path = "../../tests/support/proxy.rs"]
#[allow(dead_code)]
mod proxy;
#[path = "../../tests/support/random.rs"]
mod random;
#[path = "../../tests/support/stats.rs"]
mod stats;
mod world;

use std::{
    fs,
    process::ExitCode,
    sync::{Arc, atomic::Ordering::SeqCst},
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clients::{CLIENTS, NETWORKS, Shared};
use tokio::runtime::{Builder, Runtime};
use world::World;

/// How long clients live. After it nothing of theirs may be left.
const ROUND: Duration = Duration::from_secs(60);
const SAMPLES_A_ROUND: u32 = 6;
/// The server is restarted in the middle of every third round.
const RESTART_EVERY: u64 = 3;
/// When cleanups must have ended, even on a busy machine.
const QUIET_WITHIN: Duration = Duration::from_secs(30);
/// How much the resident memory may grow from the second quarter to the last. In 20 minutes a leak
/// of 100 bytes per stream would be more; the variation of the allocator is less.
const GROWTH_KIB: f64 = 4096.0;
const GROWTH_SHARE: f64 = 0.05;

fn main() -> ExitCode {
    // Cargo adds `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let numbers: Vec<Option<u64>> = args.iter().map(|arg| arg.parse().ok()).collect();
    match numbers[..] {
        [None, Some(proxies)] => world::run(proxies as usize),
        [Some(minutes @ 1..)] => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            return soak(minutes, now.as_millis() as u64 & 0xFF_FFFF);
        }
        [Some(minutes @ 1..), Some(seed)] => return soak(minutes, seed),
        // `cargo test --all-targets` runs it too.
        _ => println!("for how many minutes? scripts/soak.sh says it"),
    }
    ExitCode::SUCCESS
}

fn soak(minutes: u64, seed: u64) -> ExitCode {
    println!("{minutes} minutes, {CLIENTS} clients, seed {seed}");
    let shared = Arc::new(Shared::new(World::start(NETWORKS)));
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut soak = Soak::new(Arc::clone(&shared), runtime);
    let ended = (0..minutes).try_for_each(|round| soak.round(round, seed));
    let ended = ended.and_then(|()| soak.growth());
    soak.print();
    drop(soak);
    match Arc::try_unwrap(shared) {
        Ok(shared) => shared.world.end(),
        Err(_) => println!("clients are still there"),
    }
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(violation) => {
            println!("FAILED: {violation} (seed {seed})");
            ExitCode::FAILURE
        }
    }
}

/// The resources of this process.
#[derive(Clone, Copy)]
struct Held {
    rss_kib: u64,
    descriptors: usize,
    tasks: usize,
    threads: usize,
}

impl Held {
    fn now(runtime: &Runtime) -> Self {
        Self {
            rss_kib: status("VmRSS:"),
            // One of them is the descriptor of this folder.
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count() - 1,
            tasks: runtime.metrics().num_alive_tasks(),
            threads: status("Threads:") as usize,
        }
    }
}

/// Returns a number of /proc/self/status.
fn status(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

struct Sample {
    at: Duration,
    /// A sample without clients.
    is_quiet: bool,
    held: Held,
    backends: usize,
    streams: u64,
    rows: u64,
    errors: u64,
}

struct Soak {
    shared: Arc<Shared>,
    runtime: Runtime,
    began: Instant,
    baseline: Held,
    samples: Vec<Sample>,
}

impl Soak {
    fn new(shared: Arc<Shared>, runtime: Runtime) -> Self {
        // Its threads are started on first use.
        runtime.block_on(async { tokio::spawn(async {}).await.unwrap() });
        sleep(Duration::from_millis(100));
        let baseline = Held::now(&runtime);
        Self { shared, runtime, began: Instant::now(), baseline, samples: Vec::new() }
    }

    /// Runs clients for a round, and checks what they leave.
    fn round(&mut self, round: u64, seed: u64) -> Result<(), String> {
        self.shared.stop.store(false, SeqCst);
        let live = |place: usize| {
            let seed = (seed << 32) + (round << 8) + place as u64;
            self.runtime.spawn(clients::live(Arc::clone(&self.shared), place, seed))
        };
        let clients: Vec<_> = (0..CLIENTS).map(live).collect();
        let began = Instant::now();
        'samples: for sample in 1..=SAMPLES_A_ROUND {
            if sample == SAMPLES_A_ROUND / 2 && round % RESTART_EVERY == 1 {
                self.restart(if round % 2 == 1 { "fast" } else { "immediate" });
            }
            while began.elapsed() < ROUND * sample / SAMPLES_A_ROUND {
                sleep(Duration::from_millis(200));
                // A client ends early only after a violation.
                if clients.iter().any(|client| client.is_finished()) {
                    break 'samples;
                }
            }
            self.sample()?;
        }
        self.shared.stop.store(true, SeqCst);
        for client in clients {
            let ended = self.runtime.block_on(client);
            ended.map_err(|e| format!("{e}, in round {round}"))?;
        }
        self.quiet()
    }

    fn restart(&self, mode: &str) {
        let until = |time| *self.shared.restarting.lock().unwrap() = Some(Instant::now() + time);
        until(Duration::from_secs(3600));
        self.shared.world.ask(&format!("restart {mode}"));
        until(clients::AFTERMATH);
        println!("{:>5} s: restarted ({mode})", self.began.elapsed().as_secs());
    }

    fn look(&mut self, is_quiet: bool) -> &Sample {
        let tally = &self.shared.tally;
        let sample = Sample {
            at: self.began.elapsed(),
            is_quiet,
            held: Held::now(&self.runtime),
            backends: self.shared.world.ask("backends").parse().unwrap(),
            streams: tally.streams.load(SeqCst),
            rows: tally.rows.load(SeqCst),
            errors: tally.errors.lock().unwrap().values().sum(),
        };
        self.samples.push(sample);
        self.samples.last().unwrap()
    }

    /// Takes a sample while clients live. Each has a connection, perhaps one more briefly, and
    /// those that it has abandoned. It also has tasks to read, to clean up and to cancel, and a
    /// blocking thread that derives keys while it logs in.
    fn sample(&mut self) -> Result<(), String> {
        let (base, abandoned) = (self.baseline, self.shared.abandoned());
        let connections = 2 * CLIENTS + abandoned;
        let Sample { held, backends, .. } = *self.look(false);
        let bounds = [
            ("backends", backends, connections),
            ("descriptors", held.descriptors, base.descriptors + 2 * connections),
            ("tasks", held.tasks, base.tasks + CLIENTS + 3 * connections),
            ("threads", held.threads, base.threads + CLIENTS),
        ];
        match bounds.iter().find(|(_, held, bound)| held > bound) {
            None => Ok(()),
            Some((what, held, bound)) => Err(format!("{held} {what}, where {bound} are the most")),
        }
    }

    /// Takes a sample without clients: nothing of theirs may be left.
    fn quiet(&mut self) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let base = self.baseline;
            let Sample { held, backends, .. } = *self.look(true);
            let left = [
                ("backends", backends, 0),
                ("descriptors", held.descriptors, base.descriptors),
                ("tasks", held.tasks, base.tasks),
                ("threads", held.threads, base.threads),
            ];
            match left.iter().find(|(_, held, bound)| held > bound) {
                None => return Ok(()),
                Some((what, held, base)) if began.elapsed() > QUIET_WITHIN => {
                    return Err(format!(
                        "{held} {what} are there behind the last client, {base} before the first"
                    ));
                }
                Some(_) => drop(self.samples.pop()),
            }
            sleep(Duration::from_millis(100));
        }
    }

    /// Returns the mean resident memory of the second quarter of the run and of the last, in KiB.
    fn quarters(&self) -> (f64, f64) {
        let busy: Vec<_> = self.samples.iter().filter(|sample| !sample.is_quiet).collect();
        let quarter = busy.len().div_ceil(4);
        let mean = |samples: &[&Sample]| {
            samples.iter().map(|sample| sample.held.rss_kib as f64).sum::<f64>()
                / samples.len().max(1) as f64
        };
        let second = busy.iter().skip(quarter).take(quarter).copied().collect::<Vec<_>>();
        (mean(&second), mean(&busy[busy.len() - quarter..]))
    }

    fn growth(&self) -> Result<(), String> {
        let (second, last) = self.quarters();
        match last - second > GROWTH_KIB.max(second * GROWTH_SHARE) {
            false => Ok(()),
            true => Err(format!("resident memory grew from {second:.0} to {last:.0} KiB")),
        }
    }

    fn print(&self) {
        println!(
            "\n| second | streams | rows | errors | memory, MiB | descriptors | tasks | backends | threads |\n\
             |---|---|---|---|---|---|---|---|---|"
        );
        let start = Sample {
            at: Duration::ZERO,
            is_quiet: true,
            held: self.baseline,
            backends: 0,
            streams: 0,
            rows: 0,
            errors: 0,
        };
        for sample in std::iter::once(&start).chain(&self.samples) {
            let Held { rss_kib, descriptors, tasks, threads } = sample.held;
            println!(
                "| {}{} | {} | {} | {} | {:.1} | {descriptors} | {tasks} | {} | {threads} |",
                sample.at.as_secs(),
                if sample.is_quiet { ", quiet" } else { "" },
                sample.streams,
                sample.rows,
                sample.errors,
                rss_kib as f64 / 1024.0,
                sample.backends,
            );
        }
        let tally = &self.shared.tally;
        let count = |count: &std::sync::atomic::AtomicU64| count.load(SeqCst);
        println!(
            "\n{} streams, {} of them read to the end; {} rows, {} MB",
            count(&tally.streams),
            count(&tally.whole),
            count(&tally.rows),
            count(&tally.bytes) / 1_000_000,
        );
        println!(
            "{} clients, {} reconnects, {} faults",
            count(&tally.clients),
            count(&tally.reconnects),
            count(&tally.faults)
        );
        let errors = tally.errors.lock().unwrap();
        let errors: Vec<_> = errors.iter().map(|(name, count)| format!("{name} {count}")).collect();
        println!("errors: {}", errors.join(", "));
        let (second, last) = self.quarters();
        println!(
            "resident memory: at most {:.1} MiB; {:.1} in the second quarter, {:.1} in the last ({:+.1} %)",
            status("VmHWM:") as f64 / 1024.0,
            second / 1024.0,
            last / 1024.0,
            (last / second - 1.0) * 100.0,
        );
    }
}
