//! The quickstart: alone, as another user, twice in parallel, next to a running server and on one,
//! and interrupted.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::support::{admin, cluster, example};

/// The example, copied to where every user may run it.
fn program(folder: &Path) -> PathBuf {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.join("quickstart");
    // Copied by another process. Otherwise a process that another thread starts meanwhile inherits
    // the open file, and a file that is open for writing cannot be executed.
    let copied =
        Command::new("cp").arg(example::path("quickstart")).arg(&program).status().unwrap();
    assert!(copied.success());
    program
}

fn summary(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    for part in [
        "SQL sent         SELECT \"data\" FROM",
        "parameters       [\"paid\", \"300\"]",
        "rows             200,000 yielded of 200,000 received",
        "first row after",
        "rows/s",
        "peak memory",
        "meanwhile        0 rows received",
        "is active",
        "is idle",
        "on the same backend: true",
        "Done; ",
    ] {
        assert!(text.contains(part), "{part:?} is missing:\n{text}");
    }
    text
}

/// The folder of the private server, as printed.
fn private_folder(text: &str) -> &str {
    text.split("private, in ").nth(1).unwrap().split(',').next().unwrap()
}

#[test]
fn quickstart_runs_twice_in_parallel_and_cleans_up() {
    let _beside = cluster();
    let folder = tempfile::tempdir().unwrap();
    let program = program(folder.path());
    let run = |as_nobody: bool| {
        let mut command = Command::new(&program);
        command.env_remove("DATABASE_URL").current_dir("/");
        if as_nobody {
            // Run as root, the suite sees to both kinds of user.
            command.uid(65534).gid(65534);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let is_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    for process in [run(false), run(is_root)] {
        let text = summary(&process.wait_with_output().unwrap());
        assert!(!Path::new(private_folder(&text)).exists(), "{text}");
    }
}

#[tokio::test]
async fn quickstart_on_an_existing_server_drops_its_schema() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(program(folder.path()));
    let output = command.env("DATABASE_URL", cluster().url()).output().unwrap();
    let text = summary(&output);
    assert!(text.contains("DATABASE_URL"), "{text}");
    let left = "select count(*) from pg_namespace where nspname like '%quickstart%'";
    assert_eq!(admin().await.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[test]
fn interrupted_quickstart_cleans_up() {
    let folder = tempfile::tempdir().unwrap();
    for (signal, status) in [("-INT", Some(130)), ("-KILL", None)] {
        let mut command = Command::new(program(folder.path()));
        command.env_remove("DATABASE_URL").stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut output = std::io::BufReader::new(process.stdout.take().unwrap());
        let mut text = String::new();
        // Up to where it makes its data.
        while !text.contains("creating") {
            std::io::BufRead::read_line(&mut output, &mut text).unwrap();
        }
        // The shell's own: a bare system has no program of that name.
        let kill = format!("kill {signal} {}", process.id());
        assert!(Command::new("/bin/sh").args(["-c", &kill]).status().unwrap().success());
        assert_eq!(process.wait().unwrap().code(), status);
        // When the process was killed, its server goes by itself, a little later.
        let private = Path::new(private_folder(&text));
        let started = std::time::Instant::now();
        while private.exists() {
            assert!(started.elapsed().as_secs() < 20, "{} is still there", private.display());
            std::thread::yield_now();
        }
    }
}
