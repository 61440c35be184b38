//! The example `axum`, in its own process.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
};

use super::example;

/// A running service. Dropping it ends the process.
pub struct Service {
    /// Its address: `127.0.0.1:41234`.
    pub address: String,
    child: Child,
    output: BufReader<ChildStdout>,
    log: tempfile::NamedTempFile,
}

impl Service {
    /// Starts it with a view of this test binary's cluster. `name` is the `application_name` of its
    /// sessions.
    pub fn on(name: &str, view: &str) -> Self {
        Self::with(name, |command| {
            command.arg(view);
        })
    }

    /// The same, with further settings.
    pub fn with(name: &str, configure: impl FnOnce(&mut Command)) -> Self {
        let url = format!("{}?application_name={name}", super::cluster().url());
        Self::start(|command| {
            command.env("DATABASE_URL", url);
            configure(command);
        })
    }

    pub fn start(configure: impl FnOnce(&mut Command)) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new(example::path("axum"));
        command.env_remove("DATABASE_URL").env_remove("POOL_SIZE").env("LISTEN", "127.0.0.1:0");
        command.stdout(Stdio::piped()).stderr(log.reopen().unwrap());
        configure(&mut command);
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let address = loop {
            let mut line = String::new();
            let read = output.read_line(&mut line).unwrap();
            assert!(read > 0, "it does not start: {}", fs::read_to_string(log.path()).unwrap());
            if let Some((_, address)) = line.trim_end().split_once("listening on http://") {
                break address.trim_end_matches('/').to_owned();
            }
        };
        Self { address, child, output, log }
    }

    /// Returns its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log.path()).unwrap()
    }

    /// Sends the signal of Ctrl-C.
    pub fn interrupt(&self) {
        self.signal("INT");
    }

    /// Sends the signal of service managers.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn signal(&self, name: &str) {
        // The builtin of the shell: a minimal system has no program `kill`.
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for its end. Returns its status and remaining output.
    pub fn ended(&mut self) -> (ExitStatus, String) {
        let text = std::io::read_to_string(&mut self.output).unwrap();
        (self.child.wait().unwrap(), text)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns how many of the service's sessions run a query.
pub async fn active(admin: &tokio_postgres::Client, name: &str) -> i64 {
    let sql =
        "select count(*) from pg_stat_activity where application_name = $1 and state = 'active'";
    admin.query_one(sql, &[&name]).await.unwrap().get(0)
}

/// Returns whether a query of the service waits for its client to read.
pub async fn waits_for_client(admin: &tokio_postgres::Client, name: &str) -> bool {
    let sql = "select count(*) from pg_stat_activity
               where application_name = $1 and state = 'active' and wait_event = 'ClientWrite'";
    admin.query_one(sql, &[&name]).await.unwrap().get::<_, i64>(0) > 0
}
