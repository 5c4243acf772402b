//! The data path's statements against a real Postgres: who leads, the claim, the record, takes, incarnations, what is
//! published again, partitions, retention, and how they find their rows. Named after the rule (R) or hole (H) of the protocol that
//! each shows.

mod attention;
mod bench;
mod bounds;
mod claim;
mod counters;
mod days;
mod dump;
mod finish;
mod history;
mod leadership;
mod locked_days;
mod locks;
mod neighbours;
mod open_entries;
mod partitions;
mod plans;
mod release;
mod retention;
mod revisions;
mod running;
mod scans;
mod takes;
mod upcoming;
mod workers;
mod zones;
