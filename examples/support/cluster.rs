//! A private, temporary Postgres: a cluster in a temporary folder, on a free loopback port and a
//! Unix socket. It is removed when the process that started it ends, even if that is killed.
//!
//! The superuser can run programs as the server's operating system user (`COPY ... TO PROGRAM`). So
//! other users of the machine must not be able to log in as superuser: TCP requires a random
//! password, and the Unix socket, which requires none, is in a folder that only the server's user
//! can enter.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::{
        fs::{DirBuilderExt, OpenOptionsExt, lchown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::OnceLock,
};

/// A running cluster. Its superuser is `postgres`, with the password of [`password`].
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    /// The folder of its programs.
    bin: PathBuf,
    /// The command-line settings that it was started with.
    settings: String,
    port: u16,
    supervisor: Child,
    /// The supervisor stops the server and removes the folder when this is closed: by `stop`, or by
    /// the operating system when this process ends, even by a signal.
    lifeline: Option<ChildStdin>,
}

/// Lines of pg_hba.conf for tests that are not about authentication: every role needs its password,
/// except through the Unix socket. They allow replication too.
#[allow(dead_code)]
pub const REQUIRE_PASSWORD: &str =
    "local all all trust\nhost all,replication all all scram-sha-256\n";

/// The superuser's password in every cluster of this process. It is random.
pub fn password() -> &'static str {
    static PASSWORD: OnceLock<String> = OnceLock::new();
    PASSWORD.get_or_init(|| {
        let mut bytes = [0; 16];
        let random =
            fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
        random.unwrap_or_else(|e| panic!("no random password: /dev/urandom: {e}"));
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    })
}

/// The superuser and its password, as connection URIs contain them: `postgres:PASSWORD`.
#[allow(dead_code)]
pub fn superuser() -> String {
    format!("postgres:{}", password())
}

/// The settings of a cluster.
#[derive(Default)]
#[allow(dead_code)]
pub struct Setup<'a> {
    /// The lines of pg_hba.conf.
    pub hba: &'a str,
    /// Settings as on a command line; `{folder}` stands for the cluster's folder.
    pub settings: &'a str,
    /// Files in that folder, which only the server may read.
    pub files: &'a [(&'a str, &'a str)],
    /// A folder with another version of Postgres, and the path of its programs in that folder. It
    /// is copied to a place where the server's user can run the programs.
    pub programs: Option<(&'a Path, &'a str)>,
    /// The port of the primary, if the cluster is a standby.
    pub standby_of: Option<u16>,
}

impl Cluster {
    /// Creates and starts a cluster with these lines as its pg_hba.conf.
    ///
    /// The error is one line that says what to do.
    pub fn start(hba: &str) -> Result<Self, String> {
        Self::start_with(&Setup { hba, ..Setup::default() })
    }

    /// Creates and starts a cluster.
    pub fn start_with(setup: &Setup<'_>) -> Result<Self, String> {
        let owner = Owner::of_server()?;
        // pg_basebackup and standbys read the password from the second file.
        let pgpass = format!("*:*:*:postgres:{}\n", password());
        let mut files = vec![("password", password()), ("pgpass", &pgpass), ("hba", setup.hba)];
        files.extend(setup.files);
        let programs = setup.programs.map(|(programs, _)| programs);
        let folder = new_folder().map_err(|e| format!("no temporary folder: {e}"))?;
        let started = owner.fill_and_own(&folder, &files, programs).and_then(|()| {
            let bin = match setup.programs {
                // Another user may not have access to the original.
                Some((_, bin)) => folder.join("programs").join(bin),
                None => find_binaries()?,
            };
            Self::start_in(&bin, &owner, &folder, setup)
        });
        if started.is_err() {
            let _ = fs::remove_dir_all(&folder);
        }
        started
    }

    fn start_in(
        bin: &Path,
        owner: &Owner,
        folder: &Path,
        setup: &Setup<'_>,
    ) -> Result<Self, String> {
        // Another process may take the port before Postgres does. Then another port is tried.
        let mut failure = String::new();
        for _ in 0..5 {
            match Self::supervise(bin, owner, folder, setup) {
                Ok(cluster) => return Ok(cluster),
                Err(e) => failure = e,
            }
        }
        Err(format!("Postgres does not start: {failure}"))
    }

