//! What processes have used, from `/proc` (Linux only; elsewhere all is zero).

use std::fs;

use anyhow::Result;

/// `sysconf(_SC_CLK_TCK)`: 100 on every Linux that matters.
const TICKS_PER_SECOND: f64 = 100.0;

/// The processes of a run.
#[derive(Clone, Debug, Default)]
pub struct Who {
    pub dispatchers: Vec<i32>,
    pub executors: Vec<i32>,
    pub postgres: i32,
    pub redis: i32,
}

/// CPU seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    pub dispatcher: f64,
    pub executor: f64,
    pub postgres: f64,
    pub redis: f64,
    /// This program: the floor, when that runs.
    pub bench: f64,
    /// The whole machine.
    pub machine: f64,
}

impl Cpu {
    /// So far.
    pub fn now(who: &Who) -> Self {
        let sum = |pids: &[i32]| pids.iter().map(|pid| Stat::of(*pid).unwrap_or_default().own()).sum::<f64>();
        Self {
            dispatcher: sum(&who.dispatchers),
            executor: sum(&who.executors),
            postgres: family(who.postgres),
            redis: sum(&[who.redis]),
            bench: sum(&[std::process::id().cast_signed()]),
            machine: machine(),
        }
    }

    /// Since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        self.combine(earlier, |now, then| (now - then).max(0.0))
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        self.combine(other, |a, b| a + b)
    }

    /// For each of `count`, times 1,000.
    pub fn per_1000(self, count: f64) -> Self {
        self.combine(Self::default(), |value, _| value / count.max(1.0) * 1_000.0)
    }

    /// What the machine did besides all of this.
    pub fn foreign(self) -> f64 {
        (self.machine - self.dispatcher - self.executor - self.postgres - self.redis - self.bench).max(0.0)
    }

    fn combine(self, other: Self, with: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            dispatcher: with(self.dispatcher, other.dispatcher),
            executor: with(self.executor, other.executor),
            postgres: with(self.postgres, other.postgres),
            redis: with(self.redis, other.redis),
            bench: with(self.bench, other.bench),
            machine: with(self.machine, other.machine),
        }
    }
}

/// Memory in MiB: the most that one process held; of PostgreSQL the sum over its processes, shared pages counted once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    pub dispatcher: f64,
    pub executor: f64,
    pub postgres: f64,
    pub redis: f64,
}

impl Memory {
    /// The peaks so far. Of PostgreSQL it is what it holds at this moment: ask at the end of each round.
    pub fn now(who: &Who) -> Self {
        let peak = |pids: &[i32]| pids.iter().map(|pid| field(*pid, "status", "VmHWM:")).fold(0.0, f64::max);
        let postgres: f64 = children(who.postgres).iter().map(|pid| field(*pid, "smaps_rollup", "Pss:")).sum();
        Self {
            dispatcher: peak(&who.dispatchers),
            executor: peak(&who.executors),
            postgres: postgres + field(who.postgres, "smaps_rollup", "Pss:"),
            redis: peak(&[who.redis]),
        }
    }

    /// The greater of both.
    pub fn or_more(self, other: Self) -> Self {
        Self {
            dispatcher: self.dispatcher.max(other.dispatcher),
            executor: self.executor.max(other.executor),
            postgres: self.postgres.max(other.postgres),
            redis: self.redis.max(other.redis),
        }
    }
}

/// The fields of `/proc/<pid>/stat` that matter here, times in seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Stat {
    parent: i32,
    user: f64,
    system: f64,
    /// Of children that have ended.
    children: f64,
}

impl Stat {
    fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name in parentheses may hold anything, also spaces and parentheses.
        let (_, rest) = text.rsplit_once(") ")?;
        let words: Vec<&str> = rest.split(' ').collect();
        let seconds = |index: usize| words.get(index)?.parse::<f64>().ok().map(|ticks| ticks / TICKS_PER_SECOND);
        Some(Self {
            parent: words.get(1)?.parse().ok()?,
            user: seconds(11)?,
            system: seconds(12)?,
            children: seconds(13)? + seconds(14)?,
        })
    }

    fn own(self) -> f64 {
        self.user + self.system
    }
}

fn children(parent: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| Stat::of(*pid).is_some_and(|stat| stat.parent == parent)).collect()
}

/// A process, its children, and those that have ended.
fn family(pid: i32) -> f64 {
    let Some(stat) = Stat::of(pid) else { return 0.0 };
    let living: f64 = children(pid).iter().map(|pid| Stat::of(*pid).unwrap_or_default().own()).sum();
    stat.own() + stat.children + living
}

fn machine() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let numbers: Vec<f64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal
    let busy = [0, 1, 2, 5, 6, 7].iter().map(|index| numbers.get(*index).copied().unwrap_or_default());
    busy.sum::<f64>() / TICKS_PER_SECOND
}

/// The most that the resident set of a process ever was, and what it is, in MiB; zero of one that is gone.
pub fn resident_mib(pid: i32) -> (f64, f64) {
    (field(pid, "status", "VmHWM:"), field(pid, "status", "VmRSS:"))
}

/// MiB of a line such as `VmHWM:   12345 kB`.
fn field(pid: i32, file: &str, name: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / 1_024.0
}

/// What the machine is.
#[derive(Clone, Debug)]
pub struct Machine {
    pub cores: usize,
    pub cpu: String,
    pub memory_gib: f64,
    pub system: String,
}

impl Machine {
    /// This one.
    ///
    /// # Errors
    /// If the number of cores is not known.
    pub fn this() -> Result<Self> {
        let line_of = |file: &str, name: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let memory = line_of("/proc/meminfo", "MemTotal");
        let kib: f64 = memory.split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or_default();
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(Self {
            cores: std::thread::available_parallelism()?.get(),
            cpu: line_of("/proc/cpuinfo", "model name"),
            memory_gib: kib / 1_024.0 / 1_024.0,
            system: format!("{} {}", std::env::consts::OS, release.trim()).trim().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_is_no_trap() {
        let text = "4711 (postgres: a) b) S 12 4711 4711 0 -1 0 1 2 3 4 250 150 30 20 20 0 1 0 99";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.parent, stat.user, stat.system, stat.children), (12, 2.5, 1.5, 0.5));
    }
}
