//! The tools of the tests with several links, without tapd: cables that fail, bad cables, flows.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use integration::flow::{Flow, FlowOptions};
use integration::lanes::{Cut, LaneSpec, Lanes, Side};
use integration::skip::case;
use integration::topology::{Family, Offloads};
use integration::traffic::{ping, ping_all};
use integration::wait;

const PATIENCE: Duration = Duration::from_secs(5);

/// A flow by one lane, forth (alpha to beta) or back.
fn flow(lanes: &Lanes, number: usize, forth: bool) -> Result<Flow> {
    let lane = lanes.lane(number)?;
    let (alpha, beta) = ((&*lanes.alpha, lane.alpha), (&*lanes.beta, lane.beta));
    let (from, to) = if forth { (alpha, beta) } else { (beta, alpha) };
    let flow = Flow::start(from, to, FlowOptions::at(1000.0))?;
    flow.wait_received(50, PATIENCE)?;
    Ok(flow)
}

/// Whether nothing arrives for a while, in which much should.
fn is_cut(flow: &Flow) -> Result<bool> {
    let (sent, received) = (flow.sent(), flow.received());
    wait::until("100 more to be sent", PATIENCE, || flow.sent() >= sent + 100)?;
    Ok(flow.received() <= received)
}

#[test]
fn harness_lanes_are_cut_and_healed_in_every_way() {
    case(|| {
        for family in [Family::V4, Family::V6] {
            let lanes = Lanes::plain(family, 2)?;
            let flows = [flow(&lanes, 0, true)?, flow(&lanes, 0, false)?];
            let other = flow(&lanes, 1, true)?;
            for how in Cut::ALL {
                let cut = lanes.cut(0, how)?;
                ensure!(cut.after - cut.before < Duration::from_millis(200), "{how:?}: {cut:?}");
                let wanted = match how {
                    Cut::DropIn => [false, true],
                    Cut::DropOut => [true, false],
                    _ => [true, true],
                };
                for (flow, wanted) in flows.iter().zip(wanted) {
                    ensure!(is_cut(flow)? == wanted, "{how:?} over {family:?}");
                }
                lanes.heal(0, how)?;
                for flow in &flows {
                    flow.wait_received(20, PATIENCE)?;
                }
            }
            let outcome = other.finish()?;
            ensure!(outcome.lost == 0, "the other lane: {outcome:?}");
        }
        Ok(())
    });
}

#[test]
fn harness_flow_measures_the_gap_of_a_cut() {
    case(|| {
        let lanes = Lanes::plain(Family::V4, 2)?;
        let flow = flow(&lanes, 0, true)?;
        let cut = lanes.cut(0, Cut::DropOut)?;
        let span = Duration::from_millis(150);
        wait::until("a while", PATIENCE, || cut.after.elapsed() >= span)?;
        lanes.heal(0, Cut::DropOut)?;
        let healed = Instant::now();
        flow.wait_received(100, PATIENCE)?;
        let took = (healed - cut.before).as_secs_f64() * 1e3;
        let outcome = flow.outcome(cut.before, healed);
        ensure!(outcome.raw_gap_ms >= 150.0 && outcome.raw_gap_ms <= took + 20.0, "{outcome:?}");
        ensure!(outcome.gap_ms <= outcome.raw_gap_ms, "{outcome:?}");
        ensure!(outcome.lost >= 100 && outcome.lost <= outcome.sent, "{outcome:?}");
        let before = flow.outcome(cut.before - Duration::from_millis(30), cut.before);
        ensure!(before.lost == 0 && before.sent > 0, "{before:?}");
        // Lost are those of the gap and no others.
        let all = flow.finish()?;
        ensure!(all.lost.abs_diff(outcome.lost) < 20, "{all:?} after {outcome:?}");
        ensure!(all.duplicated + all.reordered + all.damaged == 0, "{all:?}");
        Ok(())
    });
}

