//! Poolers and proxies in front of a server: private processes that end with the tests.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use super::cluster::{Owner, free_port, new_folder, password};

/// Returns the program of this name, from where systems install it.
fn find(name: &str) -> PathBuf {
    ["/usr/sbin", "/usr/bin", "/opt/homebrew/bin", "/usr/local/bin"]
        .map(|folder| Path::new(folder).join(name))
        .into_iter()
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} was not found: run scripts/test.sh, which installs it"))
}

/// Settings of a PgBouncer that does not prepare statements itself. From 1.21 it does by default;
/// earlier versions do not know the setting. scripts/engines.sh tests those that do.
pub fn prepares_nothing() -> &'static str {
    let output = Command::new(find("pgbouncer")).arg("--version").output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let version = output.split_whitespace().nth(1).unwrap().split('.');
    let version: Vec<u32> = version.map(|part| part.parse().unwrap()).collect();
    if version[..] >= [1, 21][..] { "max_prepared_statements = 0\n" } else { "" }
}

/// A running program that listens on a port of the loopback.
#[derive(Debug)]
pub struct Daemon {
    pub port: u16,
    folder: PathBuf,
    supervisor: Child,
    /// Closed by `drop`, or by the operating system when this process ends.
    lifeline: Option<ChildStdin>,
    /// Receives the results of the supervisor.
    done: BufReader<ChildStdout>,
    name: &'static str,
}

impl Daemon {
    /// PgBouncer in transaction mode in front of the server on `port`, with 4 server connections.
    pub fn pgbouncer(server: u16) -> Self {
        Self::pgbouncer_in("transaction", server)
    }

    /// The same in this mode. The superuser has the same password as at the server, and administers
    /// the pooler in the database `pgbouncer`.
    pub fn pgbouncer_in(mode: &str, server: u16) -> Self {
        Self::pgbouncer_with(mode, "", server)
    }

    /// The same with additional settings.
    pub fn pgbouncer_with(mode: &str, settings: &str, server: u16) -> Self {
        let start = |port: u16, folder: &Path| {
            let ini = format!(
                "[databases]\n* = host=127.0.0.1 port={server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
                 listen_port = {port}\nunix_socket_dir = {folder}\nauth_type = md5\nauth_file = users.txt\nadmin_users = postgres\n\
                 pool_mode = {mode}\n\
                 default_pool_size = 4\nserver_lifetime = 600\nserver_login_retry = 0.1\nlogfile = {folder}/log\n\
                 {settings}\n[users]\npostgres =\n",
                folder = folder.display()
            );
            let users = format!("\"postgres\" \"{}\"\n", password());
            let files = vec![("pgbouncer.ini", ini), ("users.txt", users)];
            (files, "pgbouncer", vec!["-q", "pgbouncer.ini"])
        };
        Self::start(start)
    }

    /// Starts pgpool in front of the server on `port`, as its primary.
    pub fn pgpool(server: u16) -> Self {
        let start = |port: u16, folder: &Path| {
            let folder = folder.display();
            // A cancel request occupies a child process for a moment. The folder of its socket has
            // another name from 4.4 on; each version ignores the other name.
            let config = format!(
                "backend_clustering_mode = 'streaming_replication'\nlisten_addresses = '127.0.0.1'\n\
                 port = {port}\npcp_listen_addresses = ''\n\
                 socket_dir = '{folder}'\nunix_socket_directories = '{folder}'\npcp_socket_dir = '{folder}'\n\
                 wd_ipc_socket_dir = '{folder}'\npid_file_name = '{folder}/pid'\nlogdir = '{folder}'\n\
                 backend_hostname0 = '127.0.0.1'\nbackend_port0 = {server}\n\
                 backend_flag0 = 'ALWAYS_PRIMARY|DISALLOW_TO_FAILOVER'\nsr_check_period = 0\n\
                 num_init_children = 16\nmax_pool = 1\n\
                 enable_pool_hba = on\npool_passwd = 'pool_passwd'\n"
            );
            let files = vec![
                ("pgpool.conf", config),
                ("pcp.conf", String::new()),
                ("pool_hba.conf", "host all all 127.0.0.1/32 md5\n".to_owned()),
                ("pool_passwd", format!("postgres:TEXT{}\n", password())),
            ];
            (
                files,
                "pgpool",
                vec!["-n", "-f", "pgpool.conf", "-F", "pcp.conf", "-a", "pool_hba.conf"],
            )
        };
        Self::start(start)
    }

