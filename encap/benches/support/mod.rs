//! The stages of a frame's life, each by itself: the same cases for the clock (`stages`) and for
//! the count of instructions (`instructions`).

mod frames;
mod packets;
mod pair;
mod parts;

use encap::crypto::aead::Suite;

/// A stage that can be run again and again.
pub trait Stage {
    /// Frames that one [`Self::work`] takes through; a segment is a frame.
    fn frames(&self) -> usize;
    /// Makes what the next [`Self::work`] takes. Not measured.
    fn prepare(&mut self);
    /// What is measured; gives the number of frames that came through, which is to be
    /// [`Self::frames`]: who measures drops measures nothing.
    fn work(&mut self) -> usize;
}

/// A stage by its name.
pub struct Case {
    /// `stage-size`, or `stage-size/suite` where the suite matters.
    pub name: String,
    /// Whether its instructions are counted in every test run. Those of AEGIS are not: most are
    /// the C compiler's choice.
    pub is_counted: bool,
    /// Sets the stage up.
    pub make: Box<dyn Fn() -> Box<dyn Stage>>,
}

impl Case {
    fn new<S: Stage + 'static>(name: impl Into<String>, make: impl Fn() -> S + 'static) -> Self {
        Self { name: name.into(), is_counted: true, make: Box::new(move || Box::new(make())) }
    }

    fn of_suite<S: Stage + 'static>(
        name: &str,
        suite: Suite,
        make: impl Fn() -> S + 'static,
    ) -> Self {
        let is_counted = matches!(suite, Suite::Clear | Suite::Aes256Gcm);
        Self { is_counted, ..Self::new(format!("{name}/{}", suite.name()), make) }
    }
}

/// Every case, in packet order.
pub fn cases() -> Vec<Case> {
    let mut cases = parts::before_sealing();
    for suite in Suite::ALL {
        cases.push(Case::of_suite("seal-1400", suite, move || parts::Seal::new(suite, 1_400)));
    }
    for suite in [Suite::Clear, Suite::Aes256Gcm] {
        cases.extend(packets::cases(suite));
    }
    for suite in Suite::ALL.into_iter().filter(|suite| *suite != Suite::Clear) {
        cases.push(Case::of_suite("open-1400", suite, move || parts::Open::new(suite, 1_400)));
    }
    cases.extend(parts::behind_opening());
    cases
}
