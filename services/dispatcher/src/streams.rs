//! How full the streams are, as far as this leader knows: what Redis said last, and what has been claimed since and is still
//! on its way there. Only the leader appends, so the sum is never too low; executors delete, so it may be too high.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::time::{Duration, Instant};

use carillon_core::line::Line;
use carillon_stream::streams::Retired;
use metrics::gauge;
use tracing::info;

use crate::leader::{End, Leader, delta};
use crate::outgoing::Batch;

/// Streams asked after at once: with more lines than these, each comes in its turn.
const ASKED_MAX: usize = 1_000;

/// Of the time that a stream must have been unused before it leaves, so much lies between two questions whether it has, and
/// between two readings of which streams there are: with a day, a quarter of an hour.
const LOOKS: u32 = 96;

/// The lengths of the streams.
#[derive(Debug)]
pub(crate) struct Streams {
    heard: BTreeMap<Line, u64>,
    /// The line that was asked after last.
    asked: Option<Line>,
    /// When an empty stream is to be asked whether it may leave.
    leaving: HashMap<Line, Instant>,
    /// Claimed, and not known to be in.
    coming: HashMap<Line, u64>,
    /// How long nothing was appended to a stream that leaves.
    unused: Duration,
    /// How often that is looked after.
    look_each: Duration,
    /// When Redis is asked which streams there are.
    next_lines: Instant,
}

impl Streams {
    /// Of which nothing is known yet. `unused` is how long nothing was appended to a stream that leaves.
    pub(crate) fn new(unused: Duration) -> Self {
        let look_each = unused / LOOKS;
        Self {
            heard: BTreeMap::new(),
            asked: None,
            leaving: HashMap::new(),
            coming: HashMap::new(),
            unused,
            look_each,
            next_lines: Instant::now() + look_each,
        }
    }

    /// Lines that are known, [`ASKED_MAX`] at most: those whose turn it is.
    pub(crate) fn some_lines(&mut self) -> Vec<Line> {
        let behind = self.asked.take().map_or(Bound::Unbounded, Bound::Excluded);
        let turned = self.heard.range((behind, Bound::Unbounded)).chain(&self.heard);
        let lines: Vec<Line> = turned.map(|(line, _)| line.clone()).take(ASKED_MAX.min(self.heard.len())).collect();
        self.asked = lines.last().cloned();
        lines
    }

    /// What Redis says.
    pub(crate) fn hear(&mut self, lines: &[Line], lengths: &[u64]) {
        for (line, length) in lines.iter().zip(lengths) {
            gauge!("carillon_stream_entries", "queue" => line.queue.clone(), "priority" => line.priority.as_str())
                .set(u32::try_from(*length).unwrap_or(u32::MAX));
            self.heard.insert(line.clone(), *length);
            if *length > 0 {
                self.leaving.remove(line);
            } else if !self.leaving.contains_key(line) {
                self.leaving.insert(line.clone(), Instant::now() + self.look_each);
            }
        }
    }

    /// A stream that is empty and that it is time at `now` to ask whether it may leave.
    fn may_leave(&mut self, now: Instant) -> Option<Line> {
        // Whichever has waited longest, so that each has its turn however many there are.
        let (line, at) = self.leaving.iter_mut().filter(|(_, at)| **at <= now).min_by_key(|(_, at)| **at)?;
        *at = now + self.look_each;
        (self.coming.get(line).copied().unwrap_or(0) == 0).then(|| line.clone())
    }

    /// A stream has left. Nobody speaks of it any more, so its label goes too.
    fn left(&mut self, line: &Line) {
        self.heard.remove(line);
        self.coming.remove(line);
        self.leaving.remove(line);
    }

    /// A batch was claimed, and will be sent.
    pub(crate) fn expect(&mut self, batch: &Batch) {
        for (line, count) in counts(batch) {
            *self.coming.entry(line.clone()).or_default() += count;
        }
    }

    /// It is in, or never will be. Hear the lengths that come with the answer as well.
    pub(crate) fn arrived(&mut self, batch: &Batch) {
        for (line, count) in counts(batch) {
            if let Some(coming) = self.coming.get_mut(line) {
                *coming = coming.saturating_sub(count);
            }
        }
    }

    /// How many more entries a stream may take until it holds `bound`. `None`: nobody has asked Redis yet.
    pub(crate) fn free(&self, line: &Line, bound: u32) -> Option<u32> {
        let coming = self.coming.get(line).copied().unwrap_or_default();
        let length = self.heard.get(line)?.saturating_add(coming);
        Some(u32::try_from(u64::from(bound).saturating_sub(length)).unwrap_or(u32::MAX))
    }
}