    fn supervise(
        bin: &Path,
        owner: &Owner,
        folder: &Path,
        setup: &Setup<'_>,
    ) -> Result<Self, String> {
        let port = free_port().map_err(|e| format!("no free port: {e}"))?;
        let settings = format!(
            "-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} \
             -c fsync=off -c synchronous_commit=off -c full_page_writes=off -c log_statement=none \
             -c timezone=UTC -c lc_messages=C -c password_encryption=scram-sha-256 {more}",
            folder = folder.display(),
            more = setup.settings.replace("{folder}", &folder.display().to_string()),
        );
        let primary = setup.standby_of.map_or(String::new(), |port| port.to_string());
        // The supervisor has its own process group, so that Ctrl-C reaches only this process. It
        // ignores SIGPIPE, so that it cleans up even after this process has ended.
        let script = r#"
            trap '' PIPE
            umask 077
            if [ -n "$4" ]; then
                # Not -R: it writes settings that a server older than pg_basebackup rejects.
                [ -d "$2/data" ] || {
                    PGPASSFILE="$2/pgpass" "$1/pg_basebackup" -h 127.0.0.1 -p "$4" -U postgres \
                        -D "$2/data" -X stream -c fast >"$2/log" 2>&1 &&
                    echo "primary_conninfo = 'host=127.0.0.1 port=$4 user=postgres passfile=$2/pgpass'" \
                        >>"$2/data/postgresql.auto.conf" &&
                    : >"$2/data/standby.signal"
                } || exit 1
            elif [ ! -d "$2/data" ]; then
                "$1/initdb" -U postgres -A scram-sha-256 --pwfile="$2/password" -E UTF8 --locale=C -N \
                    -D "$2/data" >"$2/log" 2>&1 &&
                mv "$2/hba" "$2/data/pg_hba.conf" || exit 1
            fi
            "$1/pg_ctl" -D "$2/data" -l "$2/log" -o "$3" -w -s start </dev/null || exit 1
            echo ready
            read -r _
            "$1/pg_ctl" -D "$2/data" -m immediate -w -s stop
            rm -rf "$2"
        "#;
        let mut shell = owner.command(Path::new("/bin/sh"), folder);
        shell.args(["-c", script, "sh"]).args([bin, folder]).args([&settings, &primary]);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        shell.process_group(0);
        let mut supervisor = shell.spawn().map_err(|e| format!("cannot run /bin/sh: {e}"))?;

        let mut line = String::new();
        let said = supervisor.stdout.take().map(|out| BufReader::new(out).read_line(&mut line));
        if !matches!(said, Some(Ok(_))) || line.trim() != "ready" {
            let _ = supervisor.wait();
            return Err(one_line(&fs::read(folder.join("log")).unwrap_or_default()));
        }
        let lifeline = supervisor.stdin.take();
        Ok(Self {
            folder: folder.to_owned(),
            bin: bin.to_owned(),
            settings,
            port,
            supervisor,
            lifeline,
        })
    }

    /// The port, on 127.0.0.1 and as part of the socket's name.
    #[allow(dead_code)]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the Unix socket.
    #[allow(dead_code)]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Replaces the content of one of the cluster's [`files`](Setup::files).
    #[allow(dead_code)]
    pub fn replace(&self, name: &str, text: &str) {
        // This keeps the owner and the permissions.
        fs::write(self.folder.join(name), text).unwrap();
    }

    /// The major version.
    #[allow(dead_code)]
    pub fn version(&self) -> u32 {
        fs::read_to_string(self.folder.join("data/PG_VERSION")).unwrap().trim().parse().unwrap()
    }

    /// A connection string for the superuser, with its password.
    pub fn url(&self) -> String {
        format!("postgres://{}@127.0.0.1:{}/postgres", superuser(), self.port)
    }

    /// A connection string for a role that needs no password.
    #[allow(dead_code)]
    pub fn url_as(&self, role: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/postgres", self.port)
    }

    /// Runs `pg_ctl` with `stop`, `restart`, `promote` and so on. Panics if it fails.
    #[allow(dead_code)]
    pub fn control(&self, args: &[&str]) {
        assert!(self.try_control(args), "pg_ctl {args:?}");
    }

    /// Same as [`control`](Self::control), but returns whether `pg_ctl` succeeded.
    #[allow(dead_code)]
    pub fn try_control(&self, args: &[&str]) -> bool {
        let owner = Owner::of_server().unwrap();
        let mut pg_ctl = owner.command(&self.bin.join("pg_ctl"), &self.folder);
        pg_ctl.arg("-D").arg(self.folder.join("data")).args(["-w", "-s"]).args(args);
        if args.contains(&"start") {
            pg_ctl.arg("-o").arg(&self.settings).arg("-l").arg(self.folder.join("log"));
        }
        pg_ctl.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        pg_ctl.status().unwrap().success()
    }

    /// Stops the server and removes its folder.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.lifeline.take());
        let _ = self.supervisor.wait();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end();
    }
}

/// The user that the server runs as: Postgres refuses to run as root.
pub struct Owner {
    /// `None`: the user of this process.
    ids: Option<(u32, u32)>,
}

