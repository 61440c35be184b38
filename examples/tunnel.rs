//! A connection through a child process, such as an SSH tunnel: `cargo run --example tunnel -- ssh
//! -W %h:%p bastion`.
//!
//! As in `ProxyCommand` of OpenSSH, `%h` and `%p` stand for the host and the port of the server.
//! Without arguments, the child process is this program, which forwards to the server directly.
//!
//! It uses the server of `DATABASE_URL`, in a schema of its own, or starts a private one.

use std::{
    env, io,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use fraiseql_wire::{ConnectionConfig, FraiseClient, RawJson, Target};
use futures_util::StreamExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, copy, join, stdin, stdout},
    net::TcpStream,
    process::Command,
};

mod support;

const DATA: &str = "
    create view v_order as
    select jsonb_build_object('id', i) as data from generate_series(1, 3) i;

    create view v_endless as
    select jsonb_build_object('id', i) as data
    from (select generate_series(1, 2000000000) i) as numbers;
";

#[tokio::main]
async fn main() -> support::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.as_slice() {
        [mode, address] if mode == "--forward" => forward(address).await,
        [] => {
            let program = env::current_exe()?.display().to_string();
            let command = vec![program, "--forward".into(), "%h:%p".into()];
            support::with_data(DATA, |url, _| run(url, command)).await
        }
        _ => support::with_data(DATA, |url, _| run(url, arguments)).await,
    }
}

async fn run(url: String, command: Vec<String>) -> support::Result<()> {
    let (command, tunnels) = (Arc::new(command), Arc::new(AtomicU32::new(0)));
    let opened = Arc::clone(&tunnels);
    let config = ConnectionConfig::parse(&url)?
        .to_builder()
        .connector(move |target| {
            opened.fetch_add(1, Relaxed);
            let command = Arc::clone(&command);
            async move { open(&command, &target) }
        })
        .build()?;

    let client = FraiseClient::connect_with_config(config).await?;
    let orders: Vec<RawJson> = client.query("v_order").fetch_all().await?;
    println!("{} orders through {} tunnel", orders.len(), tunnels.load(Relaxed));

    // Dropping a stream cancels its query on the server, through a tunnel of its own.
    let mut endless = client.query::<RawJson>("v_endless").execute().await?;
    endless.next().await.transpose()?;
    let pid = client.backend_pid();
    drop(endless);
    client.ping().await?;
    println!("cancelled through another tunnel: {}", tunnels.load(Relaxed) > 1);
    println!("the connection is the same: {}", client.backend_pid() == pid);
    client.close().await?;
    Ok(())
}

/// Starts the command, whose standard input and output are the stream. When the connection is
/// dropped, its input reaches EOF, and the command exits. Tokio reaps the process in the
/// background.
fn open(command: &[String], target: &Target) -> io::Result<impl AsyncRead + AsyncWrite + use<>> {
    let host = target.host.clone().or(target.hostaddr.map(|address| address.to_string()));
    let (host, port) = (host.unwrap_or_default(), target.port.to_string());
    let mut words = command.iter().map(|word| word.replace("%h", &host).replace("%p", &port));
    let program = words.next().ok_or(io::ErrorKind::InvalidInput)?;
    let pipes =
        Command::new(program).args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (Some(input), Some(output)) = (pipes.stdin, pipes.stdout) else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    Ok(join(output, input))
}

/// The tunnel: connects to the address, and forwards its input and output until one of them ends.
async fn forward(address: &str) -> support::Result<()> {
    let mut server = TcpStream::connect(address).await?;
    server.set_nodelay(true)?;
    let (mut from_server, mut to_server) = server.split();
    let (mut input, mut output) = (stdin(), stdout());
    tokio::select! {
        done = copy(&mut input, &mut to_server) => done?,
        done = copy(&mut from_server, &mut output) => done?,
    };
    // Tokio reads the standard input on a blocking thread, which would delay the exit.
    std::process::exit(0)
}