impl Leader {
    /// A stream that has been unused for long, and that nobody serves, leaves; R6 makes it again. One a tick.
    pub(crate) async fn let_streams_leave(&mut self) -> Result<(), End> {
        let now = Instant::now();
        if now >= self.streams.next_lines {
            self.streams.next_lines = now + self.streams.look_each;
            let redis = self.redis.clone();
            let known = self.alive(redis.known_lines()).await?;
            self.note_answer(&known);
            let lines = Vec::from_iter(known.unwrap_or_default());
            let lengths = self.alive(redis.lengths(&lines)).await?;
            self.note_answer(&lengths);
            if let Ok(lengths) = lengths {
                self.streams.hear(&lines, &lengths);
            }
        }
        if let Some(line) = self.streams.may_leave(now) {
            let unused_since = (self.session.clock().now() - delta(self.streams.unused)).timestamp_millis();
            let redis = self.redis.clone();
            let answer = self.alive(redis.retire(&line, self.term, unused_since)).await?;
            self.note_answer(&answer);
            match answer {
                Ok(Retired::Gone) => {
                    info!(queue = line.queue, priority = line.priority.as_str(), "a stream that nobody needs has left");
                    self.streams.left(&line);
                }
                Ok(Retired::Stale) => return Err(End::Stale),
                // The next tick announces, or asks again later.
                Ok(Retired::Used | Retired::Served | Retired::Uncertified | Retired::Unannounced) | Err(_) => {}
            }
        }
        Ok(())
    }
}

/// How many entries of a batch go into each stream.
fn counts(batch: &Batch) -> impl Iterator<Item = (&Line, u64)> {
    let mut counts = vec![0; batch.lines.len()];
    for entry in &batch.entries {
        counts[entry.line] += 1;
    }
    batch.lines.iter().zip(counts)
}

#[cfg(test)]
mod tests {
    use carillon_core::job::Priority;
    use carillon_stream::leader::Outgoing;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn batch(line: &Line, entries: i32) -> Batch {
        let entry = |seq| Outgoing { line: 0, seq, text: Vec::new().into() };
        Batch { number: 1, lines: vec![line.clone()], entries: (1..=entries).map(entry).collect() }
    }

    #[test]
    fn lines_are_asked_after_in_turn() {
        let mut streams = Streams::new(DAY);
        assert!(streams.some_lines().is_empty());
        let lines: Vec<Line> = (0..1_500).map(|n| Line::new(format!("{n:04}"), Priority::Medium)).collect();
        streams.hear(&lines, &vec![0; 1_500]);
        assert_eq!(streams.some_lines(), lines[..1_000]);
        let second = streams.some_lines();
        assert_eq!((&second[..500], &second[500..]), (&lines[1_000..], &lines[..500]));
        assert_eq!(streams.some_lines()[0], lines[500]);
    }

    #[test]
    fn what_is_on_its_way_takes_room_until_it_is_heard_of() {
        let line = Line::new("a", Priority::Medium);
        let mut streams = Streams::new(DAY);
        assert_eq!(streams.free(&line, 50), None);
        streams.hear(std::slice::from_ref(&line), &[10]);
        let (first, second) = (batch(&line, 15), batch(&line, 20));
        streams.expect(&first);
        assert_eq!(streams.free(&line, 50), Some(25));
        streams.expect(&second);
        assert_eq!(streams.free(&line, 50), Some(5));
        // The answer to the first knows nothing of the second.
        streams.hear(std::slice::from_ref(&line), &[25]);
        streams.arrived(&first);
        assert_eq!(streams.free(&line, 50), Some(5));
        streams.hear(std::slice::from_ref(&line), &[45]);
        streams.arrived(&second);
        assert_eq!(streams.free(&line, 50), Some(5));
        assert_eq!(streams.free(&line, 40), Some(0));
    }

    #[test]
    fn an_empty_stream_is_asked_now_and_then_whether_it_may_leave_and_is_forgotten_when_it_has() {
        let quarter = Duration::from_secs(15 * 60);
        let lines = ["empty", "used", "coming"].map(|queue| Line::new(queue, Priority::Medium));
        let [empty, used, coming] = &lines;
        let mut streams = Streams::new(DAY);
        streams.hear(&lines, &[0, 3, 0]);
        let mut now = Instant::now();
        assert_eq!(streams.may_leave(now), None, "not at once");
        now += quarter;
        streams.expect(&batch(coming, 1));
        let asked: Vec<Option<Line>> = (0..3).map(|_| streams.may_leave(now)).collect();
        assert_eq!(asked.iter().flatten().collect::<Vec<_>>(), [empty], "each once");
        now += quarter;
        streams.hear(std::slice::from_ref(empty), &[1]);
        assert!((0..3).all(|_| streams.may_leave(now).is_none()), "it was used");
        streams.hear(std::slice::from_ref(empty), &[0]);
        streams.left(empty);
        let many: Vec<Line> = (0..20).map(|n| Line::new(format!("{n:02}"), Priority::Medium)).collect();
        streams.hear(&many, &[0; 20]);
        // Fewer questions than there are streams: all are due again before the last was asked.
        let asked: std::collections::HashSet<_> =
            (1..=21).filter_map(|turn| streams.may_leave(now + quarter * turn)).collect();
        assert_eq!(asked.len(), 20, "each in its turn");
        many.iter().for_each(|line| streams.left(line));
        assert!((0..3).all(|_| streams.may_leave(now + quarter).is_none()));
        assert_eq!(streams.some_lines(), [coming.clone(), used.clone()]);
        assert_eq!(streams.free(empty, 50), None, "Redis is asked before it is filled again");
    }
}
