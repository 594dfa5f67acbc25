//! The oracle: reads a ledger with plain SQL and judges it by the window law alone. It shares no code
//! with the library, and does not trust the totals that the library computes from.

use std::collections::HashMap;
use std::path::Path;

use rusqlite::Connection;

use super::open_raw;
use super::processes::Acknowledged;

/// What an audit has found.
#[derive(Debug, Default)]
pub struct Report {
    /// The rows; what threads are charged at one instant may stand in one.
    pub charges: usize,
    /// What they come to.
    pub amount: i64,
    /// Windows that hold more than their capacity.
    pub over: Vec<String>,
    /// Charges that were acknowledged and are not in the ledger.
    pub missing: Vec<Acknowledged>,
    /// Totals that are no running sums.
    pub wrong_totals: Vec<String>,
    pub integrity: String,
}

impl Report {
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(
            self.over.is_empty()
                && self.missing.is_empty()
                && self.wrong_totals.is_empty()
                && self.integrity == "ok",
            "{} charges; {} windows over: {:?}; {} charges missing: {:?}; {} wrong totals: {:?}; integrity: {}",
            self.charges,
            self.over.len(),
            first(&self.over),
            self.missing.len(),
            first(&self.missing),
            self.wrong_totals.len(),
            first(&self.wrong_totals),
            self.integrity,
        );
    }
}

fn first<T>(found: &[T]) -> &[T] {
    &found[..found.len().min(3)]
}

#[derive(Clone, Copy, Debug)]
struct Row {
    at_ns: i64,
    amount: i64,
    total: i64,
}

/// Audits a file. Acknowledged charges that have left the longest window of their limit may have been
/// swept and are not looked for: tests that want to see all of them define a rate with a long window.
pub fn audit(file: &Path, acknowledged: &[Acknowledged]) -> Report {
    let connection = open_raw(file);
    let mut report = Report {
        integrity: text(&connection, "PRAGMA integrity_check"),
        ..Report::default()
    };
    let mut in_ledger: HashMap<(String, i64), i64> = HashMap::new();
    let mut oldest_kept: HashMap<String, i64> = HashMap::new();
    for (limit_id, key, pad_ns) in limits(&connection) {
        let rows = ledger(&connection, limit_id);
        report.charges += rows.len();
        check_totals(&key, &rows, &mut report);
        let mut longest = 0;
        for (window_ns, capacity) in rates(&connection, limit_id) {
            check_window(&key, &rows, window_ns + pad_ns, capacity, &mut report);
            longest = longest.max(window_ns + pad_ns);
        }
        if let Some(last) = rows.last() {
            oldest_kept.insert(key.clone(), last.at_ns - longest);
        }
        for row in rows {
            report.amount += row.amount;
            *in_ledger.entry((key.clone(), row.at_ns)).or_default() += row.amount;
        }
    }
    for charge in acknowledged {
        match in_ledger.get_mut(&(charge.key.clone(), charge.at_ns)) {
            Some(amount) if *amount >= charge.amount => *amount -= charge.amount,
            _ => {
                let swept = oldest_kept
                    .get(&charge.key)
                    .is_some_and(|oldest| charge.at_ns <= *oldest);
                if !swept {
                    report.missing.push(charge.clone());
                }
            }
        }
    }
    report
}

/// Adds up each window that ends at a charge, row by row.
fn check_window(key: &str, rows: &[Row], window_ns: i64, capacity: i64, report: &mut Report) {
    let mut first = 0;
    let mut sum = 0;
    for (position, row) in rows.iter().enumerate() {
        sum += row.amount;
        while rows[first].at_ns <= row.at_ns - window_ns {
            sum -= rows[first].amount;
            first += 1;
        }
        // Of charges at one instant, the last one shows what the window holds.
        let more_at_once = rows
            .get(position + 1)
            .is_some_and(|next| next.at_ns == row.at_ns);
        if !more_at_once && sum > capacity {
            report.over.push(format!(
                "{key}: {sum} of {capacity} in {window_ns} ns at {}",
                row.at_ns
            ));
        }
    }
}

fn check_totals(key: &str, rows: &[Row], report: &mut Report) {
    for pair in rows.windows(2) {
        if (pair[0].total + pair[1].amount) % (1 << 62) != pair[1].total {
            report
                .wrong_totals
                .push(format!("{key}: {:?} then {:?}", pair[0], pair[1]));
        }
    }
}

fn limits(connection: &Connection) -> Vec<(i64, String, i64)> {
    let mut statement = connection
        .prepare("SELECT limit_id, key, pad_ns FROM limit_definition")
        .unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    rows.unwrap().map(Result::unwrap).collect()
}

fn rates(connection: &Connection, limit_id: i64) -> Vec<(i64, i64)> {
    let mut statement = connection
        .prepare("SELECT window_ns, capacity FROM rate WHERE limit_id = ?1")
        .unwrap();
    let rows = statement.query_map([limit_id], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.unwrap().map(Result::unwrap).collect()
}

fn ledger(connection: &Connection, limit_id: i64) -> Vec<Row> {
    let mut statement = connection
        .prepare("SELECT at_ns, amount, total FROM ledger WHERE limit_id = ?1 ORDER BY at_ns, seq")
        .unwrap();
    let rows = statement.query_map([limit_id], |row| {
        Ok(Row {
            at_ns: row.get(0)?,
            amount: row.get(1)?,
            total: row.get(2)?,
        })
    });
    rows.unwrap().map(Result::unwrap).collect()
}

fn text(connection: &Connection, query: &str) -> String {
    connection.query_row(query, [], |row| row.get(0)).unwrap()
}

/// Every row of every ledger, in full, to compare.
pub fn all_rows(file: &Path) -> Vec<String> {
    let connection = open_raw(file);
    let mut found = Vec::new();
    for table in [
        "limit_definition",
        "rate",
        "charge",
        "booking",
        "owner",
        "permit",
        "permit_charge",
        "slot",
        "debt",
        "correction",
    ] {
        let mut statement = connection
            .prepare(&format!("SELECT * FROM {table} ORDER BY 1, 2, 3"))
            .unwrap();
        let columns = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let values: Vec<_> = (0..columns)
                .map(|column| row.get::<_, rusqlite::types::Value>(column).unwrap())
                .collect();
            found.push(format!("{table}: {values:?}"));
        }
    }
    found
}
