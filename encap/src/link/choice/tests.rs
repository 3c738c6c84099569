//! What moves frames, and what does not.

use super::*;
use crate::link::profile::FAST;
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

const GOOD: Candidate = Candidate {
    state: State::Up,
    sendable: true,
    heard_by_peer: true,
    drained: false,
    priority: 10,
    weight: 1,
    loss: 0.0,
    srtt: Duration::from_micros(500),
};
const DEAD: Candidate =
    Candidate { state: State::Down, sendable: false, heard_by_peer: false, ..GOOD };
const DRAINED: Candidate = Candidate { drained: true, ..GOOD };

fn link(index: u8) -> LinkIndex {
    LinkIndex::new(index).unwrap()
}

fn best(order: &Order) -> Vec<u8> {
    order.best.iter().map(|link| link.get()).collect()
}

fn moved(from: u8, to: u8, cause: MoveCause) -> Option<Moved> {
    Some(Moved { from: link(from), to: link(to), cause })
}

/// The order of links that all come up at once.
fn order_of(links: &[Candidate]) -> Vec<u8> {
    best(&Choice::new(FAST).update(Instant::now(), links))
}

#[test]
fn order_is_priority_loss_time_index() {
    let lossy = |loss| Candidate { loss, ..GOOD };
    let slow = |us| Candidate { srtt: Duration::from_micros(us), ..GOOD };
    let wanted = |priority, loss| Candidate { priority, loss, ..GOOD };
    assert_eq!(order_of(&[]), [0; 0]);
    assert_eq!(order_of(&[GOOD, GOOD, GOOD]), [0, 1, 2]);
    assert_eq!(order_of(&[wanted(1, 0.0), wanted(2, 0.5), wanted(3, 0.9)]), [2, 1, 0]);
    // Less than a percentage point, than half the time, than a millisecond: does not count.
    assert_eq!(order_of(&[lossy(0.02), lossy(0.015), lossy(0.0)]), [2, 0, 1]);
    assert_eq!(order_of(&[slow(4_000), slow(2_100), slow(1_900)]), [2, 0, 1]);
    assert_eq!(order_of(&[slow(900), slow(100), slow(0)]), [0, 1, 2]);
    assert_eq!(order_of(&[lossy(f64::NAN), GOOD]), [0, 1]);
    // What is not up is a guess, and better than nothing.
    assert_eq!(order_of(&[DEAD, DEAD]), [0, 1]);
    assert_eq!(order_of(&[DEAD, GOOD, DEAD]), [1]);
    assert_eq!(order_of(&[DRAINED, GOOD]), [1]);
    assert_eq!(order_of(&[DRAINED, DEAD]), [0]);
}

#[test]
fn fails_over_at_once_and_back_after_the_hold() {
    let start = Instant::now();
    let mut choice = Choice::new(FAST);
    assert_eq!(best(&choice.update(start, &[GOOD, GOOD])), [0, 1]);
    let order = choice.update(start, &[DEAD, GOOD]);
    assert_eq!((best(&order), order.moved), (vec![1], moved(0, 1, MoveCause::FailOver)));
    assert_eq!((order.fade, choice.poll_timeout()), (None, None));
    assert_eq!(choice.update(start, &[DEAD, GOOD]).moved, None);
    // Back: among the live ones at once, among the best after the hold.
    let back = start + S;
    let order = choice.update(back, &[GOOD, GOOD]);
    assert_eq!((best(&order), order.live.len(), order.moved), (vec![1], 2, None));
    assert_eq!(choice.poll_timeout(), Some(back + FAST.hold));
    assert_eq!(choice.update(back + FAST.hold - MS, &[GOOD, GOOD]).moved, None);
    let order = choice.update(back + FAST.hold, &[GOOD, GOOD]);
    assert_eq!((best(&order), order.moved), (vec![0, 1], moved(1, 0, MoveCause::FailBack)));
    // Make before break: the old one gets copies for a moment.
    let until = back + FAST.hold + FADE;
    assert_eq!((order.fade, choice.poll_timeout()), (Some((link(1), until)), Some(until)));
    assert_eq!(choice.update(until, &[GOOD, GOOD]).fade, None);
}

