//! libpq 18 with a prepared statement, row by row: a blocking client, which has the first row as
//! soon as it has arrived.

use std::{
    ffi::{CStr, CString},
    ptr, slice,
};

use pq_sys::{
    ConnStatusType::CONNECTION_OK,
    ExecStatusType::{PGRES_COMMAND_OK, PGRES_SINGLE_TUPLE},
    PGconn,
};

use super::{Document, Load, Session};
use crate::short::Access;

const STATEMENT: &CStr = c"statement";

pub struct Libpq(*mut PGconn);

// SAFETY: a connection of libpq may be used by one thread after another.
unsafe impl Send for Libpq {}

impl Session for Libpq {
    async fn open(load: &Load, url: &str) -> Vec<Self> {
        assert_eq!(load.access, Access::Own);
        let url = CString::new(url).unwrap();
        let sql = CString::new(load.sql()).unwrap();
        // SAFETY: the strings end with a NUL and outlive their use. The result is not used after it
        // is freed.
        unsafe {
            let connection = pq_sys::PQconnectdb(url.as_ptr());
            assert_eq!(pq_sys::PQstatus(connection), CONNECTION_OK);
            let prepared =
                pq_sys::PQprepare(connection, STATEMENT.as_ptr(), sql.as_ptr(), 0, ptr::null());
            assert_eq!(pq_sys::PQresultStatus(prepared), PGRES_COMMAND_OK);
            pq_sys::PQclear(prepared);
            vec![Self(connection)]
        }
    }

    /// Blocks.
    async fn query<T: Document>(&mut self, key: i64) -> u64 {
        let (value, length, binary) = (key.to_be_bytes(), 8, 1);
        // SAFETY: the arrays have one element, which outlives its use. The document is read before
        // its result is freed.
        unsafe {
            let sent = pq_sys::PQsendQueryPrepared(
                self.0,
                STATEMENT.as_ptr(),
                1,
                &value.as_ptr().cast(),
                &length,
                &binary,
                0,
            );
            assert_eq!(sent, 1);
            assert_eq!(pq_sys::PQsetSingleRowMode(self.0), 1);
            let mut sum = 0;
            loop {
                let result = pq_sys::PQgetResult(self.0);
                if result.is_null() {
                    return sum;
                }
                if pq_sys::PQresultStatus(result) == PGRES_SINGLE_TUPLE {
                    let length = pq_sys::PQgetlength(result, 0, 0) as usize;
                    let data = pq_sys::PQgetvalue(result, 0, 0).cast::<u8>();
                    let document = slice::from_raw_parts(data, length);
                    sum += serde_json::from_slice::<T>(document).unwrap().weigh();
                }
                pq_sys::PQclear(result);
            }
        }
    }
}

impl Drop for Libpq {
    fn drop(&mut self) {
        // SAFETY: it is not used afterwards.
        unsafe { pq_sys::PQfinish(self.0) }
    }
}
