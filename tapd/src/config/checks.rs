//! Checks that nodes and networks share.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;

use encap::wire::ethernet::MacAddr;
use fastpath::error::OpenError;
use fastpath::interface;

use super::MAX_NAME_LEN;
use super::fault::{At, Collector, Located};
use super::fields::Field;

/// A value, or its default where the key is absent (or at fault already).
pub(super) fn or<T>(field: Field<T>, default: T) -> T {
    field.map_or(default, |located| located.value)
}

/// Finds values that occur twice.
pub(super) struct Unique<T> {
    what: &'static str,
    seen: HashMap<T, At>,
}

impl<T: Display + Hash + Eq> Unique<T> {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, seen: HashMap::new() }
    }

    pub(super) fn check(&mut self, value: T, at: At, faults: &mut Collector) {
        let what = self.what;
        if let Some(first) = self.seen.get(&value) {
            faults.add(
                at,
                format!(
                    "{what} {value} is taken already in {}; choose another",
                    first.seen_from(at)
                ),
            );
        } else {
            self.seen.insert(value, at);
        }
    }
}

/// A name that people type: letters, digits, `.`, `_`, `-`, and not all digits.
pub(super) fn check_name(what: &str, name: &Located<String>, faults: &mut Collector) {
    let text = &name.value;
    let fault = if text.is_empty() {
        "is empty; remove the key or write a name".to_owned()
    } else if text.len() > MAX_NAME_LEN {
        format!("is {} bytes long; keep it to {MAX_NAME_LEN}", text.len())
    } else if text.bytes().all(|byte| byte.is_ascii_digit()) {
        "looks like an id; add a letter".to_owned()
    } else if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
        "may only have letters, digits, '.', '_' and '-'".to_owned()
    } else {
        return;
    };
    faults.add(name.at, format!("{what} name {text:?} {fault}"));
}

/// A name that the kernel takes for a tap.
pub(super) fn check_tap_name(tap: &Located<String>, faults: &mut Collector) {
    if !interface::is_valid_name(&tap.value) {
        faults.add(tap.at, OpenError::InvalidName(tap.value.clone()).to_string());
    }
}

/// A MAC address that a station can have.
pub(super) fn check_station(what: &str, mac: &Located<MacAddr>, faults: &mut Collector) {
    if mac.value.is_multicast() || mac.value.is_zero() {
        let advice = "is not a station's address; write a unicast one";
        faults.add(mac.at, format!("{what} {} {advice}", mac.value));
    }
}
