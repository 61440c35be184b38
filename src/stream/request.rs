//! What is to be asked of the server, and by how many connections.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    channel::Channel,
    deadline::Deadlines,
    parallel::{Parallel, Parts},
    reader,
    resume::Resume,
    settings::StreamSettings,
};
use crate::{
    connection::{Access, Connection, Lease},
    error::Result,
};

/// How the rows are to be had.
#[derive(Debug)]
pub(crate) enum Request {
    /// By one query.
    Single { query: Bytes, resume: Option<Resume> },
    /// By several, on connections of their own, in one snapshot.
    Parallel(Parallel),
}

/// What the readers have to do.
pub(super) enum Work {
    Single { query: Bytes, resume: Option<Resume> },
    Parts(Parts),
}

impl Request {
    /// Does what must be done on the client's connection before the readers begin.
    pub(super) async fn begin(&self, connection: &mut Connection) -> Result<Work> {
        match self {
            Self::Single { query, resume } => {
                Ok(Work::Single { query: query.clone(), resume: resume.clone() })
            }
            Self::Parallel(parallel) => parallel.begin(connection).await.map(Work::Parts),
        }
    }
}

impl Work {
    pub(super) fn readers(&self) -> usize {
        match self {
            Self::Single { .. } => 1,
            Self::Parts(parts) => parts.queries.len(),
        }
    }

    /// Starts the readers. The first has the client's connection.
    pub(super) fn spawn(
        self,
        access: &Access,
        connection: Connection,
        channel: &Arc<Channel>,
        settings: StreamSettings,
        deadlines: Deadlines,
        lease: Lease,
    ) {
        let seat = channel.seat(0);
        let (join, queries) = match self {
            Self::Single { query, resume } => {
                return reader::spawn(connection, seat, settings, deadlines, query, resume, lease);
            }
            Self::Parts(Parts { join, queries }) => (Arc::<str>::from(join), queries),
        };
        let settings = settings.of_one(queries.len());
        let session = Arc::clone(&connection.session);
        let mut queries = queries.into_iter();
        if let Some(query) = queries.next() {
            reader::spawn(connection, seat, settings, deadlines, query, None, lease);
        }
        for (query, number) in queries.zip(1..) {
            let (access, session, join) = (access.clone(), Arc::clone(&session), Arc::clone(&join));
            let cancelled = {
                let (access, session) = (access.clone(), Arc::clone(&session));
                async move { access.cancelled(&session).await }
            };
            let open = async move {
                let mut connection = access.connect_beside(&session).await?;
                connection.begin(&join).await?;
                Ok(connection)
            };
            let seat = channel.seat(number);
            reader::spawn_beside(open, seat, settings, deadlines, query, cancelled);
        }
    }
}
