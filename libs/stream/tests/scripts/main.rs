//! The scripts, and the facts about Redis that they lean on (`protocol/redis_facts.py`), asked through this crate's functions
//! of a real Redis. Named after the rule (R) or hole (H) of the protocol that each shows.

mod answers;
mod bench;
mod certificate;
mod claims;
mod displaced;
mod failover;
mod notices;
mod publish;
mod reading;
mod reconcile;
mod silence;
mod streams;
mod withdraw;
