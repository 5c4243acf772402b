//! Pages of a listing, bounded in rows and in bytes: a thousand rows of a quarter megabyte each must neither fill this
//! process's memory nor exceed what a gRPC client accepts (4 MiB).

use futures_util::{Stream, StreamExt};
use sqlx::postgres::PgRow;
use sqlx::{Execute, Executor, Postgres, Row, ValueRef};
use tokio::time::timeout;

use crate::Result;
use crate::bounded::Pool;

/// Bytes on the wire after which a page ends early: those of the columns, and by how much JSON grows when it becomes
/// `google.protobuf.Struct`. The first row is always there: alone it stays below 4 MiB (`VALUE_WIRE_BYTES_MAX`).
pub const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Which part of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Rows at most.
    pub limit: u32,
    /// Rows to skip.
    pub offset: u32,
}

impl Slice {
    /// One row more than asked for tells whether more follow.
    pub(crate) fn limit_and_one(self) -> i64 {
        i64::from(self.limit) + 1
    }
}

/// A part of a listing.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// In the listing's order.
    pub items: Vec<T>,
    /// Whether more follow.
    pub has_more: bool,
}

/// A page that is being filled.
pub(crate) struct Filling<T> {
    pub(crate) items: Vec<T>,
    /// On the wire.
    pub(crate) bytes: usize,
    /// There is no room for the row that came next.
    pub(crate) is_full: bool,
}

impl<T> Filling<T> {
    pub(crate) const fn new() -> Self {
        Self { items: Vec::new(), bytes: 0, is_full: false }
    }
}

/// Reads a slice, as far as it fits on a page. `read` also tells by how many bytes a row grows on the wire.
pub(crate) async fn collect<'q, T>(
    pool: &Pool,
    query: impl Execute<'q, Postgres> + 'q,
    slice: Slice,
    read: impl Fn(&PgRow) -> Result<(usize, T)>,
) -> Result<Page<T>> {
    let mut page = Filling::new();
    fill(pool, query, slice.limit, &mut page, read).await?;
    Ok(Page { items: page.items, has_more: page.is_full })
}

/// Reads rows until the page is full, or has `limit` of them. `read` also tells by how many bytes a row grows on the wire.
pub(crate) async fn fill<'q, T>(
    pool: &Pool,
    query: impl Execute<'q, Postgres> + 'q,
    limit: u32,
    page: &mut Filling<T>,
    read: impl Fn(&PgRow) -> Result<(usize, T)>,
) -> Result<()> {
    let rows_max = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut connection = pool.acquire().await?;
    let query = connection.in_schema(query);
    let (inner, limit) = connection.lend().await?;
    // Row by row, so that what does not fit is not read: the driver throws it away on the connection's way back.
    let outcome = timeout(limit, until_full(inner.fetch(query), rows_max, page, read)).await;
    connection.settle(outcome)?
}

async fn until_full<T>(
    mut rows: impl Stream<Item = sqlx::Result<PgRow>> + Unpin,
    rows_max: usize,
    page: &mut Filling<T>,
    read: impl Fn(&PgRow) -> Result<(usize, T)>,
) -> sqlx::Result<Result<()>> {
    while let Some(row) = rows.next().await {
        let row = row?;
        if page.items.len() == rows_max {
            page.is_full = true;
            break;
        }
        let (growth, item) = match read(&row) {
            Ok(read) => read,
            Err(error) => return Ok(Err(error)),
        };
        let bytes = page.bytes + row_bytes(&row) + growth;
        if bytes > PAGE_BYTES_MAX && !page.items.is_empty() {
            page.is_full = true;
            break;
        }
        page.bytes = bytes;
        page.items.push(item);
    }
    Ok(Ok(()))
}

fn row_bytes(row: &PgRow) -> usize {
    (0..row.len())
        .filter_map(|column| row.try_get_raw(column).ok())
        .filter(|value| !value.is_null())
        .map(|value| value.as_bytes().map_or(0, <[u8]>::len))
        .sum()
}