#[test]
fn a_held_link_is_used_where_there_is_no_other() {
    let start = Instant::now();
    let mut choice = Choice::new(FAST);
    choice.update(start, &[GOOD, GOOD]);
    choice.update(start, &[DEAD, GOOD]);
    choice.update(start, &[GOOD, GOOD]);
    let order = choice.update(start, &[GOOD, DEAD]);
    assert_eq!((best(&order), order.moved), (vec![0], moved(1, 0, MoveCause::FailOver)));
    // Now it is link 1 that has to wait.
    let order = choice.update(start, &[GOOD, GOOD]);
    assert_eq!(best(&order), [0]);
    let order = choice.update(start + FAST.hold, &[GOOD, GOOD]);
    assert_eq!((best(&order), order.moved), (vec![0, 1], None));
}

#[test]
fn flapping_doubles_the_hold_and_time_halves_it() {
    let mut now = Instant::now();
    let mut choice = Choice::new(FAST);
    choice.update(now, &[GOOD, GOOD]);
    let hold = |choice: &mut Choice, now: &mut Instant| {
        choice.update(*now, &[DEAD, GOOD]);
        choice.update(*now, &[GOOD, GOOD]);
        let begun = *now;
        while choice.update(*now, &[GOOD, GOOD]).moved.is_none() {
            *now = choice.poll_timeout().unwrap();
        }
        (*now - begun).as_secs()
    };
    let holds: Vec<u64> = (0..3).map(|_| hold(&mut choice, &mut now)).collect();
    assert_eq!(holds, [5, 10, 20]);
    // A fourth time, and before that is over a minute's forgiveness of the third one's 20 s.
    now += FORGIVE - S * 20;
    assert_eq!(hold(&mut choice, &mut now), 20);
    now += FORGIVE * 5;
    assert_eq!(hold(&mut choice, &mut now), 5);
    for _ in 0..20 {
        choice.update(now, &[DEAD, GOOD]);
        choice.update(now, &[GOOD, GOOD]);
    }
    assert_eq!(choice.poll_timeout(), Some(now + FAST.max_hold));
}

#[test]
fn nothing_is_held_at_the_start_of_a_session() {
    let start = Instant::now();
    let mut choice = Choice::new(FAST);
    assert_eq!(best(&choice.update(start, &[DEAD, DEAD])), [0, 1]);
    let order = choice.update(start, &[DEAD, GOOD]);
    assert_eq!((best(&order), order.moved), (vec![1], None));
    let order = choice.update(start + MS * 5, &[GOOD, GOOD]);
    assert_eq!((best(&order), order.moved), (vec![0, 1], moved(1, 0, MoveCause::Preferred)));
    choice.reset();
    assert_eq!(choice.update(start + S, &[GOOD, GOOD]).moved, None);
    // One that comes much later has to wait like any other.
    let mut choice = Choice::new(FAST);
    choice.update(start, &[DEAD, GOOD]);
    let order = choice.update(start + S * 60, &[GOOD, GOOD]);
    assert_eq!((best(&order), order.live.len()), (vec![1], 2));
}

#[test]
fn a_drain_fades_and_drained_links_are_the_last_resort() {
    let start = Instant::now();
    let mut choice = Choice::new(FAST);
    let slow = Candidate { srtt: MS * 20, ..DRAINED };
    choice.update(start, &[Candidate { drained: false, ..slow }, slow]);
    let order = choice.update(start, &[slow, Candidate { drained: false, ..slow }]);
    assert_eq!((best(&order), order.moved), (vec![1], moved(0, 1, MoveCause::Drain)));
    assert_eq!(order.live, LinkSet::only(link(1)));
    assert_eq!(order.fade, Some((link(0), start + MS * 40)));
    let order = choice.update(start, &[slow, DEAD]);
    assert_eq!((best(&order), order.live), (vec![0], LinkSet::only(link(0))));
    assert_eq!(order.fade, None);
}