    /// Starts HAProxy, which passes bytes to the first server that accepts connections.
    pub fn haproxy(servers: &[u16]) -> Self {
        Self::haproxy_with("60s", "60s", servers)
    }

    /// The same with these values of `timeout client` and `timeout server`.
    pub fn haproxy_with(client: &str, server: &str, servers: &[u16]) -> Self {
        let start = |port: u16, _: &Path| {
            let mut config = format!(
                "defaults\n mode tcp\n timeout connect 2s\n timeout client {client}\n timeout server {server}\n\
                 listen postgres\n bind 127.0.0.1:{port}\n balance first\n"
            );
            for (i, server) in servers.iter().enumerate() {
                config.push_str(&format!(" server s{i} 127.0.0.1:{server} check inter 100ms\n"));
            }
            (vec![("haproxy.cfg", config)], "haproxy", vec!["-db", "-f", "haproxy.cfg"])
        };
        Self::start(start)
    }

    fn start(
        program: impl Fn(u16, &Path) -> (Vec<(&'static str, String)>, &'static str, Vec<&'static str>),
    ) -> Self {
        let owner = Owner::of_server().unwrap_or_else(|e| panic!("{e}"));
        let port = free_port().unwrap();
        let folder = new_folder().unwrap();
        let (files, name, arguments) = program(port, &folder);
        let files: Vec<_> = files.iter().map(|(file, text)| (*file, text.as_str())).collect();
        owner.fill_and_own(&folder, &files, None).unwrap_or_else(|e| panic!("{e}"));
        let program = find(name);
        let script = r#"
            trap '' PIPE
            folder=$1; shift
            # pgpool, and PgBouncer from 1.23, otherwise wait for their clients, which may wait for
            # this. Earlier versions of PgBouncer ignore QUIT.
            case $1 in *pgpool) signals=INT ;; *pgbouncer) signals="QUIT TERM" ;; *) signals=TERM ;; esac
            end() { for signal in $signals; do kill -$signal $pid 2>/dev/null; done; wait $pid; }
            start() { "$@" >>"$folder/out" 2>&1 </dev/null & pid=$!; }
            start "$@"
            echo started
            while read -r what; do
                case $what in
                    stop) end; pid= ;;
                    start) start "$@" ;;
                    # The new process takes the sockets from the old one, which ends then.
                    replace) old=$pid; start "$@" -R; wait $old ;;
                esac
                echo done
            done
            [ -z "$pid" ] || end
            rm -rf "$folder"
        "#;
        let mut shell = owner.command(Path::new("/bin/sh"), &folder);
        shell.args(["-c", script, "sh"]).arg(&folder).arg(program).args(arguments);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut shell, 0);
        let mut supervisor = shell.spawn().unwrap();
        let mut done = BufReader::new(supervisor.stdout.take().unwrap());
        done.read_line(&mut String::new()).unwrap();
        let lifeline = supervisor.stdin.take();
        let daemon = Self { port, folder, supervisor, lifeline, done, name };
        daemon.wait_until_it_listens();
        daemon
    }

    /// Kills the program, which ends its connections.
    pub fn stop(&mut self) {
        self.tell("stop");
    }

    /// Restarts it on the same port.
    pub fn start_again(&mut self) {
        self.tell("start");
        self.wait_until_it_listens();
    }

    /// Starts another PgBouncer, which takes over the sockets of this one while they are in use.
    pub fn replace_online(&mut self) {
        self.tell("replace");
        self.wait_until_it_listens();
    }

    fn tell(&mut self, what: &str) {
        let lifeline = self.lifeline.as_mut().unwrap();
        lifeline.write_all(format!("{what}\n").as_bytes()).unwrap();
        self.done.read_line(&mut String::new()).unwrap();
    }

    fn wait_until_it_listens(&self) {
        let name = self.name;
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let said = fs::read_to_string(self.folder.join("out")).unwrap_or_default();
            assert!(started.elapsed() < Duration::from_secs(20), "{name} does not listen: {said}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        let _ = self.supervisor.wait();
    }
}
