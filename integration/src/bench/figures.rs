//! Figures of scenarios that are not measured in cells: any contenders, any metrics.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::report::Row;
use crate::stats::Spread;

/// Who was measured.
pub(super) trait Contestant: Copy + Ord {
    /// As in tables and JSON.
    fn name(self) -> &'static str;
}

/// What was measured.
pub(super) trait Quantity: Copy + Ord {
    /// As in tables and JSON.
    fn name(self) -> &'static str;
    /// The unit of its values.
    fn unit(self) -> &'static str;
}

/// What is good enough.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bar {
    /// The ratio is at least this.
    AtLeast(f64),
    /// The ratio is at most this.
    AtMost(f64),
    /// The ratio is told, and not judged.
    None,
}

/// A comparison of two contenders, and the bar for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Goal<W, M> {
    /// Its name in docs/performance.md; may be empty.
    pub(super) name: &'static str,
    /// Whose median is above the line.
    pub(super) who: W,
    /// Whose median is below it.
    pub(super) rival: W,
    /// Of what.
    pub(super) what: M,
    /// What the ratio is to be.
    pub(super) bar: Bar,
}

/// All figures of a run.
#[derive(Debug)]
pub(super) struct Figures<W, M>(BTreeMap<(W, M), Vec<f64>>);

impl<W: Contestant, M: Quantity> Figures<W, M> {
    /// None yet.
    pub(super) const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Adds what a round measured.
    pub(super) fn add(&mut self, who: W, values: &[(M, f64)]) {
        for (what, value) in values {
            self.0.entry((who, *what)).or_default().push(*value);
        }
    }

    fn spread(&self, who: W, what: M) -> Option<Spread> {
        Spread::of(self.0.get(&(who, what))?)
    }

    fn ratio(&self, goal: &Goal<W, M>) -> Option<f64> {
        let rival = self.spread(goal.rival, goal.what).filter(|spread| spread.median > 0.0)?;
        Some(self.spread(goal.who, goal.what)?.median / rival.median)
    }

    /// Median and extremes of every figure.
    pub(super) fn table(&self, scenario: &str) -> String {
        let mut text = format!("\n{scenario}: median [least..greatest]\n");
        let mut last = None;
        for ((who, what), values) in &self.0 {
            let Some(spread) = Spread::of(values) else { continue };
            if last.replace(*who) != Some(*who) {
                let _ = writeln!(text, "{}", who.name());
            }
            let _ = writeln!(
                text,
                "    {:<28}{:>10.2} [{:.2}..{:.2}] {}",
                what.name(),
                spread.median,
                spread.min,
                spread.max,
                what.unit()
            );
        }
        text
    }

    /// A line for every goal that was measured.
    pub(super) fn bars(&self, goals: &[Goal<W, M>]) -> String {
        let mut text =
            String::from("\nratios; figures of a busy or shared machine decide nothing\n");
        for goal in goals {
            let Some(ratio) = self.ratio(goal) else { continue };
            let verdict = match goal.bar {
                Bar::AtLeast(bar) if ratio >= bar => format!(">= {bar:<6} met"),
                Bar::AtLeast(bar) => format!(">= {bar:<6} missed"),
                Bar::AtMost(bar) if ratio <= bar => format!("<= {bar:<6} met"),
                Bar::AtMost(bar) => format!("<= {bar:<6} missed"),
                Bar::None => String::new(),
            };
            let pair = format!("{} / {}", goal.who.name(), goal.rival.name());
            let (name, what) = (goal.name, goal.what.name());
            let _ = writeln!(text, "{name:<9}{what:<26}{pair:<46}{ratio:>6.2}  {verdict}");
        }
        text
    }

    /// All of it for the JSON file.
    pub(super) fn rows(&self, scenario: &'static str, goals: &[Goal<W, M>]) -> Vec<Row> {
        let mut rows = Vec::new();
        let row = |who: W, rival: Option<W>, what: M, ratio: Option<f64>| {
            Some(Row {
                scenario,
                contender: who.name(),
                rival: rival.map(W::name),
                metric: what.name(),
                unit: what.unit(),
                spread: self.spread(who, what)?,
                ratio,
                version: None,
            })
        };
        for (who, what) in self.0.keys() {
            rows.extend(row(*who, None, *what, None));
        }
        for goal in goals {
            if let Some(ratio) = self.ratio(goal) {
                rows.extend(row(goal.who, Some(goal.rival), goal.what, Some(ratio)));
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    enum Who {
        Ours,
        Fast,
        Absent,
    }

    impl Contestant for Who {
        fn name(self) -> &'static str {
            ["ours", "fast", "absent"][self as usize]
        }
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    struct Speed;

    impl Quantity for Speed {
        fn name(self) -> &'static str {
            "speed"
        }

        fn unit(self) -> &'static str {
            "m/s"
        }
    }

    #[test]
    fn bars_are_judged_by_what_was_measured() {
        let mut figures = Figures::new();
        figures.add(Who::Ours, &[(Speed, 3.0), (Speed, 1.0), (Speed, 2.0)]);
        figures.add(Who::Fast, &[(Speed, 4.0)]);
        let goal = |name, rival, bar| Goal { name, who: Who::Ours, rival, what: Speed, bar };
        let goals = [
            goal("a", Who::Fast, Bar::AtLeast(0.5)),
            goal("b", Who::Fast, Bar::AtLeast(0.6)),
            goal("c", Who::Fast, Bar::AtMost(0.5)),
            goal("d", Who::Fast, Bar::AtMost(0.4)),
            goal("e", Who::Fast, Bar::None),
            goal("f", Who::Absent, Bar::AtLeast(0.0)),
        ];
        let text = figures.bars(&goals);
        let line = |name: &str| text.lines().find(|line| line.starts_with(name));
        let says = |name, word| line(name).is_some_and(|line| line.ends_with(word));
        assert!(says("a", "met") && says("b", "missed"), "{text}");
        assert!(says("c", "met") && says("d", "missed") && line("e").is_some(), "{text}");
        assert!(line("f").is_none(), "{text}");
        let rows = figures.rows("here", &goals);
        assert_eq!(rows.iter().filter(|row| row.ratio == Some(0.5)).count(), 5);
        assert!(
            figures.table("here").contains("2.00 [1.00..3.00] m/s"),
            "{}",
            figures.table("here")
        );
    }
}
