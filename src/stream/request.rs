//! What is to be asked of the server, and by how many connections.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    channel::Channel,
    deadline::Deadlines,
    parallel::{BeginError, Parallel, Planned},
    reader::{self, Start},
    resume::Resume,
    settings::StreamSettings,
};
use crate::connection::{Access, Connection, Lease, QuerySession, RunningQuery};

/// How the rows are read.
#[derive(Debug)]
pub(crate) enum Request {
    /// By one query.
    Single { query: Bytes, resume: Option<Resume> },
    /// By several sessions in one snapshot.
    Parallel(Parallel),
}

/// What the readers have to do.
pub(super) enum Work {
    Single { query: Bytes, resume: Option<Resume> },
    Parts(Planned),
}

impl Request {
    /// Does what must be done before the readers begin.
    pub(super) async fn begin(
        &self,
        access: &Access,
        connection: &mut Connection,
        running: &QuerySession,
    ) -> Result<Work, BeginError> {
        match self {
            Self::Single { query, resume } => {
                Ok(Work::Single { query: query.clone(), resume: resume.clone() })
            }
            Self::Parallel(parallel) => {
                Box::pin(parallel.begin(access, connection, running)).await.map(Work::Parts)
            }
        }
    }
}

impl Work {
    pub(super) fn readers(&self) -> usize {
        match self {
            Self::Single { .. } => 1,
            Self::Parts(planned) => 1 + planned.others.len(),
        }
    }

    /// Starts the readers. The first has the client's connection.
    pub(super) fn spawn(
        self,
        (connection, lease): (Connection, Lease),
        channel: &Arc<Channel>,
        settings: StreamSettings,
        deadlines: Deadlines,
        running: &RunningQuery,
    ) {
        let first = channel.seat(0);
        let Planned { others, execute } = match self {
            Self::Single { query, resume } => {
                let start = Start::whole(query, resume);
                let (owned, session) = ((connection, lease), running.session());
                return reader::spawn(owned, first, settings, deadlines, start, session);
            }
            Self::Parts(planned) => planned,
        };
        let settings = settings.of_one(1 + others.len());
        let start = Start::part(execute.clone());
        reader::spawn((connection, lease), first, settings, deadlines, start, running.session());
        for (other, number) in others.into_iter().zip(1..) {
            let (seat, start) = (channel.seat(number), Start::part(execute.clone()));
            reader::spawn_beside(other, seat, settings, deadlines, start, running.session());
        }
    }
}
