//! Periods of recovery: one reduction for all losses of a round trip, and the way back.

use std::time::Instant;

/// What was reduced by the newest congestion event, to be restored if it was none.
#[derive(Debug, Clone, Copy)]
struct Undo<S> {
    state: S,
    /// When the period before began: what was sent earlier is none of this one's packets.
    after: Option<Instant>,
    /// Bytes declared lost in this period that did not arrive after all.
    lost: u64,
}

/// The newest period of recovery (RFC 9002 section 7.3.2). `S` is the state of a controller.
#[derive(Debug, Clone)]
pub(super) struct Episodes<S> {
    start: Option<Instant>,
    undo: Option<Undo<S>>,
}

impl<S> Default for Episodes<S> {
    fn default() -> Self {
        Self { start: None, undo: None }
    }
}

impl<S: Copy> Episodes<S> {
    /// Whether a packet sent then knows nothing of the newest reduction yet.
    pub(super) fn covers(&self, sent: Instant) -> bool {
        self.start.is_some_and(|start| sent <= start)
    }

    /// Takes a loss in; says whether it begins a period, so that the window is to be reduced.
    pub(super) fn on_loss(&mut self, now: Instant, sent: Instant, lost: u64, state: S) -> bool {
        if self.covers(sent) {
            if let Some(undo) = &mut self.undo {
                undo.lost = undo.lost.saturating_add(lost);
            }
            return false;
        }
        self.undo = Some(Undo { state, after: self.start, lost });
        self.start = Some(now);
        true
    }

    /// The same for congestion that a router reported, which cannot turn out to be none.
    pub(super) fn on_mark(&mut self, now: Instant, sent: Instant) -> bool {
        self.undo = None;
        if self.covers(sent) {
            return false;
        }
        self.start = Some(now);
        true
    }

    /// A lost packet arrived. Gives the state to go back to when it was the last one missing.
    pub(super) fn on_spurious(&mut self, sent: Instant, bytes: u64) -> Option<S> {
        let is_older = |undo: &Undo<S>| undo.after.is_some_and(|after| sent <= after);
        if !self.covers(sent) || self.undo.as_ref().is_none_or(is_older) {
            return None;
        }
        let undo = self.undo.as_mut()?;
        undo.lost = undo.lost.saturating_sub(bytes);
        if undo.lost > 0 {
            return None;
        }
        let before = undo.after;
        let state = undo.state;
        // The period never was: what is lost next begins one.
        *self = Self { start: before, undo: None };
        Some(state)
    }

    /// Persistent congestion: no way back, and nothing that was sent until now counts any more.
    /// RFC 9002 appendix B.8 forgets the period instead; then a late loss of the same blackout
    /// would be a new event and take the threshold away that slow start climbs to.
    pub(super) fn on_persistent(&mut self, now: Instant) {
        *self = Self { start: Some(now), undo: None };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn one_reduction_for_all_losses_of_a_round_trip() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let mut episodes = Episodes::default();
        assert!(!episodes.covers(at(1)));
        assert!(episodes.on_loss(at(20), at(1), 100, 'a'));
        assert!(!episodes.on_loss(at(21), at(2), 100, 'b'));
        assert!(episodes.covers(at(20)) && !episodes.covers(at(21)));
        assert!(episodes.on_loss(at(45), at(21), 100, 'c'));
    }

    #[test]
    fn goes_back_when_all_losses_were_none() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let mut episodes = Episodes::default();
        assert!(episodes.on_loss(at(20), at(1), 100, 'a'));
        assert!(!episodes.on_loss(at(21), at(2), 50, 'b'));
        assert_eq!(episodes.on_spurious(at(2), 50), None);
        assert_eq!(episodes.on_spurious(at(1), 100), Some('a'));
        // Once only, and the next loss is a new event.
        assert_eq!(episodes.on_spurious(at(1), 100), None);
        assert!(episodes.on_loss(at(22), at(3), 100, 'd'));
    }

    #[test]
    fn does_not_go_back_for_older_packets_or_marks() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let mut episodes = Episodes::default();
        assert!(episodes.on_loss(at(20), at(1), 100, 'a'));
        assert!(episodes.on_loss(at(50), at(30), 100, 'b'));
        assert_eq!(episodes.on_spurious(at(1), 100), None, "of the period before");
        assert_eq!(episodes.on_spurious(at(51), 100), None, "of none yet");
        assert!(!episodes.on_mark(at(51), at(31)));
        assert_eq!(episodes.on_spurious(at(30), 100), None, "a router said so too");
        episodes.on_persistent(at(90));
        assert!(!episodes.on_loss(at(91), at(90), 100, 'c'));
        assert_eq!(episodes.on_spurious(at(90), 100), None);
    }
}