impl Owner {
    pub fn of_server() -> Result<Self, String> {
        let id =
            Command::new("id").arg("-u").output().map_err(|e| format!("cannot run id: {e}"))?;
        if id.stdout.trim_ascii() != b"0" {
            return Ok(Self { ids: None });
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let ids = ["postgres", "nobody"].iter().find_map(|name| {
            let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
            let mut fields = line.split(':').skip(2).map(str::parse);
            Some((fields.next()?.ok()?, fields.next()?.ok()?))
        });
        match ids {
            Some(ids) => Ok(Self { ids: Some(ids) }),
            None => {
                Err("Postgres does not run as root, and there is no user postgres or nobody to \
                         run it as: make one, or run this as another user"
                    .to_owned())
            }
        }
    }

    /// Writes the files into a new folder, copies `programs` into its subfolder of that name, and
    /// makes the server's user the owner of everything.
    ///
    /// The owner of the folder changes last. Otherwise that user could create symbolic links in the
    /// folder, and this process, which may be root, would follow them.
    pub fn fill_and_own(
        &self,
        folder: &Path,
        files: &[(&str, &str)],
        programs: Option<&Path>,
    ) -> Result<(), String> {
        for (name, text) in files {
            let path = folder.join(name);
            let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
            written.and_then(|()| self.give(&path)).map_err(|e| format!("{name}: {e}"))?;
        }
        if let Some(programs) = programs {
            // `cp` gives each link and file of the copy the mode of the original, readable by
            // everybody.
            let copied =
                Command::new("cp").arg("-R").arg(programs).arg(folder.join("programs")).status();
            if !copied.as_ref().is_ok_and(|status| status.success()) {
                return Err(format!("{} could not be copied: {copied:?}", programs.display()));
            }
            // The server's user removes it.
            if let Some((uid, gid)) = self.ids {
                let mut chown = Command::new("chown");
                chown.arg("-hR").arg(format!("{uid}:{gid}")).arg(folder.join("programs"));
                let given = chown.status();
                if !given.as_ref().is_ok_and(|status| status.success()) {
                    return Err(format!("chown: {given:?}"));
                }
            }
        }
        self.give(folder).map_err(|e| format!("{}: {e}", folder.display()))
    }

    fn give(&self, path: &Path) -> io::Result<()> {
        self.ids.map_or(Ok(()), |(uid, gid)| lchown(path, Some(uid), Some(gid)))
    }

    /// Returns a command that runs as the server's user, without environment variables of this
    /// process that could affect it.
    pub fn command(&self, program: &Path, folder: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some((uid, gid)) = self.ids {
            command.uid(uid).gid(gid);
        }
        let inherited = ["PATH", "TZ", "LD_LIBRARY_PATH"];
        let kept: Vec<_> =
            inherited.iter().filter_map(|k| Some((k, std::env::var_os(k)?))).collect();
        command.env_clear().envs(kept).env("HOME", folder).env("LC_ALL", "C").current_dir(folder);
        command
    }
}

/// Creates a folder that only this process's user can enter.
pub fn new_folder() -> io::Result<PathBuf> {
    // Not in $TMPDIR, which may be long: the path of a socket has at most 107 bytes.
    for attempt in 0..100 {
        let folder = format!("/tmp/fraiseql-wire-{}-{attempt}", std::process::id());
        // An existing folder, or a symbolic link of that name, is an error.
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder.into()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Finds the folder of initdb, pg_ctl and postgres: in $PG_BIN; otherwise in PATH and where Debian
/// and Homebrew install them.
pub fn find_binaries() -> Result<PathBuf, String> {
    let complete = |dir: &PathBuf| {
        // `initdb` in PATH may be a symbolic link into the folder that contains all programs.
        let dir = fs::canonicalize(dir.join("initdb")).ok()?.parent()?.to_owned();
        ["initdb", "pg_ctl", "postgres"].iter().all(|p| dir.join(p).is_file()).then_some(dir)
    };
    if let Some(dir) = std::env::var_os("PG_BIN") {
        return complete(&dir.clone().into()).ok_or_else(|| {
            format!(
                "PG_BIN is {}, which does not contain initdb, pg_ctl and postgres",
                PathBuf::from(dir).display()
            )
        });
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates: Vec<PathBuf> = std::env::split_paths(&path).collect();
    for (parent, tail) in
        [("/usr/lib/postgresql", "bin"), ("/opt/homebrew/opt", "bin"), ("/usr/local/opt", "bin")]
    {
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        let mut dirs: Vec<PathBuf> = entries.map(|e| e.path().join(tail)).collect();
        // The newest first.
        dirs.sort();
        candidates.extend(dirs.into_iter().rev());
    }
    candidates.iter().find_map(complete).ok_or_else(|| {
        "no Postgres server programs (initdb, pg_ctl, postgres) were found: run scripts/test.sh, \
         which installs them, or set PG_BIN to their folder"
            .to_owned()
    })
}

fn one_line(text: &[u8]) -> String {
    let mut all = String::new();
    let _ = (&mut &*text).take(2000).read_to_string(&mut all);
    all.split_whitespace().collect::<Vec<_>>().join(" ")
}
