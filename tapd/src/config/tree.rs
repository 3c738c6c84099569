//! TOML text as a tree of values that know their file and line, and the merge of two such trees.
//!
//! Next: [`super::reader`].

use toml::de::{DeInteger, DeTable, DeValue};

use super::fault::{At, Collector};

/// A value and where it is written.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) at: At,
    pub(super) value: Value,
}

/// The TOML types that the configuration uses.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Boolean(bool),
    Array(Vec<Item>),
    Table(Table),
    /// Anything else, by the name a person knows it by.
    Other(&'static str),
}

impl Value {
    /// The type's name with its article, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Integer(_) => "a number",
            Self::Boolean(_) => "true or false",
            Self::Array(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(name) => name,
        }
    }
}

/// A table; keys are unique.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    pub(super) entries: Vec<Entry>,
}

/// A key with its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_at: At,
    pub(super) item: Item,
}

impl Table {
    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&Item> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| &entry.item)
    }
}

/// Parses one file; faults of syntax go to `faults`, and nothing is returned then.
pub(super) fn parse(text: &str, file: usize, faults: &mut Collector) -> Option<Table> {
    let lines = Lines::new(text, file);
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let at = lines.at(error.span().map_or(0, |span| span.start));
        faults.add(at, format!("not TOML: {}", error.message()));
    }
    errors.is_empty().then(|| lines.table(document.get_ref()))
}

/// Finds lines by byte offsets.
struct Lines {
    file: usize,
    ends: Vec<usize>,
}

impl Lines {
    fn new(text: &str, file: usize) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self { file, ends: ends.map(|(offset, _)| offset).collect() }
    }

    fn at(&self, offset: usize) -> At {
        At { file: self.file, line: self.ends.partition_point(|end| *end < offset) + 1 }
    }

    fn table(&self, table: &DeTable<'_>) -> Table {
        let mut entries: Vec<_> = table
            .iter()
            .map(|(key, value)| Entry {
                key: key.get_ref().to_string(),
                key_at: self.at(key.span().start),
                item: Item { at: self.at(value.span().start), value: self.value(value.get_ref()) },
            })
            .collect();
        entries.sort_by_key(|entry| entry.key_at);
        Table { entries }
    }

    fn value(&self, value: &DeValue<'_>) -> Value {
        match value {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => integer(number),
            DeValue::Boolean(flag) => Value::Boolean(*flag),
            DeValue::Array(items) => Value::Array(
                items
                    .iter()
                    .map(|item| Item {
                        at: self.at(item.span().start),
                        value: self.value(item.get_ref()),
                    })
                    .collect(),
            ),
            DeValue::Table(table) => Value::Table(self.table(table)),
            DeValue::Float(_) => Value::Other("a number with a fraction"),
            DeValue::Datetime(_) => Value::Other("a date"),
        }
    }
}

fn integer(number: &DeInteger<'_>) -> Value {
    i64::from_str_radix(number.as_str(), number.radix())
        .map_or(Value::Other("a number that is far too large"), Value::Integer)
}

/// Lays `over` on `base`, key by key; `[[nodes]]` pair by `id`, `[[networks]]` by `vni`,
/// `[[links]]` and `[[channels]]` by `name`.
pub(super) fn merge(base: &mut Table, over: Table) {
    lay_over(base, over, true);
}

fn lay_over(base: &mut Table, over: Table, top: bool) {
    for entry in over.entries {
        let Some(existing) = base.entries.iter_mut().find(|other| other.key == entry.key) else {
            base.entries.push(entry);
            continue;
        };
        // Only at the top: a node has `links` too, and that list is replaced as a whole.
        let id_key = match entry.key.as_str() {
            "nodes" if top => Some("id"),
            "networks" if top => Some("vni"),
            "links" | "channels" if top => Some("name"),
            _ => None,
        };
        match (&mut existing.item.value, entry.item.value, id_key) {
            (Value::Table(base), Value::Table(over), _) => lay_over(base, over, false),
            (Value::Array(base), Value::Array(over), Some(id_key)) => {
                merge_by_id(base, over, id_key);
            }
            (_, value, _) => {
                existing.key_at = entry.key_at;
                existing.item = Item { at: entry.item.at, value };
            }
        }
    }
}

/// What tables of a list pair by.
#[derive(PartialEq, Eq)]
enum Id {
    Number(i64),
    Name(String),
}

