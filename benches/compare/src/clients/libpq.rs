//! libpq 18, which does not decode: row by row, and in chunks.

use std::{ffi::CString, ptr};

use pq_sys::ExecStatusType::{PGRES_SINGLE_TUPLE, PGRES_TUPLES_CHUNK, PGRES_TUPLES_OK};

use super::{Tally, Task};

pub fn run(task: &Task, connected: &mut (dyn FnMut() + Send)) -> Tally {
    let url = CString::new(task.url()).unwrap();
    // SAFETY: the strings end with a NUL and outlive their use. The connection and each result are
    // used only until they are freed.
    unsafe {
        let connection = pq_sys::PQconnectdb(url.as_ptr());
        assert_eq!(pq_sys::PQstatus(connection), pq_sys::ConnStatusType::CONNECTION_OK);
        connected();
        let mut tally = Tally::default();
        for _ in 0..task.repeat {
            tally.query();
            let sql = CString::new(task.sql()).unwrap();
            let none = ptr::null();
            let sent = pq_sys::PQsendQueryParams(
                connection,
                sql.as_ptr(),
                0,
                none,
                ptr::null(),
                ptr::null(),
                ptr::null(),
                0,
            );
            assert_eq!(sent, 1);
            let set = match task.mode.as_str() {
                "raw" => pq_sys::PQsetChunkedRowsMode(connection, 256),
                "raw, row by row" => pq_sys::PQsetSingleRowMode(connection),
                other => panic!("no mode {other:?}"),
            };
            assert_eq!(set, 1);
            loop {
                let result = pq_sys::PQgetResult(connection);
                if result.is_null() {
                    break;
                }
                let status = pq_sys::PQresultStatus(result);
                assert!(matches!(
                    status,
                    PGRES_SINGLE_TUPLE | PGRES_TUPLES_CHUNK | PGRES_TUPLES_OK
                ));
                for row in 0..pq_sys::PQntuples(result) {
                    std::hint::black_box(pq_sys::PQgetvalue(result, row, 0));
                    tally.row(pq_sys::PQgetlength(result, row, 0) as u64);
                }
                pq_sys::PQclear(result);
            }
        }
        pq_sys::PQfinish(connection);
        tally
    }
}
