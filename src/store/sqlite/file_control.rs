//! The one place with unsafe code: file controls of SQLite that rusqlite does not wrap.
#![expect(unsafe_code, reason = "sqlite3_file_control takes pointers")]

use std::ffi::c_int;

use rusqlite::{Connection, ffi};

/// A number that changes when anything in the database has changed, by whichever connection; as of the
/// current or the last transaction of this one. See
/// <https://www.sqlite.org/c3ref/c_fcntl_begin_atomic_write.html>, `SQLITE_FCNTL_DATA_VERSION`.
pub(super) fn data_version(connection: &Connection) -> Option<u32> {
    let mut version: u32 = 0;
    // SAFETY: the handle is open for as long as `connection` is borrowed, the name ends in a zero byte,
    // and this operation writes one unsigned int to the pointer.
    let code = unsafe {
        ffi::sqlite3_file_control(
            connection.handle(),
            c"main".as_ptr(),
            ffi::SQLITE_FCNTL_DATA_VERSION,
            (&raw mut version).cast(),
        )
    };
    (code == ffi::SQLITE_OK).then_some(version)
}

/// Whether the file that the connection has open no longer stands at its path.
pub(super) fn has_moved(connection: &Connection) -> bool {
    let mut moved: c_int = 0;
    // SAFETY: as above; this operation writes one int to the pointer.
    let code = unsafe {
        ffi::sqlite3_file_control(
            connection.handle(),
            c"main".as_ptr(),
            ffi::SQLITE_FCNTL_HAS_MOVED,
            (&raw mut moved).cast(),
        )
    };
    code == ffi::SQLITE_OK && moved != 0
}