#[test]
fn a_better_link_is_preferred_after_the_hold_without_a_break() {
    let start = Instant::now();
    let mut choice = Choice::new(FAST);
    let lossy = Candidate { loss: 0.05, ..GOOD };
    choice.update(start, &[GOOD, GOOD]);
    choice.update(start, &[lossy, GOOD]);
    choice.update(start + S * 3, &[GOOD, GOOD]);
    assert_eq!(choice.update(start + S * 4, &[lossy, GOOD]).moved, None);
    assert_eq!(choice.update(start + S * 8, &[lossy, GOOD]).moved, None);
    let order = choice.update(start + S * 9, &[lossy, GOOD]);
    assert_eq!(order.moved, moved(0, 1, MoveCause::Preferred));
}

#[test]
fn links_of_which_each_is_better_than_the_next_do_not_spin() {
    let start = Instant::now();
    let mut choice = Choice::new(FAST);
    let like = |loss, ms| Candidate { loss, srtt: MS * ms, ..GOOD };
    let links = [like(0.0, 100), like(0.009, 40), like(0.018, 10)];
    let mut moves = 0;
    for second in 0..100 {
        moves += u32::from(choice.update(start + S * second, &links).moved.is_some());
    }
    assert!(moves <= 20, "{moves}");
}

fn candidate() -> impl Strategy<Value = Candidate> {
    let state = prop_oneof![Just(State::Up), Just(State::Suspect), Just(State::Down)];
    let flags = (any::<bool>(), any::<bool>(), prop::bool::weighted(0.2));
    (state, flags, 0_u8..3, 0.0..0.1_f64, 0_u64..20_000).prop_map(
        |(state, (sendable, heard_by_peer, drained), priority, loss, us)| Candidate {
            state,
            sendable,
            heard_by_peer,
            drained,
            priority,
            weight: 1,
            loss,
            srtt: Duration::from_micros(us),
        },
    )
}

proptest! {
    #[test]
    fn there_is_always_an_order(
        steps in prop::collection::vec(
            (prop::collection::vec(candidate(), 1..=8), 0_u64..20_000), 1..60),
    ) {
        let mut now = Instant::now();
        let mut choice = Choice::new(FAST);
        let mut first = None;
        for (links, ms) in steps {
            now += MS * ms as u32;
            let order = choice.update(now, &links);
            let set: LinkSet = order.best.iter().copied().collect();
            prop_assert!(!order.best.is_empty() && set.len() == order.best.len());
            prop_assert!(order.best.iter().all(|link| link.at() < links.len()));
            prop_assert!(order.live.contains(order.best[0]));
            prop_assert!(choice.poll_timeout().is_none_or(|due| due > now));
            if let Some(moved) = order.moved {
                prop_assert_eq!(Some(moved.from), first);
                prop_assert!(moved.to == order.best[0] && moved.to != moved.from);
            }
            let in_service = links.iter().any(|link| link.sendable && !link.drained);
            let sendable = links.iter().any(|link| link.sendable);
            for link in &order.best {
                let link = links[link.at()];
                prop_assert!(link.sendable || !sendable);
                prop_assert!(!link.drained || !in_service);
            }
            if let Some((fading, until)) = order.fade {
                prop_assert!(until > now && until <= now + LONGEST_FADE);
                prop_assert!(fading != order.best[0]);
            }
            // Unchanged input changes nothing.
            let again = choice.update(now, &links);
            prop_assert_eq!(&again, &Order { moved: None, ..order.clone() });
            first = Some(order.best[0]);
        }
    }
}
