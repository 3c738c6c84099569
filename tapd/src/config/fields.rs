//! A table of the tree being read: the types of its values, each fault with its line.

use std::ops::RangeInclusive;
use std::str::FromStr;

use super::fault::{At, Collector, Located};
use super::sections::{Section, unknown_key};
use super::tree::{Item, Table, Value};

/// A value that may be absent, or at fault already.
pub(super) type Field<T> = Option<Located<T>>;

/// A table being read: knows its section's keys.
pub(super) struct Fields<'t, 'f> {
    table: &'t Table,
    section: &'static Section,
    pub(super) faults: &'f mut Collector,
}

impl<'t, 'f> Fields<'t, 'f> {
    pub(super) fn open(
        table: &'t Table,
        section: &'static Section,
        faults: &'f mut Collector,
    ) -> Self {
        for entry in &table.entries {
            if !section.keys.contains(&entry.key.as_str()) {
                faults.add(entry.key_at, unknown_key(&entry.key, section));
            }
        }
        Self { table, section, faults }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'t Item> {
        debug_assert!(self.section.keys.contains(&key), "{key} is not in the section's list");
        self.table.get(key)
    }

    /// Notes a key that has no default and is not there.
    pub(super) fn require(&mut self, at: At, key: &str, advice: &str) {
        if self.get(key).is_none() {
            self.faults.add(at, format!("{} has no {key}; {advice}", self.section.title));
        }
    }

    pub(super) fn wrong(&mut self, item: &Item, key: &str, expected: &str) {
        let kind = item.value.kind();
        self.faults.add(item.at, format!("{key} must be {expected}, not {kind}"));
    }

    pub(super) fn text(&mut self, key: &str) -> Field<String> {
        let item = self.get(key)?;
        match &item.value {
            Value::Text(text) => Some(Located { at: item.at, value: text.clone() }),
            _ => {
                self.wrong(item, key, "a string in quotes");
                None
            }
        }
    }

    pub(super) fn boolean(&mut self, key: &str) -> Field<bool> {
        let item = self.get(key)?;
        match item.value {
            Value::Boolean(value) => Some(Located { at: item.at, value }),
            _ => {
                self.wrong(item, key, "true or false, without quotes");
                None
            }
        }
    }

    pub(super) fn integer<T: TryFrom<i64>>(
        &mut self,
        key: &str,
        range: RangeInclusive<i64>,
    ) -> Field<T> {
        let item = self.get(key)?;
        let (least, most) = (range.start(), range.end());
        let Value::Integer(number) = item.value else {
            self.wrong(item, key, &format!("a whole number from {least} to {most}"));
            return None;
        };
        let value = range.contains(&number).then(|| T::try_from(number).ok()).flatten();
        if value.is_none() {
            self.faults.add(
                item.at,
                format!("{key} = {number} is out of range; choose {least} to {most}"),
            );
        }
        Some(Located { at: item.at, value: value? })
    }

    /// A string that `parse` accepts, or whose fault it says: what stands behind `key = "text" `.
    pub(super) fn parsed<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Field<T> {
        let text = self.text(key)?;
        match parse(&text.value) {
            Ok(value) => Some(Located { at: text.at, value }),
            Err(fault) => {
                self.faults.add(text.at, format!("{key} = \"{}\" {fault}", text.value));
                None
            }
        }
    }

    /// A list whose elements `read` accepts; those that it does not are faults already.
    pub(super) fn list<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl Fn(&Item, &mut Collector) -> Option<T>,
    ) -> Field<Vec<Located<T>>> {
        let item = self.get(key)?;
        let Value::Array(elements) = &item.value else {
            self.wrong(item, key, expected);
            return None;
        };
        let mut value = Vec::with_capacity(elements.len());
        for element in elements {
            if let Some(read) = read(element, self.faults) {
                value.push(Located { at: element.at, value: read });
            }
        }
        Some(Located { at: item.at, value })
    }

    /// A [`Self::list`] that must not be empty.
    pub(super) fn filled_list<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl Fn(&Item, &mut Collector) -> Option<T>,
    ) -> Field<Vec<Located<T>>> {
        let item = self.get(key)?;
        if matches!(&item.value, Value::Array(elements) if elements.is_empty()) {
            self.faults.add(item.at, format!("{key} is empty; write {expected}"));
        }
        self.list(key, expected, read)
    }

    pub(super) fn table(&mut self, key: &str) -> Field<&'t Table> {
        let item = self.get(key)?;
        match &item.value {
            Value::Table(table) => Some(Located { at: item.at, value: table }),
            _ => {
                self.wrong(item, key, &format!("a section that starts with [{key}]"));
                None
            }
        }
    }

    pub(super) fn tables(&mut self, key: &str) -> Vec<Located<&'t Table>> {
        let expected = format!("sections that start with [[{key}]], in two brackets");
        let Some(item) = self.get(key) else { return Vec::new() };
        let Value::Array(elements) = &item.value else {
            self.wrong(item, key, &expected);
            return Vec::new();
        };
        let mut tables = Vec::with_capacity(elements.len());
        for element in elements {
            match &element.value {
                Value::Table(table) => tables.push(Located { at: element.at, value: table }),
                _ => self.wrong(element, key, &expected),
            }
        }
        tables
    }
}

pub(super) fn text_of(item: &Item, what: &str, faults: &mut Collector) -> Field<String> {
    match &item.value {
        Value::Text(text) => Some(Located { at: item.at, value: text.clone() }),
        other => {
            faults.add(item.at, format!("{what} must be a string in quotes, not {}", other.kind()));
            None
        }
    }
}

/// An element of a list that is written as a string and parsed.
pub(super) fn parse_with<T: FromStr>(
    what: &'static str,
) -> impl Fn(&Item, &mut Collector) -> Option<T> {
    move |item, faults| {
        let text = text_of(item, what, faults)?;
        let parsed = text.value.parse().ok();
        if parsed.is_none() {
            faults.add(item.at, format!("\"{}\" is not {what}", text.value));
        }
        parsed
    }
}