fn merge_by_id(base: &mut Vec<Item>, over: Vec<Item>, id_key: &str) {
    let id = |item: &Item| match &item.value {
        Value::Table(table) => match (&table.get(id_key)?.value, id_key) {
            (Value::Text(name), "name") => Some(Id::Name(name.clone())),
            (Value::Integer(number), "id" | "vni") => Some(Id::Number(*number)),
            _ => None,
        },
        _ => None,
    };
    // Each entry of the cluster file is matched once, so that an id that is twice in the local
    // file is still found to be a duplicate.
    let mut open: Vec<_> = base.iter().map(id).collect();
    for item in over {
        let position = id(&item)
            .and_then(|wanted| open.iter().position(|open| open.as_ref() == Some(&wanted)));
        let Some(position) = position else {
            base.push(item);
            continue;
        };
        if let (Some(slot), Some(target)) = (open.get_mut(position), base.get_mut(position)) {
            *slot = None;
            if let (Value::Table(base), Value::Table(over)) = (&mut target.value, item.value) {
                lay_over(base, over, false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str, file: usize) -> Table {
        let mut faults = Collector::default();
        parse(text, file, &mut faults).unwrap()
    }

    #[test]
    fn values_know_their_lines() {
        let table = table("\n[daemon]\nworkers = 0x10\n\n[[nodes]]\nid = 7\n[[nodes]]\n", 0);
        let Value::Table(daemon) = &table.get("daemon").unwrap().value else { panic!() };
        let workers = daemon.get("workers").unwrap();
        assert_eq!(workers.at, At { file: 0, line: 3 });
        assert!(matches!(workers.value, Value::Integer(16)));
        let Value::Array(nodes) = &table.get("nodes").unwrap().value else { panic!() };
        assert_eq!(nodes.iter().map(|node| node.at.line).collect::<Vec<_>>(), [5, 7]);
    }

    #[test]
    fn every_syntax_fault_is_kept() {
        let mut faults = Collector::default();
        assert!(parse("a = \nb = 1\nc = ]\n", 0, &mut faults).is_none());
        let text = faults.into_faults(&["x.toml".into()]).to_string();
        assert!(text.contains("x.toml:1: not TOML"), "{text}");
        assert!(text.contains("x.toml:3: not TOML"), "{text}");
    }

    #[test]
    fn options_of_links_pair_by_name_and_links_of_a_node_are_replaced() {
        let mut base = table(
            "[[links]]\nname = 'lan'\nmtu = 1500\nweight = 1\n[[nodes]]\nid = 1\n\
                links = [{ name = 'lan' }, { name = 'wan' }]\n",
            0,
        );
        let over = "[[links]]\nname = 'lan'\nweight = 2\n[[links]]\nname = 'wan'\n[[nodes]]\n\
            id = 1\nlinks = [{ name = 'wan' }]\n";
        merge(&mut base, table(over, 1));
        let Value::Array(links) = &base.get("links").unwrap().value else { panic!() };
        assert_eq!(links.len(), 2);
        let Value::Table(lan) = &links[0].value else { panic!() };
        assert!(matches!(lan.get("weight").unwrap().value, Value::Integer(2)));
        assert!(matches!(lan.get("mtu").unwrap().value, Value::Integer(1500)));
        let Value::Array(nodes) = &base.get("nodes").unwrap().value else { panic!() };
        let Value::Table(node) = &nodes[0].value else { panic!() };
        let Value::Array(links) = &node.get("links").unwrap().value else { panic!() };
        assert_eq!(links.len(), 1);
    }

    #[test]
    fn local_values_win_and_tables_pair_by_id() {
        let mut base =
            table("[a]\nx = 1\ny = 2\n[[nodes]]\nid = 1\nname = 'one'\n[[nodes]]\nid = 2\n", 0);
        merge(
            &mut base,
            table("[a]\ny = 3\n[[nodes]]\nid = 2\nname = 'two'\n[[nodes]]\nid = 3\n", 1),
        );
        let Value::Table(a) = &base.get("a").unwrap().value else { panic!() };
        assert!(matches!(a.get("x").unwrap().value, Value::Integer(1)));
        assert!(matches!(a.get("y").unwrap().value, Value::Integer(3)));
        assert_eq!(a.get("y").unwrap().at, At { file: 1, line: 2 });
        let Value::Array(nodes) = &base.get("nodes").unwrap().value else { panic!() };
        assert_eq!(nodes.len(), 3);
        let Value::Table(second) = &nodes[1].value else { panic!() };
        assert!(matches!(&second.get("name").unwrap().value, Value::Text(name) if name == "two"));
    }
}
