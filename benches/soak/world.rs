//! The environment of the clients: a server, networks that fail, and an operator of both. It is a
//! separate process, controlled line by line, so that the measured process contains only the
//! clients.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio_postgres::NoTls;

use crate::{
    cluster::{self, Cluster, REQUIRE_PASSWORD},
    proxy::Proxy,
};

/// The data. Every row has its number, and a text that shows whether the row is complete.
const VIEWS: &str = "
create view v_rows as select jsonb_build_object('id', i, 'text', repeat('x', i % 200)) as data
    from (select generate_series(1, 3000) i) numbers;
create view v_endless as select jsonb_build_object('id', i, 'text', repeat('x', i % 200)) as data
    from (select generate_series(1, 2000000000) i) numbers;
create view v_large as select jsonb_build_object('id', i, 'text', repeat('x', i * 5000)) as data
    from (select generate_series(1, 40) i) numbers;
create view v_divided as select jsonb_build_object('id', i, 'text', repeat('x', i % 200 + 0 / (2000 - i))) as data
    from (select generate_series(1, 3000) i) numbers;
create view v_some_bad as select jsonb_build_object('id', i, 'text',
        case when i % 100 = 0 then '0'::jsonb else to_jsonb(repeat('x', i % 200)) end) as data
    from (select generate_series(1, 3000) i) numbers;
-- Not for long: a backend that sleeps does not see that its client has gone.
create view v_asleep as select to_json(pg_sleep(3)::text) as data;
";

/// The other process.
pub struct World {
    process: Child,
    commands: Mutex<ChildStdin>,
    replies: Mutex<BufReader<ChildStdout>>,
    pub port: u16,
    /// The folder of the server's socket.
    pub folder: String,
    /// The superuser's password.
    pub password: String,
    /// The ports of the proxies that fail.
    pub proxies: Vec<u16>,
}

impl World {
    pub fn start(proxies: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["world", &proxies.to_string()]);
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts itself");
        let commands = Mutex::new(process.stdin.take().unwrap());
        let mut replies = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        replies.read_line(&mut line).unwrap();
        let mut words = line.split_whitespace();
        // The process has printed the reason.
        let Some(port) = words.next() else { std::process::exit(1) };
        Self {
            process,
            commands,
            replies: Mutex::new(replies),
            port: port.parse().unwrap(),
            folder: words.next().unwrap().to_owned(),
            password: words.next().unwrap().to_owned(),
            proxies: words.map(|port| port.parse().unwrap()).collect(),
        }
    }

    /// Sends a command, and does not wait for it.
    pub fn tell(&self, command: &str) {
        let mut commands = self.commands.lock().unwrap();
        commands.write_all(format!("{command}\n").as_bytes()).unwrap();
    }

    /// Sends a command, and waits for its result.
    pub fn ask(&self, command: &str) -> String {
        let mut replies = self.replies.lock().unwrap();
        self.tell(command);
        let mut line = String::new();
        replies.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Ends the process, and the server with it.
    pub fn end(mut self) {
        drop(self.commands);
        self.process.wait().unwrap();
    }
}

/// The main loop of the other process.
pub fn run(proxies: usize) {
    let cluster = match Cluster::start(REQUIRE_PASSWORD) {
        Ok(cluster) => Arc::new(cluster),
        Err(e) => return eprintln!("{e}"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(serve(&cluster, proxies));
}

async fn serve(cluster: &Arc<Cluster>, proxies: usize) {
    sql(cluster, VIEWS).await.unwrap();
    let mut networks = Vec::new();
    for _ in 0..proxies {
        networks.push(Arc::new(Proxy::start(([127, 0, 0, 1], cluster.port()).into()).await));
    }
    let ports: Vec<_> = networks.iter().map(|proxy| proxy.address.port().to_string()).collect();
    // The other process reads this from a pipe.
    println!(
        "{} {} {} {}",
        cluster.port(),
        cluster.folder().display(),
        cluster::password(),
        ports.join(" ")
    );

    let (lines, mut commands) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            if lines.send(line.unwrap()).is_err() {
                break;
            }
        }
    });
    while let Some(line) = commands.recv().await {
        let words: Vec<_> = line.split(' ').collect();
        if let [what, network, argument] = words[..] {
            let network = Arc::clone(&networks[network.parse::<usize>().unwrap()]);
            let number: u64 = argument.parse().unwrap();
            match what {
                "cut" => network.cut_after(number),
                "reset" => network.reset_after(number),
                "piece" => network.piece(number as usize),
                "stall" => {
                    network.stall(true);
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(number)).await;
                        network.stall(false);
                    });
                }
                _ => panic!("{line}"),
            }
            continue;
        }
        let cluster = Arc::clone(cluster);
        match words[..] {
            ["backends"] => {
                let count =
                    "select count(*)::text from pg_stat_activity where application_name = 'soak'";
                println!("{}", sql(&cluster, count).await.unwrap());
            }
            ["terminate", pid] => {
                let text = format!("select pg_terminate_backend({pid})::text");
                // The server may be stopping, or the backend may have ended.
                tokio::spawn(async move { drop(sql(&cluster, &text).await) });
            }
            ["restart", mode] => {
                let args = ["restart".to_owned(), "-m".to_owned(), mode.to_owned()];
                // The proxies obey commands in the meantime.
                tokio::task::spawn_blocking(move || {
                    cluster.control(&args.each_ref().map(String::as_str));
                    println!("done");
                });
            }
            _ => panic!("{line}"),
        }
    }
}

/// Runs SQL on a separate connection, which a restart does not break, and returns the last value.
async fn sql(cluster: &Cluster, text: &str) -> Result<String, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(&cluster.url(), NoTls).await?;
    tokio::spawn(connection);
    let mut last = String::new();
    for message in client.simple_query(text).await? {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            last = row.get(0).unwrap_or_default().to_owned();
        }
    }
    Ok(last)
}