#[test]
fn harness_flow_keeps_10000_per_second() {
    case(|| {
        let lanes = Lanes::new(&[LaneSpec::new(Family::V4).with_mtu(9000)])?;
        let lane = lanes.lane(0)?;
        let begin = Instant::now();
        let ends = [(&*lanes.alpha, lane.alpha), (&*lanes.beta, lane.beta)];
        let options = FlowOptions::at(10_000.0).with_payload(8000).with_tos(0xb8);
        let flow = Flow::start(ends[0], ends[1], options)?;
        flow.wait_received(5_000, PATIENCE)?;
        let outcome = flow.finish()?;
        let rate = outcome.sent as f64 / begin.elapsed().as_secs_f64();
        ensure!(rate > 7_000.0 && rate < 10_200.0, "{rate} per second: {outcome:?}");
        ensure!(outcome.lost + outcome.damaged + outcome.duplicated == 0, "{outcome:?}");
        ensure!(outcome.gap_ms < 100.0, "{outcome:?}");
        Ok(())
    });
}

#[test]
fn harness_relay_impairs_as_asked() {
    case(|| {
        let lanes = Lanes::new(&[
            LaneSpec::new(Family::V4).relayed(),
            LaneSpec::new(Family::V6).with_mtu(9000).relayed(),
        ])?;
        for lane in &lanes.lanes {
            let Some(relay) = &lane.relay else { anyhow::bail!("no relay") };
            ping_all(&lanes.alpha, lane.beta)?;
            let large = ping(&lanes.beta, lane.alpha, 5, 1300)?;
            ensure!(large.received == 5, "{large:?}");

            let ends = [(&*lanes.alpha, lane.alpha), (&*lanes.beta, lane.beta)];
            let options = FlowOptions::at(10_000.0);
            let flow = Flow::start(ends[0], ends[1], options)?;
            flow.wait_received(1_000, PATIENCE)?;
            let clean = flow.finish()?;
            ensure!(clean.lost + clean.duplicated + clean.reordered == 0, "{clean:?}");

            relay.forth.set_loss(0.1);
            relay.forth.set_duplication(0.1);
            relay.forth.set_reordering(0.1, Duration::from_millis(2));
            relay.forth.set_delay(Duration::from_millis(3), Duration::from_millis(1));
            let flow = Flow::start(ends[0], ends[1], options)?;
            flow.wait_received(5_000, PATIENCE)?;
            let bad = flow.finish()?;
            let share = |count: u64| count as f64 / bad.sent as f64;
            ensure!((0.05..0.15).contains(&share(bad.lost)), "{bad:?}");
            ensure!((0.05..0.15).contains(&share(bad.duplicated)), "{bad:?}");
            ensure!((0.03..0.2).contains(&share(bad.reordered)), "{bad:?}");
            let counts = relay.forth.counts();
            ensure!(counts.lost > 0 && counts.duplicated > 0 && counts.reordered > 0);
            ensure!(relay.back.counts().lost == 0);
            relay.forth.clear();
            ping_all(&lanes.alpha, lane.beta)?;
        }
        Ok(())
    });
}

#[test]
fn harness_rules_judge_what_arrives() {
    case(|| {
        let lanes = Lanes::plain(Family::V4, 2)?;
        lanes.set_offloads(Offloads::Bare)?;
        let to = lanes.lane(1)?.beta;
        lanes.add_rule(Side::Beta, 1, "ip length > 1000 drop")?;
        ping_all(&lanes.alpha, to)?;
        ensure!(ping(&lanes.alpha, to, 3, 972)?.received == 3);
        ensure!(ping(&lanes.alpha, to, 3, 973)?.received == 0);
        lanes.clear_rules(Side::Beta, 1)?;
        ensure!(ping(&lanes.alpha, to, 3, 1472)?.received == 3);
        // About one in a hundred, as the overload test wants it.
        lanes.add_rule(Side::Beta, 1, "numgen random mod 100 < 50 drop")?;
        let some = ping(&lanes.alpha, to, 50, 56)?;
        ensure!(some.received > 5 && some.received < 45, "{some:?}");
        Ok(())
    });
}
