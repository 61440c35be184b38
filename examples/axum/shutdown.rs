//! The end of the service, in bounded time, whatever its clients do.

use std::{io, time::Duration};

use fraiseql_wire::pool::deadpool::Pool;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::App;

/// How long responses may continue.
const GRACE: Duration = Duration::from_secs(5);
/// How long their queries may then take to be cancelled. A cleanup takes at most 2 seconds
/// (`cancel_timeout`).
const CLEANUP: Duration = Duration::from_secs(3);

/// Resolves at Ctrl-C, or at SIGTERM, which service managers send.
pub async fn signal_received() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

/// Ends the service, which accepts no new connection, in at most `GRACE` + `CLEANUP`.
pub async fn shut_down(app: &App, mut server: JoinHandle<io::Result<()>>) {
    app.pool.close();
    let is_over = timeout(GRACE, &mut server).await.is_ok();
    let cleanup = async {
        if !is_over {
            app.streams.cancel_all().await;
        }
        // Every query ends, also that of a client that reads nothing.
        until_empty(&app.pool).await;
        if !is_over {
            // The server waits for such a client, until the timeout.
            let _ = server.await;
        }
    };
    let _ = timeout(CLEANUP, cleanup).await;
}

/// Waits until every connection is closed. No query of the service is then running.
async fn until_empty(pool: &Pool) {
    while pool.status().size > 0 {
        sleep(Duration::from_millis(20)).await;
    }
}
